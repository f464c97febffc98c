"""Printed tables in HTML, for notebooks. Everything is escaped, colours are those of what surrounds the table. torch-free."""

from __future__ import annotations

from html import escape

from cwa_engine.exchange.printed import Cell, Number, PrintedTable, Strong, is_numeric, number_texts

_CELL = "padding:2px 8px;border:0;border-bottom:1px solid rgba(128,128,128,.3);background:none;color:inherit"


def printed_html(table: PrintedTable) -> str:
    """The table, and its caption below it."""
    right = [is_numeric([row[place] for row in table.rows]) for place in range(len(table.columns))]
    head = "".join(_cell("th", escape(name), end) for name, end in zip(table.columns, right, strict=True))
    body = "".join(
        "<tr>" + "".join(_cell("td", _text(cell), end) for cell, end in zip(row, right, strict=True)) + "</tr>"
        for row in table.rows
    )
    caption = (
        f'<div style="font-size:85%;opacity:.75;max-width:60em">{escape(table.caption)}</div>' if table.caption else ""
    )
    return (
        '<div style="overflow-x:auto"><table style="border-collapse:collapse;background:none;color:inherit">'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>{caption}"
    )


def _cell(tag: str, content: str, right: bool) -> str:
    return f'<{tag} style="{_CELL};text-align:{"right" if right else "left"}">{content}</{tag}>'


def _text(cell: Cell) -> str:
    match cell:
        case Strong():
            return f"<b>{_text(cell.cell)}</b>"
        case Number():
            return escape(" ".join(part for part in number_texts(cell) if part))
        case None:
            return ""
    return escape(f"{cell:,}" if isinstance(cell, int) else cell)
