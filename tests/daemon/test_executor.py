"""What a worker does with its warm models when a job does not end well."""

from __future__ import annotations

import math
import time
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cwa_daemon.base.settings import Settings
from cwa_daemon.pipe.exit_codes import DEVICE_LOST
from cwa_daemon.pipe.messages import EventReport, Finished, Limits, Report, RunJob
from cwa_daemon.protocol import JobOptions
from cwa_daemon.worker.executor import Executor
from cwa_engine.base.errors import Cancelled, OutOfMemory
from cwa_engine.machine.memory import Memory
from cwa_engine.models.checksum import checksum
from cwa_engine.spec import RunSpec
from tests.models import tiny_model


class Inbox:
    """Nothing is cancelled until it is."""

    def __init__(self) -> None:
        self.cancelled = False

    def is_cancelled(self, run_id: str) -> bool:
        return self.cancelled

    def wait_for_cancel(self, run_id: str, timeout_s: float) -> bool:
        return self.cancelled


class Outbox:
    def __init__(self) -> None:
        self.reports: list[Report] = []

    def send(self, report: Report) -> None:
        self.reports.append(report)

    def notes(self) -> str:
        events = [report.event for report in self.reports if isinstance(report, EventReport)]
        return " | ".join(event["text"] for event in events if event["kind"] == "note")

    def last_error(self) -> Any:
        return [report for report in self.reports if isinstance(report, Finished)][-1].error


@pytest.fixture
def worker(hub: Path, tmp_path: Path) -> tuple[Executor, Inbox, Outbox, Callable[..., None]]:
    inbox, outbox = Inbox(), Outbox()
    executor = Executor("cpu", inbox, outbox)

    def run(kind: str = "run", **fields: Any) -> None:
        spec = RunSpec(model="gpt2", eval_limit=4, **{"topk": (3,), "control_seeds": 1, **fields})
        number = len(outbox.reports)
        executor.obey(
            RunJob(
                kind=kind,
                run_id=f"run-{number}",
                spec=spec.model_dump(mode="json"),
                command="",
                options=JobOptions().model_dump(),
                access={"token": None, "cache_dir": str(hub / "hub"), "offline": True},
                folder=str(tmp_path / "runs" / f"run-{number}"),
                limits=Limits(**Settings(home=tmp_path).limits()),
                device="cpu",
            )
        )

    return executor, inbox, outbox, run


def test_weights_that_are_not_as_they_were_loaded_are_found_after_a_failed_run_and_loaded_again(worker: Any) -> None:
    executor, _, outbox, run = worker
    run()
    resident = next(iter(executor.warm))
    with torch.no_grad():
        resident.model.model.get_parameter("transformer.wte.weight").view(-1)[7] += 0.25
    run(topk=(10**9,))
    assert outbox.last_error()["code"] == "invalid_input"
    run()
    assert outbox.last_error() is None
    assert "its weights are not as they were loaded" in outbox.notes()
    assert [resident.jobs_served for resident in executor.warm] == [1]  # another than before


def test_a_look_at_a_weight_loads_its_model_tells_the_facts_and_leaves_it_warm(worker: Any) -> None:
    executor, _, outbox, run = worker
    target = "transformer.h.1.mlp.c_proj.weight[3,5]"
    run(kind="inspect", weights=(target,))
    assert outbox.last_error() is None
    (resident,) = executor.warm
    (facts,) = [
        r.event["facts"] for r in outbox.reports if isinstance(r, EventReport) and r.event["kind"] == "inspected"
    ]
    stored = resident.model.model.get_parameter("transformer.h.1.mlp.c_proj.weight").detach()
    assert (facts["target"], facts["value"]) == (target, float(stored[5, 3]))
    assert checksum(resident.model.model) == resident.checksum
    run(kind="inspect", weights=("transformer.h.9.mlp.c_proj.weight[3,5]",))
    assert outbox.last_error()["code"] == "invalid_input"


