"""Tables of a comparison: what rankings share, damage, and where the top weights are."""

from __future__ import annotations

from collections.abc import Sequence

from cwa_tui.tables.rows import Rows, ViewTable
from cwa_tui.widgets.row_table import RowTable


class ViewRows(RowTable):
    """Shows a table of a comparison, under its title."""

    def show_tables(self, tables: Sequence[ViewTable], nothing: str) -> None:
        """The rows of these tables below each other; they have the same columns, or there is one."""
        if not tables:
            self.border_title = ""
            self.show(Rows((), ()), nothing=nothing)
            return
        self.border_title = tables[0].title
        self.show(Rows(tables[0].columns, [row for table in tables for row in table.rows]), nothing=nothing)
