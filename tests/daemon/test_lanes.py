"""Several CPU lanes in one daemon, each with a worker of its own: real processes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import transformers

from cwa_daemon.client import stop_daemon
from cwa_engine.models.loading import load_model
from cwa_engine.spec import RunSpec
from tests.conftest import CommandLine
from tests.models import VOCABULARY, tiny_tokenizer

LANES = ("cpu:0", "cpu:1")
QUICK = ("--topk", "5", "--eval-limit", "4", "--control-seeds", "1")
SLOW = ("--topk", "5", "--control-seeds", "2000", "--no-cache")
BUDGET_GB = 0.016  # of both lanes together: 8 MB each
WIDE_BYTES = 12e6


@pytest.fixture(scope="module")
def lanes(hub: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandLine]:
    """A daemon with two CPU lanes."""
    cwtool = CommandLine(tmp_path_factory.mktemp("state"), tmp_path_factory.mktemp("work"), hub)
    cwtool.env |= {"CWTOOL_CPU_LANES": "2", "CWTOOL_MEMORY_BUDGET_GB": str(BUDGET_GB)}
    cwtool("daemon", "start")
    yield cwtool
    stop_daemon(cwtool.settings, force=True)


@pytest.fixture(autouse=True)
def nothing_runs_or_is_warm_afterwards(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "lanes" in request.fixturenames:
        with request.getfixturevalue("lanes").client() as client:
            unfinished = [job.run_id for job in client.jobs() if not job.ended]
            for run_id in unfinished:
                client.cancel(run_id)
            for run_id in unfinished:
                list(client.follow(run_id))
            for name in {model.name for model in client.status().models}:
                client.unload(name)


def detached(cwtool: CommandLine, model: str, *options: str) -> str:
    return cwtool("run", "--model", model, *options, "--detach").stdout.strip()


def device_of(cwtool: CommandLine, run_id: str) -> str:
    return str(cwtool.json("jobs", "show", run_id)["device"])


def notes_of(cwtool: CommandLine, run_id: str) -> list[str]:
    with cwtool.client() as client:
        return [event["text"] for event in client.follow(run_id) if event["kind"] == "note"]


def workers(cwtool: CommandLine) -> dict[str, dict[str, Any]]:
    return {worker["device"]: worker for worker in cwtool.json("daemon", "status")["workers"]}


def until(what: str, seen: Callable[[], Any], timeout_s: float = 60.0) -> Any:
    """What `seen` gives once it is true of a daemon that tells of it in no event."""
    deadline = time.monotonic() + timeout_s
    while not (found := seen()):
        assert time.monotonic() < deadline, what
        time.sleep(0.05)
    return found


def test_two_runs_compute_at_once_each_on_a_lane_and_a_third_says_what_both_are_busy_with(lanes: CommandLine) -> None:
    first, second = detached(lanes, "gpt2", *SLOW), detached(lanes, "EleutherAI/pythia-70m", *SLOW)
    for run_id in (first, second):
        lanes.wait_for(run_id, "damage")
    assert {device_of(lanes, first), device_of(lanes, second)} == set(LANES)
    busy = workers(lanes)
    assert {busy[lane]["run_id"] for lane in LANES} == {first, second}
    assert len({busy[lane]["pid"] for lane in LANES}) == 2

    third = detached(lanes, "facebook/opt-350m", *QUICK)
    job = lanes.json("jobs", "show", third)
    assert (job["state"], job["device"]) == ("queued", "auto")
    assert "runs on cpu:0" in job["waits_for"] and "runs on cpu:1" in job["waits_for"]
    said = lanes("unload", "gpt2", rc=2).stderr
    assert f"is busy with {first}" in said

    freed = device_of(lanes, first)
    lanes("jobs", "cancel", first)
    assert f"placed on {freed}: it is free, and the model is warm on none" in notes_of(lanes, third)
    assert device_of(lanes, third) == freed
    assert lanes.json("jobs", "show", second)["state"] == "running"


def test_a_run_goes_where_its_model_is_warm_and_to_the_lane_that_was_asked_for(lanes: CommandLine) -> None:
    lanes("run", "--model", "gpt2", *QUICK, "--device", "cpu:1")
    for device in ("auto", "cpu"):
        run_id = lanes.json("run", "--model", "gpt2", *QUICK, "--device", device)["run_id"]
        assert "placed on cpu:1: its model is warm there" in notes_of(lanes, run_id)
    lanes("load", "gpt2", "--device", "cpu:0")
    warm = {(model["name"], model["device"]) for model in lanes.json("ps")["models"]}
    assert warm >= {("gpt2", "cpu:0"), ("gpt2", "cpu:1")}
    assert "cpu:1" in lanes("ps").stdout
    assert lanes("unload", "gpt2").stdout.count("gpt2") >= 1
    assert not [model for model in lanes.json("ps")["models"] if model["name"] == "gpt2"]
    assert (
        "this daemon has no device 'cpu:2'" in lanes("run", "--model", "gpt2", *QUICK, "--device", "cpu:2", rc=2).stderr
    )


def test_a_run_gives_the_same_bytes_on_every_lane(lanes: CommandLine) -> None:
    sums = []
    for lane in LANES:
        run_id = lanes.json("run", "--model", "gpt2", *QUICK, "--no-cache", "--device", lane)["run_id"]
        folder = lanes.settings.runs / run_id
        lines = (folder / "SHA256SUMS").read_text().splitlines()
        sums.append({line for line in lines if line.endswith(".csv")})
    assert sums[0] == sums[1] and sums[0]


def test_a_model_that_fits_on_no_lane_is_tried_on_each_and_a_lanes_budget_is_its_share(
    lanes: CommandLine, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_layer=2, n_embd=352, n_head=2, n_positions=512, bos_token_id=0, eos_token_id=0
    )
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "wide")
    tiny_tokenizer().save_pretrained(tmp_path / "wide")
    size = load_model(str(tmp_path / "wide")).size_bytes
    assert BUDGET_GB * 1e9 / 2 < size < BUDGET_GB * 1e9  # it would fit if one lane had all

    run_id = detached(lanes, str(tmp_path / "wide"), *QUICK)
    notes = notes_of(lanes, run_id)
    error = lanes.json("jobs", "show", run_id)["error"]
    assert error["code"] == "does_not_fit"
    assert "the budget is 0.01 GB" in error["message"]
    assert error["message"].endswith("it was tried on cpu:0 and cpu:1")
    assert len([note for note in notes if "so another lane tries it" in note]) == 1
    alone = lanes("run", "--model", str(tmp_path / "wide"), *QUICK, "--device", "cpu:0", rc=7).stderr
    assert "does not fit" in alone and "tried on" not in alone


def test_a_plan_is_of_the_lane_with_most_room_and_a_look_at_a_weight_is_taken_where_the_model_is(
    lanes: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", lanes.env["HF_HOME"])
    lanes("load", "gpt2", "--pin", "--device", "cpu:0")
    planned = lanes.json("plan", "--model", "EleutherAI/pythia-70m", "--eval-limit", "4")
    assert planned["device"] in LANES and planned["free_bytes"] < psutil.virtual_memory().total / 2
    assert {row["gradients"] for row in planned["rows"]} == {"resident", "sweep"}  # it is a CPU: no offload,
    assert all(row["total_bytes"] > 200e6 for row in planned["rows"])  # and the libraries count
    with lanes.client() as client:
        run_id = client.inspect(RunSpec(model="gpt2"), "transformer.h.0.mlp.c_proj.weight[0,0]")
        assert list(client.follow(run_id))[-1]["state"] == "done", client.job(run_id).error
    assert "placed on cpu:0: its model is warm there" in notes_of(lanes, run_id)


def test_a_pinned_model_that_dies_with_its_worker_comes_back_to_its_lane(lanes: CommandLine) -> None:
    lanes("load", "gpt2", "--pin", "--device", "cpu:1")
    other = workers(lanes)["cpu:0"]["pid"]
    with lanes.client() as client:
        (before,) = client.jobs(kind="load", limit=1)
        lanes.kill(workers(lanes)["cpu:1"]["pid"])
        (again,) = until(
            "the model was not loaded again",
            lambda: [job for job in client.jobs(kind="load", limit=1) if job.run_id != before.run_id],
        )
        list(client.follow(again.run_id))
    (model,) = lanes.json("ps")["models"]
    assert (model["name"], model["device"], model["pinned"]) == ("gpt2", "cpu:1", True)
    assert workers(lanes)["cpu:0"]["pid"] == other


def test_the_runs_of_a_killed_daemon_go_on_in_all_lanes_and_those_of_a_lane_that_is_no_more_come_to_their_end(
    own_cwtool: CommandLine,
) -> None:
    cwtool = own_cwtool
    cwtool.env["CWTOOL_CPU_LANES"] = "2"
    cwtool("daemon", "start")
    runs = [detached(cwtool, model, *SLOW) for model in ("gpt2", "EleutherAI/pythia-70m")]
    for run_id in runs:
        cwtool.wait_for(run_id, "damage")
    before = {lane: workers(cwtool)[lane]["pid"] for lane in LANES}
    devices = {device_of(cwtool, run_id): run_id for run_id in runs}
    third = detached(cwtool, "gpt2", *SLOW)
    _kill_daemon(cwtool)
    cwtool("daemon", "start")
    until("not both workers are reached", lambda: all(workers(cwtool)[lane]["run_id"] for lane in LANES))
    assert {lane: workers(cwtool)[lane]["pid"] for lane in LANES} == before
    cwtool("jobs", "cancel", devices["cpu:0"])
    cwtool.wait_for(third, "damage")  # the lane that is free goes on, while the other is still at its run of before
    assert device_of(cwtool, third) == "cpu:0" and cwtool.json("jobs", "show", devices["cpu:1"])["state"] == "running"
    devices["cpu:0"] = third

    _kill_daemon(cwtool)
    cwtool.env["CWTOOL_CPU_LANES"] = "1"
    cwtool("daemon", "start")
    waiting = detached(cwtool, "gpt2", *QUICK)
    assert "placed on" not in " ".join(notes_of(cwtool, waiting))  # on "cpu", the only lane now
    assert device_of(cwtool, waiting) == "cpu"
    for lane in LANES:
        assert cwtool.json("jobs", "show", devices[lane])["state"] == "running"
        cwtool("jobs", "cancel", devices[lane])
        assert cwtool.json("jobs", "show", devices[lane])["deaths"] == []
    until("the workers of lanes that are gone go on", lambda: not any(map(psutil.pid_exists, before.values())))
    assert not set(workers(cwtool)) & set(LANES)


def _kill_daemon(cwtool: CommandLine) -> None:
    daemon = psutil.Process(cwtool.json("daemon", "status")["pid"])
    os.kill(daemon.pid, signal.SIGKILL)
    psutil.wait_procs([daemon], timeout=10)
