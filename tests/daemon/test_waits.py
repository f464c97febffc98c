"""What a job waits for is said at once, in the list of jobs and in its first events."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from cwa_daemon.client import Client
from cwa_daemon.protocol import JobOptions, JobView
from cwa_engine.spec import RunSpec
from tests.conftest import CommandLine

SPEC = RunSpec(model="gpt2", topk=(5,))
LONG = RunSpec(model="gpt2", topk=(5,), control_seeds=2000)


@pytest.fixture(autouse=True)
def shell(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clients are in this process: they find the models as a shell does."""
    monkeypatch.setenv("HF_HOME", str(hub))


@contextlib.contextmanager
def long_run(client: Client) -> Iterator[JobView]:
    """A run that measures damage, and is cancelled in the end with all others."""
    run_id = client.submit(LONG)
    next(event for event in client.follow(run_id) if event["kind"] == "progress" and event["stage"] == "perturb")
    try:
        yield client.job(run_id)
    finally:
        for job in client.jobs():
            if not job.ended:
                client.cancel(job.run_id)
                list(client.follow(job.run_id))


def first_notes(client: Client, run_id: str) -> list[str]:
    """What a job says before it begins: those that wait are followed until they are cancelled, or begin."""
    return [event["text"] for event in client.follow(run_id) if event["kind"] == "note"]


def test_jobs_behind_a_run_say_which_run_that_is_and_how_far_it_is(cwtool: CommandLine) -> None:
    with cwtool.client() as client, long_run(client) as running:
        assert running.waits_for == ""
        short = running.run_id[-4:]
        load = client.load(RunSpec(model="EleutherAI/pythia-70m"))
        second = client.submit(SPEC)
        after = client.submit(SPEC, options=JobOptions(after=running.run_id))
        assert client.job(load).waits_for.startswith(f"{short} runs on cpu (perturb ")
        assert client.job(second).waits_for.endswith(", and 1 more is due before it")
        assert client.job(after).waits_for == f"{short} to be done"
        assert [job.waits_for != "" for job in client.jobs(limit=4)] == [True, True, True, False]
        client.cancel(load)
        assert first_notes(client, load)[0].startswith(f"waiting: {short} runs on cpu (perturb ")
        assert client.job(load).waits_for == ""


def test_a_plan_is_made_while_a_run_computes_and_says_that_its_worker_is_starting(own_cwtool: CommandLine) -> None:
    with own_cwtool.client() as client, long_run(client) as running:
        plan = client.plan(SPEC)
        events = client.follow(plan)
        first = [next(events) for _ in range(3)]
        assert [event.get("state") or event.get("text") for event in first] == [
            "queued", "running", "starting a worker for plans"
        ]  # fmt: skip
        assert client.job(plan).waits_for == "a worker that is starting"
        assert next(event for event in events if event["kind"] == "stage_started")["stage"] == "plan"
        assert client.job(plan).waits_for == ""
        assert list(events)[-1]["state"] == "done"
        assert client.job(running.run_id).state == "running"
        again = client.plan(SPEC)  # its worker is there already
        assert list(client.follow(again))[-1]["state"] == "done"
        assert client.job(running.run_id).state == "running"


def test_a_model_that_does_not_fit_waits_for_memory_and_says_how_much(own_cwtool: CommandLine) -> None:
    own_cwtool.env["CWTOOL_MEMORY_BUDGET_GB"] = "0.0001"
    own_cwtool("daemon", "start")
    with own_cwtool.client() as client:
        load = client.load(SPEC, options=JobOptions(wait_for_memory=True))
        next(event for event in client.follow(load) if event["kind"] == "state" and event["state"] == "running")
        follower = client.follow(load)
        while next(follower).get("text", "").startswith("waiting for memory") is False:
            pass
        assert next(follower)["state"] == "queued"
        assert client.job(load).waits_for.startswith("memory: ")
        client.cancel(load)


def test_latest_is_the_latest_run_whatever_was_planned_or_loaded_since(cwtool: CommandLine) -> None:
    with cwtool.client() as client:
        run_id = client.submit(RunSpec(model="gpt2", topk=(3,), eval_limit=4, control_seeds=1))
        list(client.follow(run_id))
        for job in (client.load(SPEC), client.plan(SPEC)):
            list(client.follow(job))
        assert client.job("latest").run_id == run_id
        assert list(client.follow("latest"))[-1]["state"] == "done"
        again = client.retry("latest")
        list(client.follow(again))
        assert (client.job(again).kind, client.job(again).retry_of) == ("run", run_id)
