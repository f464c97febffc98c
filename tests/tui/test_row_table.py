"""The table, driven by keys and the mouse: long ones, sorted, filtered, marked, copied, with chosen columns."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import ClassVar

import pytest
from textual import on
from textual.app import App, ComposeResult
from textual.message import Message
from textual.pilot import Pilot

from cwa_tui.tables.columns import Column
from cwa_tui.tables.filters import Sorting
from cwa_tui.tables.rows import Rows, TableLook, TableRow
from cwa_tui.widgets.row_table import RowTable

COLUMNS = (
    Column("rank", "rank", 6, right=True),
    Column("name", "name", 12, most=30, cut="start"),
    Column("score", "score", 8, right=True),
    Column("layer", "layer", 5, right=True, optional=1),
    Column("component", "component", 12, optional=2),
)


class Table(RowTable):
    COLUMNS = COLUMNS
    MARKS: ClassVar[int] = 2


def row(rank: int) -> TableRow:
    layer = rank % 7
    cells = {
        "rank": f"{rank:,}",
        "name": f"layers.{layer}.w{rank}",
        "score": f"{1 / rank:.4g}",
        "layer": str(layer),
        "component": "mlp",
    }
    return TableRow(str(rank), cells, values={"rank": rank, "score": 1 / rank, "layer": layer})


class TableApp(App[None]):
    def __init__(self) -> None:
        super().__init__()
        self.heard: list[Message] = []

    def compose(self) -> ComposeResult:
        yield Table("table")

    @on(Table.Highlighted)
    @on(Table.Opened)
    @on(Table.Marked)
    @on(Table.TooManyMarks)
    @on(Table.Arranged)
    @on(Table.LookChanged)
    @on(Table.Copied)
    def hear(self, message: Message) -> None:
        self.heard.append(message)


class Shown:
    """The table of a running app, and what it looks like."""

    def __init__(self, pilot: Pilot[None]) -> None:
        self.pilot = pilot
        self.table = pilot.app.query_one(Table)

    async def press(self, *keys: str) -> None:
        await self.pilot.press(*keys)
        await self.pilot.pause()

    @property
    def lines(self) -> list[str]:
        return [strip.text for strip in self.pilot.app.screen._compositor.render_strips()]

    @property
    def keys(self) -> list[str]:
        """Of the first rows on screen, by rank."""
        return [line.split()[0] for line in self.lines[1:-1] if line.split()]

    def last(self, kind: type[Message]) -> Message:
        app = self.pilot.app
        assert isinstance(app, TableApp)
        return [message for message in app.heard if isinstance(message, kind)][-1]


@pytest.fixture
async def shown() -> AsyncIterator[Shown]:
    app = TableApp()
    async with app.run_test(size=(60, 12)) as pilot:
        shown = Shown(pilot)
        shown.table.focus()
        shown.table.show([row(rank) for rank in range(1, 1001)])
        await pilot.pause()
        yield shown


async def test_the_first_and_the_last_row_are_a_key_away(shown: Shown) -> None:
    assert shown.keys[:2] == ["1", "2"] and "1-10 of 1,000" in shown.lines[-1]
    await shown.press("G")
    assert shown.table.cursor_key == "1000" and shown.keys[-1] == "1,000" and "991-1,000 of 1,000" in shown.lines[-1]
    await shown.press("g")
    assert shown.table.cursor_key == "1" and shown.keys[0] == "1"
    await shown.press("j", "j", "k", "pagedown")
    assert shown.table.cursor_key == "12"


async def test_sorting_goes_by_the_column_under_the_cursor_and_back(shown: Shown) -> None:
    await shown.press("right", "right", "right", "s")  # rank, name, score
    assert shown.table.look.sorting == Sorting("score", descending=True) and "score↓" in shown.lines[0]
    await shown.press("s")
    assert shown.keys[0] == "1,000" and "score↑" in shown.lines[0]
    assert shown.last(Table.LookChanged) == Table.LookChanged(shown.table, TableLook((), Sorting("score")))
    await shown.press("s")
    assert shown.keys[0] == "1" and shown.table.look.sorting is None


async def test_a_click_on_a_title_sorts_and_on_a_row_goes_there(shown: Shown) -> None:
    await shown.pilot.click(Table, offset=(shown.lines[0].index("rank") + 1, 0))
    await shown.pilot.pause()
    assert shown.table.look.sorting == Sorting("rank", descending=True) and shown.keys[0] == "1,000"
    await shown.pilot.click(Table, offset=(10, 3))
    await shown.pilot.pause()
    assert shown.table.cursor_key == "998"
    assert shown.last(Table.Highlighted) == Table.Highlighted(shown.table, "998")
    await shown.pilot.click(Table, offset=(10, 3), times=2)
    await shown.pilot.pause()
    assert shown.last(Table.Opened) == Table.Opened(shown.table, "998")


async def test_a_filter_takes_effect_as_it_is_typed_and_escape_ends_it(shown: Shown) -> None:
    await shown.press("slash", *"layer:3")
    assert shown.keys[:2] == ["3", "10"] and shown.lines[-1].startswith("/layer:3")
    await shown.press("enter", "j")  # j moves again
    assert "(of 1,000) · /layer:3" in shown.lines[-1] and shown.table.cursor_key == "10"
    await shown.press("slash", "backspace", "5")
    assert shown.keys[0] == "5"
    await shown.press("escape")
    assert shown.table.filter_text == "" and shown.table.cursor_key == "10"  # the row that it was on
    await shown.press("slash", *"nowhere", "enter")
    assert "nothing matches /nowhere" in shown.lines[1]


async def test_a_colon_jumps_to_a_rank(shown: Shown) -> None:
    await shown.press("colon", *"500", "enter")
    assert shown.table.cursor_key == "500" and "500" in shown.keys


async def test_marks_stay_with_their_rows_and_have_a_bound(shown: Shown) -> None:
    await shown.press("space", "j", "space")
    assert shown.table.marks == ("1", "2") and shown.lines[1].startswith("●")
    await shown.press("j", "space")
    assert shown.last(Table.TooManyMarks) == Table.TooManyMarks(shown.table, 2)
    await shown.press("right", "s", "g")  # the largest rank comes first now
    assert not shown.lines[1].startswith("●")
    await shown.press("escape")
    assert len(shown.table.marks) == 0


async def test_a_row_and_a_cell_are_copied_exactly(shown: Shown) -> None:
    await shown.press("j", "j", "y")
    assert shown.last(Table.Copied) == Table.Copied(shown.table, f"3\tlayers.3.w3\t{1 / 3!r}\t3\tmlp")
    await shown.press("right", "right", "right", "Y")
    assert shown.last(Table.Copied) == Table.Copied(shown.table, repr(1 / 3))


async def test_columns_that_do_not_fit_scroll_into_sight(shown: Shown) -> None:
    await shown.pilot.resize_terminal(36, 12)
    assert "component" not in shown.lines[0]
    await shown.press("right", "right", "right", "right", "right")
    assert "component" in shown.lines[0] and "rank" in shown.lines[0]  # the first column stays
    await shown.press("left", "left", "left", "left")
    assert "name" in shown.lines[0]


async def test_chosen_columns_are_shown_in_their_order(shown: Shown) -> None:
    shown.table.choose_columns(("component", "rank"))
    await shown.pilot.pause()
    assert shown.lines[0].split() == ["component", "rank"]
    assert shown.last(Table.LookChanged) == Table.LookChanged(shown.table, TableLook(("component", "rank")))


async def test_the_cursor_stays_on_its_row_while_rows_come_in_above(shown: Shown) -> None:
    await shown.press("j", "j", "j")
    assert shown.table.cursor_key == "4"
    shown.table.show([row(rank) for rank in (2000, *range(1, 1001))])
    await shown.pilot.pause()
    assert shown.table.cursor_key == "4"


async def test_only_rows_on_screen_are_made(shown: Shown) -> None:
    made: list[int] = []

    class Counted(Rows):
        def row(self, place: int) -> TableRow:
            made.append(place)
            return super().row(place)

        def arranged(self, sorting: Sorting | None, text: str) -> Rows:
            return self

        def place_of(self, key: str) -> int | None:
            return None

    rows = [row(rank) for rank in range(1, 100_001)]
    shown.table.show(Counted(COLUMNS, rows))
    await shown.press("G", "pageup", "g")
    assert len(set(made)) < 60


async def test_without_rows_it_says_why(shown: Shown) -> None:
    shown.table.show([], nothing="no run is selected")
    await shown.pilot.pause()
    assert "no run is selected" in shown.lines[1]
    await shown.press("j", "G", "enter", "s", "y", "space")
    assert shown.table.cursor_key is None


async def test_what_is_typed_ends_when_the_focus_goes(shown: Shown) -> None:
    await shown.press("slash", *"w1")
    shown.pilot.app.set_focus(None)
    await shown.pilot.pause()
    assert "/w1" in shown.lines[-1] and "▏" not in shown.lines[-1]
