"""A daemon is killed, and its worker goes on: the next daemon hears all, and nothing is computed twice."""

from __future__ import annotations

from tests.conftest import SHORT, CommandLine

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


def _said(event: dict[str, object]) -> object:
    return {name: value for name, value in event.items() if name not in ("seq", "time", "seconds")}