def test_a_run_that_is_cancelled_ends_before_its_models_weights_are_compared(
    worker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor, _, outbox, run = worker
    run()
    looked: list[str] = []
    monkeypatch.setattr("cwa_daemon.worker.warm_models.checksum", lambda model: looked.append("looked"))
    run(topk=(10**9,))
    assert outbox.last_error()["code"] == "invalid_input"
    assert (looked, next(iter(executor.warm)).suspect) == ([], True)


def test_a_failed_run_that_changed_nothing_leaves_the_model_warm(worker: Any) -> None:
    executor, _, outbox, run = worker
    run()
    run(topk=(10**9,))
    run()
    assert [resident.jobs_served for resident in executor.warm] == [3]
    assert "not as they were" not in outbox.notes()


def test_a_model_stays_as_long_after_a_run_that_failed_as_after_one_that_was_done(
    worker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor, _, _, run = worker
    run()
    now = time.time() + 1200

    def long_run(*arguments: Any, **options: Any) -> None:
        monkeypatch.setattr(time, "time", lambda: now)  # it ends twenty minutes later
        raise Cancelled("cancelled")

    monkeypatch.setattr("cwa_daemon.worker.executor.analyze", long_run)
    run()
    assert [resident.last_used for resident in executor.warm] == [now]


def test_a_result_that_cannot_be_saved_is_discarded_when_its_run_is_cancelled(worker: Any, tmp_path: Path) -> None:
    _, inbox, outbox, run = worker
    (tmp_path / "runs").write_text("a file where the folder should be")
    send = outbox.send

    def cancel_when_told(report: Report) -> None:
        send(report)
        if "cannot save" in str(report):
            inbox.cancelled = True

    outbox.send = cancel_when_told
    run()
    assert outbox.last_error()["code"] == Cancelled.code
    assert "the result is kept" in outbox.notes()


def test_any_one_weight_that_changes_changes_the_checksum_and_so_do_two_that_change_places() -> None:
    model = tiny_model("llama")
    before = checksum(model)
    weight = model.get_parameter("model.layers.0.mlp.up_proj.weight").detach().view(-1)
    for dtype in (torch.float32, torch.bfloat16):
        model.to(dtype)
        before = checksum(model)
        weight = model.get_parameter("model.layers.0.mlp.up_proj.weight").detach().view(-1)
        old = weight[5].clone()
        weight[5] = -old
        assert checksum(model) != before
        weight[5] = old
        assert checksum(model) == before
        weight[[5, 6]] = weight[[6, 5]]
        assert checksum(model) != before


class Ended(Exception):
    """Stands for the end of the process."""


@pytest.mark.parametrize("computes", [True, False])
def test_after_memory_ran_out_the_worker_goes_on_only_if_the_model_still_computes(
    worker: Any, monkeypatch: pytest.MonkeyPatch, computes: bool
) -> None:
    executor, _, outbox, run = worker
    run()

    def exhausted(*args: object, **options: object) -> None:
        raise OutOfMemory("out of memory")

    def end(code: int) -> None:
        raise Ended(code)

    monkeypatch.setattr("cwa_daemon.worker.executor.analyze", exhausted)
    monkeypatch.setattr("cwa_daemon.worker.executor.os._exit", end)
    if computes:
        run()
    else:
        with torch.no_grad():
            next(iter(executor.warm)).model.model.get_parameter("transformer.ln_f.weight").fill_(math.nan)
        with pytest.raises(Ended):
            run()
    assert outbox.last_error()["code"] == "out_of_memory"  # the client hears before the process ends


def test_a_device_that_fails_takes_its_worker_with_it_after_the_client_has_heard(
    worker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, outbox, run = worker

    def failing(*args: object, **options: object) -> None:
        monkeypatch.setattr(
            "cwa_daemon.worker.executor.release", failing
        )  # nor does the device give back its memory any more
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    def end(code: int) -> None:
        raise Ended(code)

    monkeypatch.setattr("cwa_daemon.worker.executor.analyze", failing)
    monkeypatch.setattr("cwa_daemon.worker.executor.os._exit", end)
    with pytest.raises(Ended, match=str(DEVICE_LOST)):
        run()
    assert "illegal memory access" in outbox.last_error()["message"]


class Held:
    """Stands for the gradients that a job had when memory ran out."""


def _exhausted(held: list[weakref.ref[Held]]) -> Callable[..., None]:
    def analyze(*args: object, **options: object) -> None:
        gradients = Held()
        held.append(weakref.ref(gradients))
        try:
            torch.empty(2**60)  # what torch itself raises
        except RuntimeError as error:
            raise OutOfMemory("out of memory", hint="a shorter --seq-len") from error

    return analyze


def test_what_a_job_held_when_memory_ran_out_is_free_again_when_it_has_ended(
    worker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor, _, outbox, run = worker
    run()
    held: list[weakref.ref[Held]] = []
    monkeypatch.setattr("cwa_daemon.worker.executor.analyze", _exhausted(held))
    run()
    assert held[0]() is None
    assert outbox.last_error() | {"retryable": False} == {
        "code": "out_of_memory",
        "message": "out of memory",
        "hint": "a shorter --seq-len",
        "retryable": False,
    }
    assert [resident.name for resident in executor.warm] == ["gpt2"]


def test_a_model_that_cannot_be_checked_for_want_of_memory_is_unloaded_and_the_worker_goes_on(
    worker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor, _, outbox, run = worker
    run()
    with monkeypatch.context() as short:
        short.setattr("cwa_daemon.worker.executor.analyze", _exhausted([]))
        short.setattr("cwa_daemon.worker.executor.still_computes", lambda model: True)
        run()
    assert outbox.last_error()["code"] == "out_of_memory"
    with monkeypatch.context() as short:
        tried: list[object] = []

        def first_without_memory(model: Any) -> Any:
            tried.append(model)
            return torch.empty(2**60) if len(tried) == 1 else checksum(model)

        short.setattr("cwa_daemon.worker.warm_models.checksum", first_without_memory)
        run()
    assert "unloaded: no memory is left to see" in outbox.notes()
    assert outbox.last_error() is None
    assert [resident.name for resident in executor.warm] == ["gpt2"]  # loaded anew


def test_memory_that_runs_out_where_nobody_expects_it_has_its_name_all_the_same(
    worker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, outbox, run = worker
    monkeypatch.setattr("cwa_daemon.worker.executor.write_run", lambda *args: torch.empty(2**60))
    run()
    assert outbox.last_error()["code"] == "out_of_memory"
    assert "gpt2" in outbox.last_error()["message"]
    assert outbox.last_error()["hint"]


def test_a_small_device_keeps_a_tenth_free_where_nobody_says_how_much(
    worker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, outbox, run = worker
    granted = Memory("the control group", 1_000_000, 150_000)
    monkeypatch.setattr("cwa_engine.models.memory.available_memory", lambda: granted)
    run()
    assert outbox.last_error()["code"] == "does_not_fit"
    assert "0.00 GB are free" in outbox.last_error()["message"]
    monkeypatch.setattr("cwa_engine.models.memory.available_memory", lambda: replace(granted, free_bytes=800_000))
    run()
    assert outbox.last_error() is None
