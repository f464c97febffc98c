"""The command line that does the same as the form."""

from __future__ import annotations

import re

from rich.text import Text

from cwa_tui.text.visible import words
from cwa_tui.widgets.quiet_static import QuietStatic

_WIDEST = 78  # a terminal of 80 columns shows it whole, and it can be copied from there line by line


class FormCommand(QuietStatic):
    """Says that there is none while something is wrong. `what` the command line makes: a run."""

    def __init__(self, what: str, id: str) -> None:
        super().__init__(id=id)
        self._what = what

    def show(self, command: str) -> None:
        if not command:
            self.say(Text.assemble(("command  ", "bold"), f"the form does not make a {self._what} yet"))
            return
        lines = wrapped(command, min(_WIDEST, (self.content_size.width or _WIDEST) - 2))
        self.say(
            Text("\n", no_wrap=True).join([Text.assemble(("$ ", "bold"), words(lines[0])), *map(words, lines[1:])])
        )


def wrapped(command: str, width: int) -> list[str]:
    """A command line in lines that a shell takes as one: each but the last ends in a backslash. Words are never cut."""
    lines: list[str] = []
    for word in re.findall(r"(?:[^\s']|'[^']*')+", command):
        if lines and len(lines[-1]) + 1 + len(word) <= width - 2:
            lines[-1] += f" {word}"
        else:
            lines.append(f"    {word}" if lines else word)
    return [f"{line} \\" for line in lines[:-1]] + lines[-1:]
