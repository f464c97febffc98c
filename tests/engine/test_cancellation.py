"""What takes long can be cancelled on the way, and leaves nothing behind that changes what comes after."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cwa_engine.base.cancellation import cancellable, cancellable_steps, check_cancelled
from cwa_engine.base.errors import Cancelled, ModelBroken, ModelNotFound
from cwa_engine.hub.sources import HubAccess, file_sha256
from cwa_engine.models.checksum import checksum
from cwa_engine.models.loading import load_model
from cwa_engine.planning import plan
from cwa_engine.spec import RunSpec
from tests.engine.conftest import fingerprint
from tests.gguf_files import FAMILIES, tiny, write_family
from tests.models import save_tiny


class Wanted:
    """Counts how often it is asked, and cancels at a given time."""

    def __init__(self, until: int | None = None) -> None:
        self.asked = 0
        self._until = until

    def __call__(self) -> None:
        self.asked += 1
        if self.asked == self._until:
            raise Cancelled("the run was cancelled")


def folder(path: Path) -> Path:
    return save_tiny("llama", path / "model")


def pickled(path: Path) -> Path:
    model = folder(path)
    tensors = load_model(str(model)).model.state_dict()
    torch.save(tensors, model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()
    return model


def gguf(path: Path) -> Path:
    family = FAMILIES["llama"]
    return write_family(path / "model.gguf", family, tiny(family))


@pytest.mark.parametrize("save", [folder, pickled, gguf])
def test_a_load_can_be_cancelled_wherever_it_asks_and_the_next_one_finds_the_same_weights(
    save: Callable[[Path], Path], tmp_path: Path
) -> None:
    name = str(save(tmp_path))
    whole = Wanted()
    with cancellable(whole):
        before = fingerprint(load_model(name).model)
    assert whole.asked > len(before)  # for each tensor, and on the way to it and from it
    for until in (1, 2, whole.asked // 2, whole.asked - 1):
        with pytest.raises(Cancelled), cancellable(Wanted(until)):
            load_model(name)
    assert fingerprint(load_model(name).model) == before


def test_a_plan_can_be_cancelled_while_it_counts(tmp_path: Path) -> None:
    spec, access = RunSpec(model=str(folder(tmp_path)), topk=(3,), eval_limit=4), HubAccess(None, None, True)
    for until in (1, 1000):
        wanted = Wanted(until)
        with pytest.raises(Cancelled), cancellable(wanted):
            plan(spec, access, "cpu")
        assert wanted.asked == until


def test_a_pass_is_cancelled_between_two_blocks_on_its_way_forward_and_back(tmp_path: Path) -> None:
    model = load_model(str(folder(tmp_path))).model
    blocks = model.config.num_hidden_layers
    ids = torch.arange(5)[None]
    asked = Wanted()
    with cancellable(asked):
        loss = model(input_ids=ids, labels=ids).loss
        assert asked.asked == blocks
        loss.backward()
    assert asked.asked == 2 * blocks
    weight: Any = model.get_input_embeddings().weight
    gradient = weight.grad.clone()
    for until in (1, 2 * blocks):
        model.zero_grad()
        with pytest.raises(Cancelled), cancellable(Wanted(until)):
            model(input_ids=ids, labels=ids).loss.backward()
    model.zero_grad()
    model(input_ids=ids, labels=ids).loss.backward()
    assert torch.equal(weight.grad, gradient)


@pytest.mark.parametrize("work", [lambda model, path: checksum(model), lambda model, path: file_sha256(path)])
def test_checksums_are_cancelled_on_the_way(work: Callable[[Any, Path], object], tmp_path: Path) -> None:
    path = folder(tmp_path) / "model.safetensors"
    model = load_model(str(path.parent)).model
    with pytest.raises(Cancelled), cancellable(Wanted(1)):
        work(model, path)


def test_nobody_is_asked_outside(tmp_path: Path) -> None:
    asked = Wanted()
    with cancellable(asked):
        assert list(cancellable_steps(range(3000))) == list(range(3000))
    assert asked.asked == 3
    check_cancelled()
    assert asked.asked == 3


def test_a_pipe_among_a_models_files_is_named_and_not_waited_for(tmp_path: Path) -> None:
    import os

    model = folder(tmp_path)
    os.mkfifo(model / "generation_config.txt")
    with pytest.raises(ModelBroken, match=r"generation_config.txt is a pipe, a socket or a device"):
        load_model(str(model))
    os.mkfifo(tmp_path / "model.gguf")
    with pytest.raises(ModelNotFound, match="no GGUF file"):
        load_model(str(tmp_path / "model.gguf"))
