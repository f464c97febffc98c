"""Runs that other programs put into the folder of runs are listed once, when they are whole, and never the daemon's own."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path

import pytest

from cwa_daemon.admin.reindex import reindex
from cwa_daemon.control import found_runs
from cwa_daemon.control.found_runs import FoundRuns
from cwa_daemon.control.store import Store
from cwa_daemon.protocol import JobState
from cwa_engine.records.checksums import fingerprint_of

RUN = Path(__file__).parents[1] / "engine/runs/controls_by_elimination"


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    folder = tmp_path / "runs"
    folder.mkdir()
    return folder


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "jobs.sqlite")


async def test_a_run_is_listed_once_and_as_the_latest(store: Store, runs: Path) -> None:
    found = FoundRuns(store, runs)
    for number in range(2):
        shutil.copytree(RUN, runs / f"20200101-00000{number}-run-aaaa")
        await found.look_soon()
        await found.look_soon()
    latest, first = store.jobs()
    assert [latest.run_id, first.run_id] == ["20200101-000001-run-aaaa", "20200101-000000-run-aaaa"]
    assert latest.state is JobState.DONE and latest.headline and latest.model == latest.spec["model"]
    (note, end) = store.events(latest.run_id, 0, 10)
    assert note["text"] == found_runs.FOUND and end["state"] == "done"
    assert store.fingerprint(latest.run_id) == fingerprint_of(runs / latest.run_id)


async def test_a_folder_that_is_being_copied_is_listed_when_it_is_whole(store: Store, runs: Path) -> None:
    found, folder = FoundRuns(store, runs), runs / "20200101-000000-run-aaaa"
    for name in ("manifest.json", "summary.json", "SHA256SUMS", "log.txt"):
        folder.mkdir(exist_ok=True)
        shutil.copy(RUN / name, folder / name)
    await found.look()
    assert store.jobs() == []
    for path in RUN.iterdir():
        shutil.copy(path, folder / path.name)
    await found.look()
    assert [job.run_id for job in store.jobs()] == [folder.name]


async def test_a_link_to_a_run_in_a_store_is_listed_when_the_store_is_there(
    store: Store, runs: Path, tmp_path: Path
) -> None:
    kept, found = tmp_path / "store" / "20200101-000000-run-aaaa", FoundRuns(store, runs)
    (runs / kept.name).symlink_to(kept)
    await found.look()
    assert store.jobs() == []
    shutil.copytree(RUN, kept)
    (runs / "another").mkdir()  # the folder of runs changes, and is looked at again
    await found.look()
    assert [job.run_id for job in store.jobs()] == [kept.name]
    assert store.fingerprint(kept.name) == fingerprint_of(kept)


async def test_what_is_no_run_is_left_alone(store: Store, runs: Path) -> None:
    shutil.copytree(RUN, runs / ".half-written")
    (runs / "a-file").write_text("")
    (runs / "empty").mkdir()
    other = shutil.copytree(RUN, runs / "other")
    (other / "manifest.json").write_text("{}")
    found = FoundRuns(store, runs)
    await found.look()
    await found.look()
    assert store.jobs() == []


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("summary.json", {"timings": None}),
        ("summary.json", {"timings": {"load": "soon"}}),
        ("summary.json", {"timings": {"load": float("nan")}}),
        ("summary.json", {"timings": {"load": 10**400}}),
        ("manifest.json", {"started": None}),
        ("manifest.json", {"started": float("inf")}),
        ("manifest.json", {"model": "gpt2"}),
        ("manifest.json", {"command": None}),
        ("summary.json", "[" * 100_000),
    ],
)
async def test_a_folder_with_any_content_keeps_no_other_run_from_the_list(
    store: Store, runs: Path, name: str, wrong: dict[str, object] | str
) -> None:
    path = shutil.copytree(RUN, runs / "20200101-000000-run-aaaa") / name
    path.write_text(wrong if isinstance(wrong, str) else json.dumps(json.loads(path.read_text()) | wrong))
    shutil.copytree(RUN, runs / "20200101-000001-run-bbbb")
    await FoundRuns(store, runs).look_soon()
    assert [job.run_id for job in store.jobs()] == ["20200101-000001-run-bbbb"]
    assert reindex(store, runs) == (0, ["20200101-000000-run-aaaa"])


async def test_a_run_of_the_daemon_is_not_listed_again(store: Store, runs: Path) -> None:
    shutil.copytree(RUN, runs / "mine")
    row = found_runs.row_of(runs / "mine") | {"state": JobState.RUNNING}
    store.add_job(**row)
    await FoundRuns(store, runs).look()
    assert [job.state for job in store.jobs()] == [JobState.RUNNING]


async def test_where_nothing_has_changed_a_look_reads_nothing(
    store: Store, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(found_runs, "SETTLED_NS", 0)
    found = FoundRuns(store, runs)
    shutil.copytree(RUN, runs / "20200101-000000-run-aaaa")
    await found.look()
    monkeypatch.setattr(store, "run_ids", lambda: pytest.fail("it looked"))
    await asyncio.gather(*(found.look_soon() for _ in range(3)))
