"""Jobs found by state, kind, model, words and age, in any order, page by page."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cwa_daemon.client import listing
from cwa_daemon.control.job import Job
from cwa_daemon.control.store import Store
from cwa_daemon.protocol import KINDS, SORTS, STATES, JobQuery, JobView, parse_request
from cwa_engine.base.errors import InvalidInput
from cwa_engine.spec import RunSpec
from tests.conftest import SHORT, CommandLine
from tests.daemon.test_service import Raw, raw

__all__ = ["raw"]

MODELS = ("gpt2", "EleutherAI/pythia-70m", "meta-llama/Llama-2-7b-hf")
RUN = "20261126-060000-gpt2-k7q2"
METRICS = (("obd",), ("grad_x_weight", "magnitude"))


def add(store: Store, number: int, state: str) -> None:
    """A job like none of the others."""
    model = MODELS[number % 3]
    started = None if state in ("queued", "paused") else 1000.0 + number * 7 % 11
    store.add_job(
        run_id=f"20261126-06{number:04d}-{model.rpartition('/')[2].lower()}-k{number}",
        kind=KINDS[number % len(KINDS)],
        state=state,
        spec=RunSpec(model=model, metrics=METRICS[number % 2]).model_dump(mode="json"),
        command="",
        device="cpu",
        client_key=str(number),
        created=1000.0 + number // 2,
        started=started,
        finished=None if started is None or state == "running" else 1020.0 - number,
        worked_s=float(number * 5 % 9),
        error={"code": "x", "message": f"File {number} is Missing", "hint": ""} if state == "failed" else None,
        headline={"metric": "obd", "k": 1, "perturbation": "zero", "ratio": 1.5 ** (number * 3 % 5)}
        if state == "done"
        else None,
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    store = Store(tmp_path_factory.mktemp("listing") / "jobs.sqlite")
    for number, state in enumerate(itertools.chain(STATES, STATES, ["done"] * 4)):
        add(store, number, state)
    yield store
    store.close()


def found_slowly(jobs: list[Job], query: JobQuery) -> list[Job]:
    """What a query finds, job by job; `jobs` are all, the latest first."""

    def words(job: Job) -> str:
        parts = [job.run_id, job.model, *job.spec["metrics"], job.state, job.error["message"] if job.error else ""]
        return " ".join(parts).lower()

    return [
        job
        for job in jobs
        if (not query.states or job.state in query.states)
        and (not query.kinds or job.kind in query.kinds)
        and (query.model or "").lower() in job.model.lower()
        and job.created >= (query.since or 0.0)
        and all(word in words(job) for word in (query.text or "").lower().split())
    ]


def key(job: Job, sort: str, now: float) -> Any:
    """What a job is sorted by; None where it has nothing."""
    match sort:
        case "created":
            return job.number
        case "finished":
            return job.finished
        case "model":
            return job.model.lower()
        case "state":
            return STATES.index(job.state)
        case "took":
            running = now - job.started if job.state == "running" and job.started else 0.0
            return None if job.started is None else job.worked_s + running
        case "ratio":
            return job.headline["ratio"] if job.headline else None


queries = st.builds(
    JobQuery,
    limit=st.integers(1, 20),
    offset=st.integers(0, 10),
    states=st.lists(st.sampled_from(STATES), max_size=2, unique=True).map(tuple),
    kinds=st.lists(st.sampled_from(KINDS), max_size=2, unique=True).map(tuple),
    model=st.sampled_from([None, None, "PYTHIA", "llama", "%"]),
    text=st.sampled_from([None, None, "", "gpt2", "failed missing", "OBD done", "k1", "%", "'"]),
    since=st.sampled_from([None, None, 1003.0, 2000.0]),
    sort=st.sampled_from(SORTS),
    descending=st.booleans(),
)


@given(queries)
def test_a_query_finds_what_looking_at_every_job_finds_in_the_order_of_its_key(store: Store, query: JobQuery) -> None:
    found = found_slowly(store.jobs(limit=1000), query)
    assert store.total(query) == len(found)
    keyed = [(key(job, query.sort, time.time()), job) for job in found]
    known = [pair for pair in keyed if pair[0] is not None]  # the sort is stable: of equal ones the latest come first
    known.sort(key=lambda pair: pair[0], reverse=False)
    if query.descending:
        known = [pair for _, group in _groups(known) for pair in group]
    expected = [job for _, job in known] + [job for value, job in keyed if value is None]
    page = [job.run_id for job in store.page(query)]
    assert page == [job.run_id for job in expected[query.offset : query.offset + query.limit]]


def _groups(pairs: list[tuple[Any, Job]]) -> list[tuple[Any, list[tuple[Any, Job]]]]:
    """Those with the same key together, the largest key first."""
    return [(value, list(group)) for value, group in itertools.groupby(pairs, key=lambda pair: pair[0])][::-1]


@pytest.mark.parametrize(
    ("field", "message", "hint"),
    [
        (
            {"states": ["done", "failedd"]},
            "no job is ever 'failedd'",
            "did you mean 'failed'",
        ),
        ({"state": "finished"}, "no job is ever 'finished'", "a job is queued, paused, running, done"),
        ({"kinds": ["plans"]}, "there are no jobs of kind 'plans'", "did you mean 'plan'?"),
        ({"sort": "rato"}, "jobs cannot be sorted by 'rato'", "did you mean 'ratio'?"),
    ],
)
def test_what_no_job_can_be_is_refused_with_what_was_meant(field: dict[str, Any], message: str, hint: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        parse_request({"op": "jobs", "id": 1, **field})
    assert raised.value.message == message
    assert hint in raised.value.hint


def test_clients_of_before_find_jobs_by_state_and_kind_and_hear_no_word_that_they_do_not_know(
    raw: Raw, cwtool: CommandLine
) -> None:
    run_id = cwtool.json("run", *SHORT)["run_id"]
    raw.hello(minor=4)
    listed = raw.ask(id=1, op="jobs", state="done", kind="run", limit=1)["jobs"]
    assert [job["run_id"] for job in listed] == [run_id]
    assert not {"worked_s", "running_since", "headline", "waits_for"} & listed[0].keys()
    assert "jobs_version" not in raw.ask(id=2, op="status")["status"]


async def test_an_older_daemon_is_asked_in_its_words_and_its_jobs_are_counted() -> None:
    known = {"limit", "offset", "state", "kind", "model"}
    jobs = [
        {
            "run_id": f"r{n}", "kind": "run", "state": "done", "model": "gpt2", "spec": {}, "device": "cpu", "created": 0.0
        }
        for n in range(1500)
    ]  # fmt: skip

    async def ask(op: str, **fields: Any) -> dict[str, Any]:
        assert op == "jobs"
        assert fields.keys() <= known
        assert fields["state"] == "done"
        offset = fields.get("offset", 0)
        return {"jobs": jobs[offset : offset + fields.get("limit", 50)]}

    page = await listing.page(JobQuery(states=("done",)), ask)
    assert (len(page.jobs), page.total) == (50, 1500)


def test_a_job_of_an_older_daemon_took_from_its_start_to_its_end() -> None:
    told: dict[str, Any] = {
        "run_id": RUN, "kind": "run", "model": "gpt2", "spec": {}, "device": "cpu", "created": 100.0, "started": 110.0
    }  # fmt: skip
    assert JobView(**told, state="done", finished=140.0).took_s(500.0) == 30.0
    assert JobView(**told, state="running").took_s(500.0) == 390.0
    assert JobView(**told, state="running", running_since=490.0, worked_s=5.0).took_s(500.0) == 15.0
    assert JobView(**{**told, "started": None}, state="queued").took_s(500.0) == 0.0


def test_a_damaged_row_does_not_keep_the_others_from_being_counted_and_found(tmp_path: Path) -> None:
    store = Store(tmp_path / "jobs.sqlite")
    for number in range(3):
        add(store, number, "done")
    (damaged,) = [job.run_id for job in store.page(JobQuery(text="k1"))]
    store._db.execute("UPDATE jobs SET spec = 'no json', error = 'nor this' WHERE run_id = ?", [damaged])
    assert store.total(JobQuery(text="done")) == 3
    assert [job.model for job in store.page(JobQuery(text="gpt2"))] == ["gpt2"]
    store.close()
