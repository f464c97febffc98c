"""Tags and notes: who may write them, how they are found, and what outlives what."""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cwa_daemon.admin.reindex import repair
from cwa_daemon.base.settings import Settings
from cwa_daemon.control.database import SCHEMA_VERSION
from cwa_daemon.control.pruning import prune
from cwa_daemon.control.store import Store
from cwa_daemon.protocol import MOST_NOTE, MOST_TAGS, JobQuery, JobState, check_tags, parse_request, with_tags
from cwa_engine.base.errors import InvalidInput, NotFound, Refused
from cwa_engine.spec import RunSpec
from tests.conftest import SHORT, CommandLine, free_address, reached_as_box


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "jobs.sqlite")
    yield store
    store.close()


def add(store: Store, run_id: str, ratio: float | None = None, **spec: Any) -> str:
    store.add_job(
        run_id=run_id, kind="run", state="done", spec=RunSpec(model="gpt2", **spec).model_dump(mode="json"), command="",
        device="cpu", client_key=f"key-of-{run_id}", created=1.0, started=1.0, finished=2.0,
        headline=None if ratio is None else {"metric": "obd", "k": 1, "perturbation": "zero", "ratio": ratio},
    )  # fmt: skip
    store.append_event(run_id, {"kind": "state", "state": "done", "error": None})
    return run_id


def found(store: Store, **query: Any) -> list[str]:
    page = store.page(JobQuery(**query))
    assert store.total(JobQuery(**query)) == len(page)
    return [job.run_id for job in page]


def test_jobs_are_found_by_a_tag_of_theirs_and_by_words_of_tags_and_notes(store: Store) -> None:
    for run_id in ("a", "b", "c"):
        add(store, run_id)
    store.mark("a", ["sweep", "keep"], "")
    store.mark("b", ["sweeping"], "Only the Second half, 50 % of it")
    assert found(store, tag="sweep") == ["a"]
    assert found(store, tag="swee") == found(store, tag="%") == []
    assert found(store, text="sweep") == ["b", "a"]
    assert found(store, text="SECOND half") == ["b"]
    assert store.marks() == {"a": (["sweep", "keep"], ""), "b": (["sweeping"], "Only the Second half, 50 % of it")}


def test_jobs_are_found_by_metric_and_by_the_ratio_of_their_headline(store: Store) -> None:
    add(store, "a", 4.5, metrics=("obd",))
    add(store, "b", 1.01, metrics=("obd", "magnitude"))
    add(store, "c", None, metrics=("magnitude",))
    assert found(store, metric="obd") == ["b", "a"]
    assert found(store, metric="ob") == []
    assert found(store, ratio_above=1.01) == ["a"]
    assert found(store, ratio_above=1.0, metric="magnitude") == ["b"]


@given(
    tags=st.lists(st.sampled_from("abcdef"), unique=True, max_size=6),
    add=st.lists(st.sampled_from("abcdef")),
    remove=st.lists(st.sampled_from("abcdef")),
)
def test_tags_are_those_there_were_and_those_added_without_those_removed(
    tags: list[str], add: list[str], remove: list[str]
) -> None:
    assert set(with_tags(tags, add, remove)) == (set(tags) | set(add)) - set(remove)
    assert len(with_tags(tags, add, remove)) == len(set(with_tags(tags, add, remove)))


@pytest.mark.parametrize("tag", ["", "a b", "a\tb", "a,b", "-a", "+a", "x" * 51, "a\x1b", "a\u202eb", "a'b", "\ud800"])
def test_what_cannot_be_a_tag_is_refused(tag: str) -> None:
    with pytest.raises(InvalidInput, match="cannot be a tag"):
        parse_request({"op": "mark", "id": 1, "run_id": "a", "add": [tag]})
    with pytest.raises(InvalidInput):
        parse_request({"op": "jobs", "id": 1, "tag": tag})


@pytest.mark.parametrize("tag", ["a", "ünï", "日本", "llama-sweep", "v1.2_x/y:z", "x" * 50])
def test_a_tag_is_any_word(tag: str) -> None:
    check_tags([tag])


def test_tags_and_notes_are_bounded() -> None:
    with pytest.raises(InvalidInput, match=f"{MOST_TAGS} is the most|{MOST_TAGS + 1} tags"):
        with_tags([str(n) for n in range(MOST_TAGS)], ["one-more"], [])
    parse_request({"op": "mark", "id": 1, "run_id": "a", "note": "x" * MOST_NOTE})
    for note in ("x" * (MOST_NOTE + 1), "a\0b"):
        with pytest.raises(InvalidInput):
            parse_request({"op": "mark", "id": 1, "run_id": "a", "note": note})


