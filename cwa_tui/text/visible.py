"""Text from elsewhere, made safe for a terminal: control characters are shown, and what an encoding lacks is spelled out.

Names of files and models, the contents of a model's config, and messages of libraries may hold anything.
"""

from __future__ import annotations

import codecs
import unicodedata
from typing import TYPE_CHECKING

from cwa_engine.base.visible import spelled_out

if TYPE_CHECKING:
    from rich.console import OverflowMethod
    from rich.text import Text

# Our own symbols in ASCII. Other characters are spelled as in Python, so that no two names look the same.
IN_ASCII = {
    "·": "-", "…": "...", "→": "->", "×": "x", "–": "-", "●": "*", "✓": "+", "✗": "x", "Δ": "delta", "√": "sqrt",
    "‖": "||", "²": "^2", "½": "1/2", "α": "alpha", "Σ": "sum", "█": "#", "░": ".",
    "○": "o", "▶": ">", "⊘": "/",
}  # fmt: skip
SPELLED_OUT = "cwtool.spelled_out"  # name of the error handler: `text.encode("latin-1", SPELLED_OUT)`


def visible(text: str, encoding: str = "utf-8") -> str:
    r"""The text with control characters as Python writes them (`\x1b`), and with nothing that `encoding` cannot hold."""
    text = spelled_out(text)
    return text if text.isascii() or encoding.startswith("utf") else text.encode(encoding, SPELLED_OUT).decode(encoding)


def words(said: str, style: str = "", overflow: OverflowMethod | None = None) -> Text:
    """A rich text of a string from elsewhere. `visible` comes first, as rich drops some control characters."""
    from rich.text import Text

    return Text(visible(said), style, overflow=overflow)


def visible_text(text: Text, encoding: str = "utf-8") -> Text:
    """A rich text made `visible`, with each character in its style."""
    from rich.text import Span, Text

    if visible(text.plain, encoding) == text.plain:
        return text
    shown = text.blank_copy()
    for character in text.divide(range(1, len(text))):
        said = visible(character.plain, encoding)
        shown.append_text(Text(said, spans=[Span(0, len(said), span.style) for span in character.spans]))
    return shown


def _spell_out(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_spelled, error.object[error.start : error.end])), error.end


def _spelled(character: str) -> str:
    name = unicodedata.name(character, "")
    if name.startswith("BOX DRAWINGS"):
        across, down = "HORIZONTAL" in name, "VERTICAL" in name
        return "-" if across and not down else "|" if down and not across else "+"
    return IN_ASCII.get(character) or character.encode("ascii", "backslashreplace").decode()


codecs.register_error(SPELLED_OUT, _spell_out)
