"""How long a job took is how long a worker was at it, whoever died in between and whenever that is heard of."""

from __future__ import annotations

import os
import shutil
import socket
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from cwa_daemon.base.settings import Settings
from cwa_daemon.client import start_daemon
from cwa_daemon.control.jobs import Jobs
from cwa_daemon.control.store import Store
from cwa_daemon.pipe.messages import EventReport, Finished, Report, report_reader
from cwa_daemon.protocol import JobOptions, JobState
from cwa_daemon.worker.outbox import Outbox
from cwa_engine.base.errors import StateNotWritten
from cwa_engine.records.checksums import SUMS
from cwa_engine.spec import RunSpec
from tests.conftest import LONG, SHORT, CommandLine
from tests.daemon.test_jobs import RELEASES, QuietLane

RUN = "20261126-060000-gpt2-k7q2"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "jobs.sqlite")


@pytest.fixture
def jobs(tmp_path: Path, store: Store) -> Jobs:
    return Jobs(store, Settings(home=tmp_path), lambda run_id, event: None, make_lane=QuietLane)  # type: ignore[arg-type]


def submit(jobs: Jobs) -> str:
    spec = RunSpec(model="gpt2").model_dump(mode="json")
    return jobs.submit("run", spec, "cpu", "some-client-key", "cwtool run", {}, JobOptions())


def begin_without_worker(jobs: Jobs, started: float) -> str:
    """A job that ran when the last daemon ended; its last event is of 4 seconds after its start."""
    run_id = submit(jobs)
    jobs.ledger.move(run_id, JobState.RUNNING, at=started)
    jobs.ledger.record(run_id, {"kind": "note", "text": "a word", "level": "info", "time": started + 4})
    return run_id


def test_a_job_that_runs_twice_has_worked_as_long_as_both_attempts_together(jobs: Jobs) -> None:
    run_id = submit(jobs)
    jobs.ledger.move(run_id, JobState.RUNNING, at=100.0)
    view = jobs.view(jobs.find(run_id))
    assert (view.worked_s, view.running_since, view.took_s(130.0)) == (0.0, 100.0, 30.0)
    jobs.ledger.move(run_id, JobState.QUEUED, at=130.0)
    view = jobs.view(jobs.find(run_id))
    assert (view.worked_s, view.running_since, view.took_s(900.0)) == (30.0, None, 30.0)
    jobs.ledger.move(run_id, JobState.RUNNING, at=1000.0)
    jobs.ledger.move(run_id, JobState.DONE, at=1005.5)
    view = jobs.view(jobs.find(run_id))
    assert (view.worked_s, view.running_since, view.finished) == (35.5, None, 1005.5)


def test_time_in_which_neither_daemon_nor_worker_lived_does_not_count(jobs: Jobs) -> None:
    run_id = begin_without_worker(jobs, time.time() - 5000)
    jobs.outcomes.settle("cpu", None)
    job = jobs.find(run_id)
    assert job.state is JobState.QUEUED
    assert job.worked_s == pytest.approx(4)
    assert job.deaths[0]["time"] == pytest.approx((job.started or 0.0) + 4)


def test_a_run_whose_worker_saved_it_while_no_daemon_was_there_ended_when_its_files_were_whole(jobs: Jobs) -> None:
    run_id = begin_without_worker(jobs, time.time() - 5000)
    started = jobs.find(run_id).started or 0.0
    folder = jobs._settings.runs / run_id
    folder.mkdir(parents=True)
    (folder / SUMS).write_text("")
    os.utime(folder / SUMS, (started + 7, started + 7))
    jobs.outcomes.settle("cpu", None)
    job = jobs.find(run_id)
    assert job.state is JobState.DONE
    assert job.finished == pytest.approx(started + 7)
    assert job.worked_s == pytest.approx(7)


