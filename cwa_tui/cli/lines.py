"""Tables of one line a row: columns that do not fit are left out, long texts are cut with a sign, run ids never are."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from cwa_engine.records.run_id import short_id
from cwa_tui.tables.columns import PADDING, Column, Cut, fit, shorten
from cwa_tui.tables.rows import ViewTable
from cwa_tui.text.visible import visible

RUN_ID = "run id"  # key of the column of run ids, which are whole or short, and never cut
NO_LIMIT = 1_000_000  # cells of a line in a pipe


@dataclass(frozen=True, slots=True)
class Field:
    """A column. Of a text that is too long at least `least` cells are kept; with 0 it is never cut."""

    key: str
    least: int = 0
    cut: Cut = "end"
    optional: int = 0  # 0 is always shown; of the others those with the highest number are left out first
    right: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """Cells by column key, with styles of their own; or the first cell and a sentence that takes the rest of the line."""

    cells: Mapping[str, str]
    styles: Mapping[str, str] = field(default_factory=dict)
    sentence: str = ""


@dataclass(frozen=True, slots=True)
class LineTable:
    """Something rich prints as one line for each row, in the width that there is."""

    fields: Sequence[Field]
    rows: Sequence[Row]
    title: str = ""
    caption: str = ""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        room = getattr(console, "line_width", None) or options.max_width
        shown = _fitted(_readable(self, console.encoding), room, console.encoding)
        for line in (*_headings(self.title, "bold"), *shown, *_headings(self.caption, "dim italic")):
            line.truncate(room, overflow="ellipsis")  # where not even the least of all columns fits
            yield Text(no_wrap=True, overflow="ignore").append_text(line)


def as_lines(table: ViewTable, caption: str = "") -> LineTable:
    """A view's table with one line a row, without the columns that a face shows only where they are asked for."""
    columns = [column for column in table.columns if not column.hidden]
    fields = [
        Field(
            column.label or " ",
            least=min(column.width, 10) if column.most else 0,
            cut=column.cut,
            optional=column.optional,
            right=column.right,
        )
        for column in columns
    ]
    rows = [
        Row(
            {column.label or " ": row.cells.get(column.key, "") for column in columns},
            {column.label or " ": row.cell_style(column.key) for column in columns},
        )
        for row in table.rows
    ]
    return LineTable(fields, rows, title=table.title, caption=caption)


def columns_left_out(table: LineTable) -> list[str]:
    """Keys of the columns that are not shown on standard output, for which it is not wide enough."""
    room = line_width() or shutil.get_terminal_size().columns
    _, widths = _with_ids(_readable(table, "utf-8"), room)
    return [entry.key for entry in table.fields if entry.key not in widths]


def line_width() -> int | None:
    """Cells of a line on standard output: as COLUMNS says, else what the terminal has (None), else no limit."""
    given = os.environ.get("COLUMNS", "")
    if given.isdigit() and int(given):
        return int(given)
    return None if sys.stdout.isatty() else NO_LIMIT


def _readable(table: LineTable, encoding: str) -> LineTable:
    """The table with texts as they will be shown, so that they can be measured: on one line, without control characters."""

    def readable(text: str) -> str:
        return visible(" ".join(text.split()), encoding)

    rows = [
        replace(row, cells={key: readable(text) for key, text in row.cells.items()}, sentence=readable(row.sentence))
        for row in table.rows
    ]
    return replace(table, rows=rows)


def _fitted(table: LineTable, room: int, encoding: str) -> Iterator[Text]:
    rows, widths = _with_ids(table, room)
    fields = [entry for entry in table.fields if entry.key in widths]
    yield _line(fields, {entry.key: entry.key for entry in fields}, dict.fromkeys(widths, "bold"), widths, encoding)
    for row in rows:
        if row.sentence:
            first = fields[0].key
            left = max(1, room - widths[first] - PADDING)
            cells = {first: row.cells[first], "": row.sentence}
            sides = {first: widths[first], "": left}
            yield _line([fields[0], Field("", 1)], cells, {"": row.styles.get("", "")}, sides, encoding)
        else:
            yield _line(fields, row.cells, row.styles, widths, encoding)


def _with_ids(table: LineTable, room: int) -> tuple[Sequence[Row], dict[str, int]]:
    """The rows with whole run ids where all else fits beside them, else with short ones, and the widths of the columns."""
    widths = _widths(table.fields, table.rows, room)
    ids = {row.cells[RUN_ID] for row in table.rows if RUN_ID in row.cells}
    short = {short_id(run_id) for run_id in ids}
    whole = _widths(table.fields, table.rows, NO_LIMIT)
    last = table.fields[-1].key  # it may be cut, as a message may have any length
    fits = all(widths.get(key) == whole[key] for key in whole if key != last)
    fits &= all(cell_len(row.cells[RUN_ID] + row.sentence) + PADDING <= room for row in table.rows if row.sentence)
    if not ids or len(short) < len(ids) or fits:
        return table.rows, widths
    rows = [replace(row, cells={**row.cells, RUN_ID: short_id(row.cells[RUN_ID])}) for row in table.rows]
    return rows, _widths(table.fields, rows, room)


def _widths(fields: Sequence[Field], rows: Sequence[Row], room: int) -> dict[str, int]:
    """Cells of each column that fits. What is left goes to those that are cut, the narrowest of them first."""
    columns, whole = [], {}
    for entry in fields:
        said = [row.cells[entry.key] for row in rows if row.cells.get(entry.key)]
        if entry.optional and not said:
            continue
        longest = whole[entry.key] = max(map(cell_len, (entry.key, *said)))
        least = min(longest, max(entry.least, cell_len(entry.key))) if entry.least else longest
        columns.append(Column(entry.key, entry.key, least, optional=entry.optional))
    widths = fit(columns, room + PADDING)  # nothing stands behind the last column
    spare = room + PADDING - sum(width + PADDING for width in widths.values())
    while spare > 0 and (cut := [key for key, width in widths.items() if width < whole[key]]):
        narrowest = min(cut, key=lambda key: widths[key])
        widths[narrowest] += 1
        spare -= 1
    return widths


def _line(
    fields: Sequence[Field],
    cells: Mapping[str, str],
    styles: Mapping[str, str],
    widths: Mapping[str, int],
    encoding: str,
) -> Text:
    line = Text()
    for entry in fields:
        width = widths[entry.key]
        said = _cut(cells.get(entry.key, ""), width, entry.cut, encoding)
        blank = " " * (width - cell_len(said))
        line.append(blank if entry.right else "")
        line.append(said, styles.get(entry.key, ""))
        line.append(("" if entry.right else blank) + " " * PADDING)
    line.rstrip()
    return line


def _cut(text: str, width: int, cut: Cut, encoding: str) -> str:
    """The text in at most `width` cells as `encoding` has it, where some characters take two and an ellipsis may be "..."."""
    if cell_len(text) <= width:
        return text
    if cut == "start" and (tail := _last_part(text, width, encoding)):
        return tail
    for length in range(width, 0, -1):
        shown = visible(shorten(text, length, cut), encoding)
        if cell_len(shown) <= width:
            return shown
    return ""


def _last_part(name: str, width: int, encoding: str) -> str:
    """`…/pythia-70m` of `EleutherAI/pythia-70m`, if that fits."""
    head, slash, tail = name.rpartition("/")
    shown = visible(f"…/{tail}", encoding)
    return shown if head and slash and cell_len(shown) <= width else ""


def _headings(text: str, style: str) -> list[Text]:
    return [Text(text, style)] if text else []
