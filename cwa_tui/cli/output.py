"""Output of commands: data goes to standard output, messages go to standard error."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from cwa_engine.base.errors import CwaError
from cwa_tui.text.visible import visible

if TYPE_CHECKING:
    from cwa_tui.cli.terminal import Terminal


def show(value: Any) -> None:
    """Print data on standard output: maps as JSON, text and tables as they are."""
    if isinstance(value, dict):
        print(json_text(value, indent=2), flush=True)
    elif isinstance(value, str):
        print(visible(value), flush=True)
    else:
        from cwa_tui.cli.lines import line_width
        from cwa_tui.cli.terminal import Terminal

        # Piped output is not folded to 80 columns: a weight's name stays on one line for grep.
        Terminal(width=None if sys.stdout.isatty() else 200, line_width=line_width()).print(value, crop=False)


def show_exactly(text: str) -> None:
    """Print a table for programs. In a pipe or a file it is UTF-8, and nothing of it is spelled out."""
    if sys.stdout.isatty():
        show(text.removesuffix("\n"))
        return
    sys.stdout.flush()
    sys.stdout.buffer.write(text.encode("utf-8", "backslashreplace"))
    sys.stdout.buffer.flush()


def json_text(value: Any, indent: int | None = None) -> str:
    """JSON in printable ASCII, so that it is the same in every encoding. json.dumps leaves DEL as it is."""
    return json.dumps(value, indent=indent).replace("\x7f", "\\u007f")


def say(text: str) -> None:
    """Print a message on standard error."""
    stderr().print(text, highlight=False, soft_wrap=True)


def show_error(error: CwaError, as_json: bool) -> None:
    """Print what happened and what to do next; as JSON on standard output if asked for."""
    if as_json:
        show({"error": error.to_dict()})
        return
    from rich.text import Text

    stderr().print(Text.assemble(("Error: ", "red"), visible(error.message)), soft_wrap=True)
    if error.hint:
        stderr().print(Text.assemble(("Hint:  ", "dim"), visible(error.hint)), soft_wrap=True)


def stderr(quiet: bool = False) -> Terminal:
    """A rich console on standard error. rich is imported when the first one is made."""
    from cwa_tui.cli.terminal import Terminal

    return Terminal(stderr=True, quiet=quiet)