def test_a_run_that_is_tagged_keep_is_never_pruned_and_others_lose_what_was_written_to_them(
    store: Store, tmp_path: Path
) -> None:
    for run_id in ("kept", "pruned"):
        (tmp_path / "runs" / add(store, run_id)).mkdir(parents=True)
    store.mark("kept", ["keep"], "")
    store.mark("pruned", ["keeper"], "a note")
    told = prune(store, tmp_path / "runs", 0, with_results=True, dry_run=False)
    assert told.runs == ["pruned"]
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["kept"]
    assert store.marks() == {"kept": (["keep"], "")}


def test_tags_and_notes_outlive_the_repair_of_a_damaged_database(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "state")
    settings.home.mkdir(mode=0o700)
    store = Store(settings.database)
    for number in range(300):
        store.mark(add(store, f"run{number}"), ["sweep", f"n{number}"], f"note {number}")
    store.close()
    with contextlib.closing(sqlite3.connect(settings.database)) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        page, pages = (int(database.execute(f"PRAGMA {name}").fetchone()[0]) for name in ("page_size", "page_count"))
    with settings.database.open("r+b") as file:
        file.seek(page * (pages // 2))
        file.write(b"\xff" * page)
    said = repair(settings)
    assert any("set aside" in sentence for sentence in said)
    store = Store(settings.database)
    marks = store.marks()
    assert len(marks) > 200 and marks["run0"] == (["sweep", "n0"], "note 0")
    assert len(marks) == store.count(JobState.DONE)
    store.close()


def test_a_database_of_the_schema_before_has_no_tags_and_takes_some(tmp_path: Path) -> None:
    frozen = Path(__file__).parent / "databases" / "schema-4.sqlite"
    shutil.copy(frozen, tmp_path / "jobs.sqlite")
    store = Store(tmp_path / "jobs.sqlite")
    assert SCHEMA_VERSION == 5
    assert all((job.tags, job.note) == ([], "") for job in store.jobs())
    run_id = store.jobs()[0].run_id
    store.mark(run_id, ["x"], "y")
    assert found(store, text="x") and found(store, tag="x") == [run_id]
    assert [job.run_id for job in store.page(JobQuery(text="gpt3"))] == ["20261125-090100-gpt2-bbbb"]
    store.close()


def test_a_client_marks_runs_and_an_older_one_hears_nothing_of_it(module_cwtool: CommandLine) -> None:
    run_id = module_cwtool.json("run", *SHORT)["run_id"]
    with module_cwtool.client() as client:
        marks = client.mark(run_id[-4:], ["sweep", "ünï"], note="seen\n\x1b[31m")
        assert (marks.tags, marks.note) == (["sweep", "ünï"], "seen\n\x1b[31m")
        assert client.mark(run_id, ["keep"], ["sweep"]).tags == ["ünï", "keep"]
        assert client.marks()[run_id].note == "seen\n\x1b[31m"
        job = client.job(run_id)
        assert (job.tags, job.note) == (["ünï", "keep"], "seen\n\x1b[31m")
        older = job.shown(minor=5)
        assert not {"tags", "note"} & older.keys() and {"tags", "note"} <= job.shown(minor=6).keys()
        with pytest.raises(NotFound):
            client.mark("nosuch", ["x"])
        client.mark(run_id, remove=["ünï", "keep"], note="")
        assert client.marks() == {}


def test_viewers_read_tags_and_runners_write_to_their_own_runs(
    own_cwtool: CommandLine, tmp_path: Path, hub: Path
) -> None:
    away = CommandLine(tmp_path / "away", tmp_path, hub)
    away.home.mkdir(mode=0o700)
    away.env["CWTOOL_HOST"] = "box"
    reached_as_box(own_cwtool, away, free_address())
    run_id = own_cwtool.json("run", *SHORT)["run_id"]
    own_cwtool("results", "tag", run_id, "+mine")
    listed = json.loads(away("results", "list", "--tag", "mine", "--json").stdout)
    assert [run["tags"] for run in listed["results"]] == [["mine"]]
    away("results", "tag", run_id, "+yours", rc=4)
    assert own_cwtool.json("results", "tag", run_id)["tags"] == ["mine"]


def test_who_may_do_nothing_is_refused() -> None:
    from cwa_daemon import protocol
    from cwa_daemon.base.roles import Role
    from cwa_daemon.control.permissions import Caller, check_role

    viewer = Caller(b"", "ann", Role.VIEWER)
    check_role(viewer, protocol.ListMarks(id=1))
    with pytest.raises(Refused, match="needs runner"):
        check_role(viewer, protocol.Mark(id=1, run_id="a"))
