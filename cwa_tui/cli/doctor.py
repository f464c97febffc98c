"""`cwtool doctor` on a terminal."""

from __future__ import annotations

from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from cwa_tui.visible import visible, words

_SIGNS = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "problem": ("✗", "red")}


def checks_table(checks: list[dict[str, Any]]) -> RenderableType:
    """One line a check, with the advice below what needs one."""
    table = Table(show_header=False, box=None, padding=(0, 1, 0, 0))
    for check in checks:
        found = words(check["found"], overflow="fold")
        if check["advice"]:
            found.append(visible(f"\n→ {check['advice']}"), "bold")
        table.add_row(Text(*_SIGNS[check["state"]]), Text(check["name"]), found)
    return table
