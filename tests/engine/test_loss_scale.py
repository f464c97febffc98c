"""In float16 no gradient vanishes for being small, and one that is too large is noticed before it is counted."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from cwa_engine.base import events
from cwa_engine.base.errors import RunFailed
from cwa_engine.evaluation.loss_scale import GradientOverflow, LossScale
from cwa_engine.methods.metrics import Needs
from cwa_engine.pipeline import analyze
from cwa_engine.sensitivity.gradients import resident
from cwa_engine.spec import RunSpec
from tests.engine.conftest import TEXTS, wrap
from tests.engine.test_metrics import sequences_of
from tests.models import tiny_model

FIELDS = {"gradient": 1, "fisher": 2, "token_fisher": 2}  # and the power of w that makes a score of them
NEEDS = Needs.GRADIENT | Needs.FISHER | Needs.TOKEN_FISHER


@pytest.fixture(params=["gpt2", "neox", "opt", "llama", "mixtral"])
def halved(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """A model that knows its texts by heart, so that gradients are small, in float16, and the same in float32."""
    model = tiny_model(request.param)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(140):
        for sequence in sequences_of(wrap(model)):
            ids = torch.tensor([sequence.ids])
            (model(input_ids=ids, labels=ids).loss / len(TEXTS)).backward()
        optimizer.step()
        optimizer.zero_grad()
    half = wrap(model.half())
    return half, wrap(copy.deepcopy(model).float())


def flat(loaded: Any, statistics: Any, field: str) -> torch.Tensor:
    return torch.cat([getattr(statistics[name], field).flatten() for name in loaded.anatomy.parameters]).abs()


def test_gradients_of_float16_weights_are_those_of_the_same_weights_in_float32(halved: tuple[Any, Any]) -> None:
    half, full = halved
    sequences = sequences_of(half)
    exact = resident(full, sequences, NEEDS, 1)
    scaled = resident(half, sequences, NEEDS, 1, scale=LossScale(half.model).of(sequences))
    unscaled = resident(half, sequences, NEEDS, 1)
    weights = torch.cat([half.model.get_parameter(name).flatten() for name in half.anatomy.parameters]).float().abs()
    for field, power in FIELDS.items():
        right, found, without = (flat(half, statistics, field) for statistics in (exact, scaled, unscaled))
        vanished, lost_without = (float((some[right > 0] == 0).float().mean()) for some in (found, without))
        assert vanished < 5e-4
        assert lost_without > 1e-3 or field != "gradient"
        best = (right * weights**power).topk(50).indices
        assert len(set((found * weights**power).topk(50).indices.tolist()) & set(best.tolist())) >= 48  # near ties
        assert float((found[best] / right[best]).log().abs().max()) < 0.15  # rounding of the forward pass


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_dtypes_are_not_scaled(dtype: torch.dtype) -> None:
    loaded = wrap(tiny_model("llama").to(dtype))
    assert LossScale(loaded.model).of(sequences_of(loaded)) is None


def large_at_the_embedding() -> Any:
    """Tiny embeddings are divided by their norm, so gradients by them are huge: those come last in a sweep."""
    model = tiny_model("llama")
    model.model.embed_tokens.weight.data /= 2**8
    model.lm_head.weight.data *= 8
    for module in model.modules():
        if hasattr(module, "variance_epsilon"):
            module.variance_epsilon = 1e-12
    return model


@pytest.mark.parametrize("gradients", ["resident", "sweep"])
@pytest.mark.parametrize("stability", [None, "halves"])
def test_after_an_overflow_all_is_scored_anew(gradients: Any, stability: Any, data_file: Path) -> None:
    half = wrap(large_at_the_embedding().half())
    full = wrap(copy.deepcopy(half.model).float())
    sequences = sequences_of(half)[0::2]
    with pytest.raises(GradientOverflow):
        resident(half, sequences, Needs.GRADIENT, 1, scale=LossScale(half.model).of(sequences))
    asked = RunSpec(
        model="tiny", data_file=data_file, metrics=("grad_x_weight", "taylor"), topk=(30,), perturbations=(),
        gradients=gradients, stability=stability, dtype="float16",
    )  # fmt: skip
    said: list[dict[str, Any]] = []
    found = analyze(half, asked, lambda event: said.append(events.to_dict(event)))
    notes = [event["text"] for event in said if event["kind"] == "note" and "overflow" in event["text"]]
    assert notes == ["a gradient overflowed in float16: scoring starts again with the loss scaled down by 16"]
    for ours, right in zip(found.rankings, analyze(full, asked).rankings, strict=True):
        assert len({weight.target for weight in ours.weights}) == 30
        assert [weight.score for weight in ours.weights] == pytest.approx([w.score for w in right.weights], rel=0.03)
        assert sorted(ours.parameters) == sorted(right.parameters)


def test_where_no_power_of_two_helps_the_run_ends_with_a_reason() -> None:
    def overflows() -> None:
        raise GradientOverflow

    said: list[str] = []
    with pytest.raises(RunFailed, match="not finite in float16") as raised:
        LossScale(tiny_model("llama").half(), said.append).run(overflows)
    assert "float32" in (raised.value.hint or "")
    assert len(said) == 4
