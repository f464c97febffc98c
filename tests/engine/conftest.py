"""Loaded models for the engine's tests, without files and without a daemon."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from tests.models import tiny_model, tiny_tokenizer

TEXTS = [
    "The harbour was quiet, and the boats lay still.",
    "def add(a, b): return a + b",
    "Nobody had told the clock that it was late.",
    "Copper, tin, zinc and lead.",
    "A longer sentence than the others, so that padding has something to do in every batch.",
    "Ja, nein, vielleicht.",
    "Count: 1, 2, 3, 4, 5.",
    "The rain in the valley stopped at noon; the river did not.",
]


def wrap(model: Any) -> Any:
    """A LoadedModel around a model that was never saved."""
    import torch

    from cwa_engine.hub.sources import ModelSource, SourceKind
    from cwa_engine.models.anatomy import anatomy_of
    from cwa_engine.models.loading import LoadedModel

    return LoadedModel(
        model=model,
        tokenizer=tiny_tokenizer(),
        anatomy=anatomy_of(model),
        source=ModelSource("tiny", SourceKind.FOLDER, "/nowhere"),
        revision=None,
        files={},
        device=torch.device("cpu"),
        dtype=str(next(model.parameters()).dtype).removeprefix("torch."),
    )


def doubled(model: Any) -> Any:
    """A copy in float64, which the fused kernel of experts does not know."""
    copied = copy.deepcopy(model).double()
    if getattr(copied.config, "_experts_implementation", None):
        copied.set_experts_implementation("eager")
    return copied


def fingerprint(model: Any) -> dict[str, bytes]:
    """All bits of all parameters."""
    import torch

    return {name: p.detach().contiguous().view(torch.uint8).numpy().tobytes() for name, p in model.named_parameters()}


@pytest.fixture(params=["gpt2", "neox", "opt", "llama", "mixtral"])
def loaded(request: pytest.FixtureRequest) -> Any:
    """A small model of each architecture in turn."""
    return wrap(tiny_model(request.param))


@pytest.fixture
def llama() -> Any:
    return wrap(tiny_model("llama"))


def write_texts(folder: Path) -> Path:
    path = folder / "texts.txt"
    path.write_text("\n\n".join(TEXTS) + "\n")
    return path


@pytest.fixture
def data_file(tmp_path: Path) -> Path:
    return write_texts(tmp_path)