def test_what_a_full_disk_did_not_take_is_written_with_the_time_at_which_it_happened(
    jobs: Jobs, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **columns: object) -> None:
        raise StateNotWritten("database or disk is full")

    run_id = submit(jobs)
    with monkeypatch.context() as disk:
        disk.setattr(store, "update_job", full)
        jobs.ledger.move(run_id, JobState.RUNNING, at=100.0)
        jobs.ledger.move(run_id, JobState.FAILED, at=104.0)
    with monkeypatch.context() as disk:
        disk.setattr(store, "append_event", full)
        jobs.ledger.note(run_id, "said while the disk was full")
    said = time.time()
    jobs.tick()
    job = jobs.find(run_id)
    assert (job.started, job.finished, job.worked_s) == (100.0, 104.0, 4.0)
    note = next(event for event in store.events(run_id, 0, 10) if event["kind"] == "note")
    assert note["time"] <= said


def test_a_worker_says_when_things_happened_also_to_a_daemon_that_comes_later() -> None:
    ours, theirs = socket.socketpair()
    outbox = Outbox(theirs)
    outbox.detach()
    before = time.time()
    outbox.send(EventReport(run_id=RUN, event={"kind": "note", "text": "a word", "level": "info"}))
    outbox.send(Finished(run_id=RUN, error=None, ends=False))
    after = time.time()
    later, its = socket.socketpair()
    outbox.attach(its, None)
    heard = [report for report in _reports(later, 3) if isinstance(report, EventReport | Finished)]
    assert [report.time is not None and before <= report.time <= after for report in heard] == [True, True]
    for end in (ours, theirs, later, its):
        end.close()


def _reports(connection: socket.socket, count: int) -> Sequence[Report]:
    reader, found = report_reader(), list[Report]()
    while len(found) < count:
        found += reader.feed(connection.recv(2**16))
    return found


def test_a_run_that_ended_while_its_daemon_was_dead_took_until_its_own_end(own_cwtool: CommandLine) -> None:
    cwtool = own_cwtool
    cwtool("load", "gpt2")
    run_id = cwtool("run", *SHORT, "--control-seeds", "60", "--detach").stdout.strip()
    cwtool.wait_for(run_id, "damage")
    cwtool.kill(cwtool.json("daemon", "status")["pid"])
    folder, deadline = cwtool.settings.runs / run_id, time.monotonic() + 120
    while not folder.exists():
        assert time.monotonic() < deadline, "the worker did not go on"
    saved = time.time()
    start_daemon(cwtool.settings)
    cwtool("logs", "-f", run_id)
    with cwtool.client() as client:
        job = client.job(run_id)
        states = [event for event in client.follow(run_id) if event["kind"] == "state"]
    assert job.finished is not None
    assert job.started is not None
    assert job.finished <= saved + 0.5  # the worker has still to say so
    assert job.worked_s == pytest.approx(job.finished - job.started)
    assert states[-1]["time"] == job.finished


def test_a_job_that_begins_again_after_both_were_killed_has_not_worked_in_between(own_cwtool: CommandLine) -> None:
    cwtool = own_cwtool
    cwtool("load", "gpt2")
    run_id = cwtool("run", *LONG, "--detach").stdout.strip()
    cwtool.wait_for(run_id, "damage")
    with cwtool.client() as client:
        status, began = client.status(), client.job(run_id).started or 0.0
    workers = [worker.pid for worker in status.workers if worker.pid]
    for pid in (status.pid, *workers):
        cwtool.kill(pid)
    killed = time.time()
    while any(map(psutil.pid_exists, (status.pid, *workers))):
        assert time.time() < killed + 60
    start_daemon(cwtool.settings)
    with cwtool.client() as client:
        begun = (event for event in client.follow(run_id) if event.get("state") == "running")
        assert len([next(begun), next(begun)]) == 2
        job = client.job(run_id)
        client.cancel(run_id)
    assert 0 < job.worked_s <= killed - began
    assert (job.running_since or 0.0) > killed


@pytest.mark.parametrize("frozen", RELEASES, ids=lambda path: path.stem)
def test_jobs_of_an_earlier_release_took_from_their_start_to_their_end(tmp_path: Path, frozen: Path) -> None:
    shutil.copy(frozen, tmp_path / "old.sqlite")
    query = "SELECT run_id, coalesce(finished - started, 0) FROM jobs"
    before: dict[str, Any] = dict(sqlite3.connect(frozen).execute(query).fetchall())
    store = Store(tmp_path / "old.sqlite")
    assert {job.run_id: job.worked_s for job in store.jobs(limit=1000)} == pytest.approx(before)
    store.close()
