"""A daemon is killed, and its worker goes on: the next daemon hears all, and nothing is computed twice."""

from __future__ import annotations

import os
import signal

import psutil

from tests.conftest import LONG, SHORT, CommandLine

MEDIUM = (*SHORT, "--control-seeds", "150", "--no-cache")


def test_a_killed_daemon_ends_no_run_and_the_next_one_hears_all_that_the_worker_said(own_cwtool: CommandLine) -> None:
    cwtool = own_cwtool
    undisturbed = cwtool.json("run", *MEDIUM)
    worker, daemon = cwtool.worker_pid(), cwtool.json("daemon", "status")["pid"]
    run_id = cwtool("run", *MEDIUM, "--detach").stdout.strip()
    cwtool.wait_for(run_id, "damage")
    cwtool.kill(daemon)

    cwtool("logs", "-f", run_id)  # starts another daemon
    job = cwtool.json("jobs", "show", run_id)
    assert (job["state"], job["deaths"]) == ("done", [])
    assert cwtool.json("daemon", "status")["pid"] != daemon and cwtool.worker_pid() == worker
    with cwtool.client() as client:
        events = {name: list(client.follow(name)) for name in (undisturbed["run_id"], run_id)}
    said = [[_said(event) for event in told if event["kind"] not in ("note", "progress")] for told in events.values()]
    assert said[0] == said[1]  # nothing is missing, and nothing is there twice
    found = cwtool.json("results", "show", run_id)
    assert (found["rankings"], found["damage"]) == (undisturbed["rankings"], undisturbed["damage"])
    again = cwtool.json("run", *SHORT)  # the model is still warm
    assert cwtool.json("ps")["models"][0]["jobs_served"] == 3
    assert again["run_id"] != run_id


def test_a_worker_that_was_stopped_wakes_when_its_daemon_dies_and_goes_on_with_the_next(
    own_cwtool: CommandLine,
) -> None:
    cwtool = own_cwtool
    worker, run_id = _killed_in_the_middle(cwtool, MEDIUM, stopped=True)
    cwtool("logs", "-f", run_id)
    job = cwtool.json("jobs", "show", run_id)
    assert (job["state"], job["deaths"]) == ("done", [])
    assert cwtool.worker_pid() == worker


def test_a_run_that_ends_while_there_is_no_daemon_is_done(own_cwtool: CommandLine) -> None:
    cwtool = own_cwtool
    worker, run_id = _killed_in_the_middle(cwtool, MEDIUM)
    # It saves the run, waits a little for another daemon, and ends.
    assert psutil.wait_procs([psutil.Process(worker)], timeout=60)[1] == []
    assert (cwtool.settings.runs / run_id / "manifest.json").is_file()
    cwtool("logs", "-f", run_id)
    job = cwtool.json("jobs", "show", run_id)
    assert (job["state"], job["deaths"]) == ("done", [])
    assert cwtool.json("results", "show", run_id)["damage"]


def test_a_worker_without_a_job_ends_with_its_daemon(own_cwtool: CommandLine) -> None:
    own_cwtool("run", *SHORT)
    worker = psutil.Process(own_cwtool.worker_pid())
    own_cwtool.kill(own_cwtool.json("daemon", "status")["pid"])
    assert psutil.wait_procs([worker], timeout=60)[1] == []


def test_a_run_is_cancelled_though_its_worker_has_not_yet_been_heard_by_the_new_daemon(own_cwtool: CommandLine) -> None:
    cwtool = own_cwtool
    worker, run_id = _killed_in_the_middle(cwtool, LONG)
    os.kill(worker, signal.SIGSTOP)
    cwtool("daemon", "start")
    with cwtool.client() as client:
        client.cancel(run_id)  # the command of that name would wait for the end
    os.kill(worker, signal.SIGCONT)
    cwtool("logs", "-f", run_id)
    assert cwtool.json("jobs", "show", run_id)["state"] == "cancelled"
    assert cwtool.worker_pid() == worker


def test_stop_ends_a_worker_whose_daemon_was_killed_and_the_next_daemon_runs_its_job_again(
    own_cwtool: CommandLine,
) -> None:
    cwtool = own_cwtool
    worker, run_id = _killed_in_the_middle(cwtool, LONG)
    cwtool("daemon", "stop")
    assert not psutil.pid_exists(worker)
    assert list(cwtool.settings.workers.iterdir()) == []
    cwtool("daemon", "start")
    cwtool.wait_for(run_id, "state", state="queued")
    cwtool("jobs", "cancel", run_id)
    assert [death["cause"] for death in cwtool.json("jobs", "show", run_id)["deaths"]] == ["others"]


def _killed_in_the_middle(cwtool: CommandLine, options: tuple[str, ...], stopped: bool = False) -> tuple[int, str]:
    """(the worker, the run it is at): its daemon was killed, after the worker was `stopped` if asked."""
    cwtool("run", *SHORT)
    worker, daemon = cwtool.worker_pid(), psutil.Process(cwtool.json("daemon", "status")["pid"])
    run_id = cwtool("run", *options, "--detach").stdout.strip()
    cwtool.wait_for(run_id, "damage")
    if stopped:
        os.kill(worker, signal.SIGSTOP)
    daemon.kill()
    psutil.wait_procs([daemon])
    return worker, run_id


def _said(event: dict[str, object]) -> object:
    """What an event says, whenever it was and whatever the run is called."""
    return {name: value for name, value in event.items() if name not in ("seq", "time", "seconds", "fingerprint")}
