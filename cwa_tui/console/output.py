"""What goes where: data to standard output, everything said to a person to standard error."""

from __future__ import annotations

import json
import sys
from typing import Any

from cwa_engine.errors import CwaError


def show(value: Any) -> None:
    """Data on standard output: JSON for maps, text and tables as they are."""
    if isinstance(value, dict):
        print(json.dumps(value, indent=2))
    elif isinstance(value, str):
        print(value)
    else:
        from rich.console import Console

        # Piped output is not folded to 80 columns: a weight's name stays on one line for grep.
        Console(width=None if sys.stdout.isatty() else 200).print(value)


def say(text: str) -> None:
    """Something for the person, not for a pipe."""
    stderr().print(text, markup=False, highlight=False, soft_wrap=True)


def show_error(error: CwaError, as_json: bool) -> None:
    """What happened and what to do next; in JSON on standard output where that was asked for."""
    if as_json:
        show({"error": error.to_dict()})
        return
    from rich.text import Text

    stderr().print(Text.assemble(("Error: ", "red"), error.message), soft_wrap=True)
    if error.hint:
        stderr().print(Text.assemble(("Hint:  ", "dim"), error.hint), soft_wrap=True)


def stderr(quiet: bool = False) -> Any:
    """A rich console on standard error; rich is imported by the first that is needed."""
    from rich.console import Console

    return Console(stderr=True, quiet=quiet)
