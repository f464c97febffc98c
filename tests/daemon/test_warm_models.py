"""Nobody's mistake costs the warm models: plans, cancels, devices that are not there, reads that never end."""

from __future__ import annotations

import contextlib
import os
import signal
import time

import psutil
import pytest

from cwa_engine.spec import RunSpec
from tests.conftest import LONG, SHORT, CommandLine


def worker_of(cwtool: CommandLine, lane: str) -> int | None:
    """Process id of a lane's worker, None where it has none."""
    workers = {worker["device"]: worker["pid"] for worker in cwtool.json("daemon", "status")["workers"]}
    return workers.get(lane)


def test_a_plan_is_made_beside_a_run_and_one_that_hangs_is_cancelled_before_its_worker_ends(
    own_cwtool: CommandLine,
) -> None:
    cwtool = own_cwtool
    cwtool.env["CWTOOL_CANCEL_GRACE_S"] = "200"  # before the worker is killed
    run_id = cwtool("run", *LONG, "--detach").stdout.strip()
    cwtool.wait_for(run_id, "damage")
    computing = worker_of(cwtool, "cpu")
    assert cwtool.json("plan", "--model", "gpt2", "--eval-limit", "4")["rows"]
    assert cwtool.json("jobs", "show", run_id)["state"] == "running"

    planning = worker_of(cwtool, "plans")
    assert planning not in (None, computing)
    os.kill(planning, signal.SIGSTOP)
    with cwtool.client() as client:
        plan = client.plan(RunSpec(model="gpt2", eval_limit=4))
        client.cancel(plan)
        assert list(client.follow(plan))[-1]["state"] == "cancelled"
    assert psutil.Process(planning).status() == psutil.STATUS_STOPPED
    cwtool("jobs", "cancel", run_id)
    assert "gpt2 is warm" in cwtool("run", *SHORT).stderr
    assert worker_of(cwtool, "cpu") == computing


def test_a_pinned_model_is_loaded_again_after_somebody_killed_its_worker_and_it_says_who(
    own_cwtool: CommandLine,
) -> None:
    cwtool = own_cwtool
    cwtool("load", "gpt2", "--pin", "--dtype", "bfloat16")
    cwtool.kill(cwtool.worker_pid())
    with cwtool.client() as client:
        deadline = time.monotonic() + 60
        while len(loads := client.jobs(kind="load")) < 2:
            assert time.monotonic() < deadline, "the model was not loaded again"
        notes = [event["text"] for event in client.follow(loads[0].run_id) if event["kind"] == "note"]
    assert any("killed (SIGKILL) by another process" in note and "lost with it: gpt2" in note for note in notes), notes
    (warm,) = cwtool.json("ps")["models"]
    assert (warm["name"], warm["dtype"], warm["pinned"]) == ("gpt2", "bfloat16", True)


@pytest.mark.parametrize("device", ["cuda:63", "mps"])
def test_a_device_that_is_not_there_is_named_and_leaves_no_process(cwtool: CommandLine, device: str) -> None:
    said = cwtool("run", *SHORT, "--device", device, rc=2).stderr
    assert f"this machine has no device '{device}'" in said
    assert worker_of(cwtool, device) is None
    planned = cwtool.json("plan", "--model", "gpt2", "--eval-limit", "4", "--device", device)
    assert (planned["free_bytes"], planned["command"]) == (None, None)
    assert all(row["weights_bytes"] and row["fits"] is None for row in planned["rows"])


def test_a_run_that_waits_for_a_read_without_end_is_ended_and_says_at_which_stage(own_cwtool: CommandLine) -> None:
    cwtool = own_cwtool
    cwtool.env["CWTOOL_STAGE_IDLE_S"] = "2"
    before = cwtool.json("run", *SHORT)
    for scores in list((cwtool.home / "cache").glob("*.json")):
        scores.unlink()
        os.mkfifo(scores)  # a network drive that does not answer looks the same
    said = " ".join(cwtool("run", *SHORT, rc=1).stderr.split())
    assert "it has neither computed nor said anything for" in said and "last in stage 'baseline'" in said
    assert "CWTOOL_STAGE_IDLE_S" in said
    assert cwtool.json("run", *SHORT, "--no-cache")["damage"] == before["damage"]


def test_a_worker_that_has_nothing_to_do_ends_and_another_takes_its_place(own_cwtool: CommandLine) -> None:
    cwtool = own_cwtool
    cwtool.env["CWTOOL_WORKER_IDLE_S"] = "0.5"
    cwtool("run", *SHORT, "--keep-alive", "0")
    pid = worker_of(cwtool, "cpu")
    if pid:
        with contextlib.suppress(psutil.NoSuchProcess):  # it may have ended by now
            assert psutil.wait_procs([psutil.Process(pid)], timeout=20)[1] == []
    cwtool("run", *SHORT)
    assert worker_of(cwtool, "cpu") not in (None, pid)
