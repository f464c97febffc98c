"""A look at one weight, asked of a daemon: its facts come as an event, and it is done before what waits."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors import safe_open

from cwa_engine.base.errors import InvalidInput
from cwa_engine.base.event_reader import event_from_plain
from cwa_engine.base.events import Inspected
from cwa_engine.spec import RunSpec
from tests.conftest import CommandLine

NAME = "transformer.h.1.mlp.c_fc.weight"


@pytest.fixture(autouse=True)
def models_of_the_test(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client passes on how its own environment reaches the Hub."""
    monkeypatch.setenv("HF_HOME", str(hub))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def test_the_facts_of_a_weight_come_as_an_event_of_a_job(cwtool: CommandLine, hub: Path) -> None:
    stored = next(hub.glob("hub/models--gpt2/snapshots/*/model.safetensors"))
    with safe_open(stored, "np") as tensors:
        values = tensors.get_tensor(next(key for key in tensors.keys() if NAME.endswith(key)))  # noqa: SIM118  [in, out]
    with cwtool.client() as client:
        run_id = client.inspect(RunSpec(model="gpt2"), f"{NAME}[7,3]")
        events = [event_from_plain(event) for event in client.follow(run_id) if event["kind"] == "inspected"]
        job = client.job(run_id)
    (found,) = events
    assert isinstance(found, Inspected)
    assert (found.facts.value, found.facts.transposed) == (float(values[3, 7]), True)
    assert found.facts.rank == 1 + int((abs(values) > abs(values[3, 7])).sum())
    assert (job.kind, job.state, job.priority) == ("inspect", "done", 100)


def test_a_weight_that_the_model_lacks_fails_the_job_with_its_name(cwtool: CommandLine) -> None:
    with cwtool.client() as client:
        run_id = client.inspect(RunSpec(model="gpt2"), "transformer.h.9.mlp.c_fc.weight[7,3]")
        last = list(client.follow(run_id))[-1]
        assert (last["state"], last["error"]["code"]) == ("failed", "invalid_input")
        assert "transformer.h.9.mlp.c_fc.weight" in last["error"]["message"]
        with pytest.raises(InvalidInput, match="names no weight"):
            client.inspect(RunSpec(model="gpt2"), "no weight at all")
