"""What was chosen is there after a restart, and a damaged file costs nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from cwa_tui.store.preferences import PreferenceFile, Preferences
from cwa_tui.tables.filters import Sorting
from cwa_tui.tables.rows import TableLook

LOOK = TableLook(("rank", "score"), Sorting("score", descending=True))


def test_what_was_chosen_is_there_after_a_restart(tmp_path: Path) -> None:
    first = PreferenceFile(tmp_path / "state" / "tui.json")
    first.change(theme="cwtool-light", bell=True, draft={"model": "gpt2", "metrics": ["wanda"], "matrices": True})
    first.change_table("topk", LOOK)
    again = PreferenceFile(tmp_path / "state" / "tui.json")
    assert again.now == first.now
    assert again.table("topk") == LOOK
    assert again.table("jobs") == TableLook()
    assert (tmp_path / "state" / "tui.json").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    "content", ["", "[]", "null", '{"theme": 3}', '{"tables": {"topk": {"columns": [1]}}}', "\x00"]
)
def test_a_damaged_file_is_set_aside_and_the_defaults_hold(tmp_path: Path, content: str) -> None:
    path = tmp_path / "tui.json"
    path.write_text(content)
    assert PreferenceFile(path).now == Preferences()
    assert (tmp_path / "tui.damaged").read_text() == content
    PreferenceFile(path).change(theme="cwtool-light")
    assert PreferenceFile(path).now.theme == "cwtool-light"


def test_what_a_newer_version_wrote_is_read_as_far_as_it_is_known(tmp_path: Path) -> None:
    path = tmp_path / "tui.json"
    path.write_text('{"theme": "nord", "colour_of_the_year": "teal"}')
    assert PreferenceFile(path).now == Preferences(theme="nord")


def test_a_folder_that_cannot_be_written_holds_until_the_end(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    preferences = PreferenceFile(tmp_path / "file" / "tui.json")
    preferences.change(theme="nord")
    assert preferences.now.theme == "nord"
