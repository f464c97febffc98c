"""A prompt, asked of a daemon: its texts come as events while they grow, and whatever ends it leaves the model as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cwa_daemon.client import Client
from cwa_engine.base.event_reader import event_from_plain
from cwa_engine.base.events import Generated, Progress, PromptAnswered
from cwa_engine.prompt_rows import PromptAnswer
from cwa_engine.prompt_spec import PromptSpec
from tests.conftest import CommandLine

MATRIX = "transformer.h.1.mlp.c_proj.weight"


@pytest.fixture(autouse=True)
def models_of_the_test(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client passes on how its own environment reaches the Hub."""
    monkeypatch.setenv("HF_HOME", str(hub))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def spec(*weights: str, **fields: Any) -> PromptSpec:
    return PromptSpec(**{"model": "gpt2", "prompt": "The harbour", "weights": weights, "new_tokens": 20, **fields})


def answered(client: Client, asked: PromptSpec) -> PromptAnswer:
    events = [event_from_plain(plain) for plain in client.follow(client.prompt(asked))]
    (found,) = (event.answer for event in events if isinstance(event, PromptAnswered))
    return found


def test_the_texts_come_before_the_first_progress_and_the_answer_at_the_end(cwtool: CommandLine) -> None:
    with cwtool.client() as client:
        run_id = client.prompt(spec(f"{MATRIX}[:,:]"))
        events = [event_from_plain(plain) for plain in client.follow(run_id)]
        job = client.job(run_id)
    of_load = [event for event in events if isinstance(event, Progress) and event.stage == "load"]
    kinds = [type(event) for event in events if event not in of_load]
    assert kinds.index(Generated) < kinds.index(Progress) < kinds.index(PromptAnswered)
    answer = next(event.answer for event in events if isinstance(event, PromptAnswered))
    last = [event for event in events if isinstance(event, Generated)][-1]
    assert answer.intact.startswith(last.intact) and answer.weights == 32 * 128
    assert (job.kind, job.state, job.priority) == ("prompt", "done", 100)


def test_an_answer_that_is_broken_off_leaves_the_model_as_it_was(cwtool: CommandLine) -> None:
    with cwtool.client() as client:
        before = answered(client, spec())
        run_id = client.prompt(spec(f"{MATRIX}[:,:]", perturbations=("scale",), scale_factor=50.0, new_tokens=500))
        for event in client.follow(run_id):
            if event["kind"] == "generated" and event["damaged"] is not None:
                client.cancel(run_id)
        assert answered(client, spec()) == before
        huge = spec("transformer.ln_f.weight[:]", perturbations=("scale",), scale_factor=3e38)
        assert answered(client, huge).collapsed_at == "transformer.ln_f"
        assert answered(client, spec()) == before
