"""Tags and the note of a run are edited with T, seen where there is room, and found by the filter."""

from __future__ import annotations

import pytest

from cwa_tui.screens.marks import MarksScreen
from tests.tui.fake_client import FakeDaemon, until
from tests.tui.test_home import LARGE, open_on

ONE, OTHER = "20261123-180000-gpt2-k7q2", "20261123-180001-gpt2-m3n4"


@pytest.fixture
def daemon() -> FakeDaemon:
    daemon = FakeDaemon()
    for run_id in (OTHER, ONE):
        daemon.end(daemon.run(run_id))
    return daemon


async def test_tags_and_note_of_the_selected_run_are_edited(daemon: FakeDaemon) -> None:
    daemon.jobs[ONE] = daemon.jobs[ONE].model_copy(update={"tags": ["draft"], "note": "first"})
    async with open_on(daemon, LARGE) as terminal:
        await until(lambda: terminal.table.cursor_job == ONE)
        await terminal.pilot.press("T")
        await until(lambda: isinstance(terminal.screen, MarksScreen))
        await terminal.pilot.press("end", *(["backspace"] * 5), *"keep")
        await terminal.pilot.press("tab", *"ly", "enter", *"two")
        await terminal.pilot.press("ctrl+s")
        await until(lambda: daemon.jobs[ONE].tags == ["keep"])
        assert daemon.jobs[ONE].note == "firstly\ntwo"
        await terminal.sees("tags: keep", "note: firstly")
        assert daemon.jobs[OTHER].tags == []


async def test_escape_changes_nothing_and_a_bad_tag_is_explained(daemon: FakeDaemon) -> None:
    async with open_on(daemon) as terminal:
        await until(lambda: terminal.table.cursor_job == ONE)
        await terminal.pilot.press("T", *"x", "escape")
        await terminal.pilot.press("T", *"-x", "enter")
        await terminal.sees("cannot be a tag")
        assert daemon.jobs[ONE].tags == []


async def test_the_filter_of_the_list_finds_tags(daemon: FakeDaemon) -> None:
    daemon.jobs[OTHER] = daemon.jobs[OTHER].model_copy(update={"tags": ["sweep"]})
    async with open_on(daemon) as terminal:
        await until(lambda: len(terminal.table.source) == 2)
        await terminal.pilot.press("/", *"sweep", "enter")
        await until(lambda: len(terminal.table.source) == 1)
        assert terminal.table.cursor_job == OTHER


async def test_a_wide_list_has_a_column_of_tags_where_a_run_has_any(daemon: FakeDaemon) -> None:
    async with open_on(daemon, (220, 48)) as terminal:
        await until(lambda: len(terminal.table.source) == 2)
        assert "tags" not in terminal.text
        daemon.jobs[OTHER] = daemon.jobs[OTHER].model_copy(update={"tags": ["sweep"]})
        daemon.wake()
        await terminal.sees("tags")
        assert "sweep" in terminal.line("m3n4")
