"""Printed tables in Markdown, as GitHub shows it. torch-free."""

from __future__ import annotations

from collections.abc import Iterable

from cwa_engine.exchange.formats import markdown_text
from cwa_engine.exchange.printed import Cell, Number, PrintedTable, Strong, is_numeric, number_texts


def printed_markdown(table: PrintedTable) -> str:
    """The caption, and the table below it; columns of numbers stand to the right."""
    right = [is_numeric([row[place] for row in table.rows]) for place in range(len(table.columns))]
    lines = [
        [markdown_text(name) for name in table.columns],
        ["---:" if numeric else "---" for numeric in right],
        *([_cell(cell) for cell in row] for row in table.rows),
    ]
    return f"{markdown_text(table.caption)}\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def page(title: str, tables: Iterable[PrintedTable]) -> str:
    """All tables in one file, each below its name."""
    parts = [f"# {markdown_text(title)}\n"]
    parts += [f"## {markdown_text(table.name.replace('_', ' '))}\n\n{printed_markdown(table)}" for table in tables]
    return "\n".join(parts)


def _cell(cell: Cell) -> str:
    if isinstance(cell, Strong):
        said = _cell(cell.cell)
        return f"**{said}**" if said else ""
    if isinstance(cell, Number):
        return markdown_text(" ".join(part for part in number_texts(cell) if part))
    return "" if cell is None else markdown_text(f"{cell:,}" if isinstance(cell, int) else cell)
