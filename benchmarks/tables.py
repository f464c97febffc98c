"""Markdown tables of what was measured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table, text to the left and the rest to the right."""
    found = [[str(cell) for cell in row] for row in rows]
    lines = [list(columns), ["---", *["---:"] * (len(columns) - 1)], *found]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
