"""Which characters a terminal can show, and the same picture in ASCII: each character becomes one of the same width.

Frames, gauges, charts and signs are drawn in Unicode everywhere; the last step before the terminal redraws each line.
`visible.py` spells out what the command line prints, where a line may grow.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping

from rich.cells import cell_len
from rich.segment import Segment
from textual.color import Color
from textual.filter import LineFilter

from cwa_tui.text.locales import is_c, locale_of
from cwa_tui.text.visible import IN_ASCII

_NARROW = {
    "…": "~", "→": ">", "←": "<", "↑": "^", "↓": "v", "Δ": "d", "√": "v", "²": "2", "½": "/", "Σ": "S",
    "▶": ">", "▸": ">", "▷": ">", "◀": "<", "◂": "<", "▲": "^", "▴": "^", "▼": "v", "▾": "v",
    "‖": "=", "⊘": "/", "○": "o", "◦": "o", "◉": "*", "◆": "*", "◇": "o", "■": "#", "□": "o",
    "🔎": ">>", "★": "*", "☆": "*", "•": "*", "∙": "-",
    "—": "-", "−": "-", "‘": "'", "’": "'", "“": '"', "”": '"', "≤": "<", "≥": ">", "≈": "~", "±": "~", "µ": "u",
    "μ": "u", "σ": "s", "ρ": "r", "°": "o", "∞": "~", "⚠": "!", "✔": "+", "✘": "x", "⊕": "+", "⏎": "<", "⏵": ">",
    # levels of a history, from low to high
    "▁": "_", "▂": "_", "▃": ".", "▄": "-", "▅": "=", "▆": "+", "▇": "*", "█": "#",
    # parts of a gauge, from thin to wide
    "▏": "|", "▎": "|", "▍": "|", "▌": "|", "▋": "#", "▊": "#", "▉": "#", "▐": "|", "▕": "|",
    "▔": "-", "▀": "=", "░": ".", "▒": ":", "▓": "%",
    "▖": ".", "▗": ".", "▘": "'", "▝": "'", "▚": "x", "▞": "x", "▙": "#", "▛": "#", "▜": "#", "▟": "#",
}  # fmt: skip


def needs_ascii(environ: Mapping[str, str], encoding: str) -> bool:
    """Whether a terminal is to be drawn on in ASCII: its encoding is not UTF-8, its locale is C, or it is a Linux console.

    The console's font has 256 characters, braille and rounded corners not among them. Where no locale is set at all, as in
    most containers, the encoding decides, which Python takes for UTF-8 there.
    """
    codeset = locale_of(environ).partition(".")[2].partition("@")[0]
    in_utf8 = (codeset or encoding).lower().replace("-", "") == "utf8"
    return not in_utf8 or is_c(environ) or environ.get("TERM") == "linux"


class InAscii(LineFilter):
    """Draw each line in ASCII."""

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        if all(text.isascii() for text, _, _ in segments):
            return segments
        drawn = [Segment(in_ascii(text), style, control) for text, style, control in segments]
        return Segment.adjust_line_length(drawn, Segment.get_line_length(segments))  # joined emoji have fewer cells


def in_ascii(text: str) -> str:
    """The text in ASCII, with as many cells. A character that ASCII has nothing like becomes `?`."""
    return text if text.isascii() else text.translate(_DRAWN)


class _Drawn(dict[int, str]):
    """Code point -> what is drawn instead; worked out when it is first met."""

    def __missing__(self, point: int) -> str:
        character = chr(point)
        self[point] = drawn = character if character.isascii() else _drawn(character)
        return drawn


_DRAWN = _Drawn()


def _drawn(character: str) -> str:
    known, width = _NARROW.get(character) or IN_ASCII.get(character, ""), cell_len(character)
    if known and len(known) == width:
        return known
    if 0x2800 <= ord(character) <= 0x28FF:
        return _braille(ord(character) - 0x2800)
    if (name := unicodedata.name(character, "")).startswith("BOX DRAWINGS"):
        return _line(name)
    base = unicodedata.normalize("NFKD", character)[0]  # é is e and an accent
    return base if base.isascii() and base.isprintable() and width == 1 else "?" * width


def _line(name: str) -> str:
    """A line or a corner; heavy lines, as around what has the focus, look different from light ones."""
    across = any(word in name for word in ("HORIZONTAL", "LEFT", "RIGHT"))
    down = any(word in name for word in ("VERTICAL", "UP", "DOWN"))
    if "DIAGONAL" in name:
        return "/" if "UPPER RIGHT TO LOWER LEFT" in name else "\\"
    if across and down:
        return "+"
    if across:
        return "=" if "HEAVY" in name or "DOUBLE" in name else "-"
    return "|"


_UPPER, _LOWER = 0b00011011, 0b11100100  # dots 1, 2, 4, 5 and 3, 6, 7, 8


def _braille(dots: int) -> str:
    """Dots by where most of them are: above, below, in both halves, and everywhere."""
    if not dots:
        return " "
    if dots.bit_count() >= 6:
        return "#"
    above, below = dots & _UPPER, dots & _LOWER
    return ":" if above and below else "'" if above else "."
