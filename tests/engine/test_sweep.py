"""Gradients made block by block are those made all at once, and the model is left as it was."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cwa_engine.base import events
from cwa_engine.base.errors import InvalidInput, RunFailed
from cwa_engine.damage.patch import patched
from cwa_engine.data.corpus import Text
from cwa_engine.data.tokens import tokenize
from cwa_engine.evaluation.perplexity import evaluate
from cwa_engine.evaluation.resume import cache_states
from cwa_engine.methods.metrics import Needs
from cwa_engine.methods.perturbations import PERTURBATIONS
from cwa_engine.models.chain import NotAChain
from cwa_engine.pipeline import analyze
from cwa_engine.records.export import run_tables
from cwa_engine.sensitivity.gradients import resident
from cwa_engine.sensitivity.sweep import sweep
from cwa_engine.spec import RunSpec
from tests.architectures import listed, tiny_architecture
from tests.engine.conftest import TEXTS, fingerprint, wrap
from tests.engine.test_metrics import sequences_of

PAGE = Path(__file__).parents[2] / "docs/architectures.md"
FIELDS = ("gradient", "fisher", "token_fisher", "input_norm", "input_factor")
SQUARES = Needs.FISHER | Needs.TOKEN_FISHER
ALL = Needs.GRADIENT | SQUARES | Needs.INPUTS | Needs.SPIKES | Needs.INPUT_GRAM


def assert_same(loaded: Any, sequences: Any, needs: Needs, batch_size: int, tolerance: float = 1e-4) -> None:
    """Swept, and made of batches, they are those of one sequence at a time."""
    alone = resident(loaded, sequences, needs, 1)
    together = resident(loaded, sequences, needs, batch_size)
    swept = {name: stats for part in sweep(loaded, sequences, needs, batch_size) for name, stats in part.items()}
    assert swept.keys() == together.keys() == alone.keys()
    for name, stats in alone.items():
        for field, other in itertools.product(FIELDS, (swept, together)):
            expected, found = getattr(stats, field), getattr(other[name], field)
            assert (expected is None) == (found is None)
            if expected is not None:
                largest = float(expected[expected.isfinite()].abs().max()) if expected.isfinite().any() else 0.0
                # The bias of keys has no gradient but what rounding leaves of it.
                torch.testing.assert_close(found, expected, rtol=tolerance, atol=max(1e-7, tolerance * largest))


@pytest.mark.parametrize(
    ("needs", "batch_size"),
    [(Needs.GRADIENT, 3), (Needs.GRADIENT, 1), (Needs.FISHER, 1), (Needs.TOKEN_FISHER, 3), (ALL, 1)],
)
def test_block_by_block_is_as_good_as_all_at_once(loaded: Any, needs: Needs, batch_size: int) -> None:
    before = fingerprint(loaded.model)
    assert_same(loaded, sequences_of(loaded), needs, batch_size)
    assert fingerprint(loaded.model) == before
    assert all(parameter.grad is None for parameter in loaded.model.parameters())
    assert not any("forward" in vars(module) for module in loaded.model.modules())


@pytest.mark.parametrize("model_type", listed(PAGE.read_text())[0])
def test_every_architecture_is_computed_in_parts_exactly_or_refused_before_anything_is_given(model_type: str) -> None:
    loaded = wrap(tiny_architecture(model_type))
    sequences = tokenize(loaded.tokenizer, [Text(text, "a text") for text in TEXTS[:2]], 16)
    try:
        next(sweep(loaded, sequences, Needs.GRADIENT))
    except NotAChain as reason:
        assert str(reason)
        return
    assert_same(loaded, sequences, Needs.GRADIENT | SQUARES, 2, tolerance=1e-3)
    kept = cache_states(loaded, sequences, 2)
    in_blocks = [name for name, parameter in loaded.anatomy.parameters.items() if parameter.layer is not None]
    for name in (list(loaded.anatomy.parameters)[-1], in_blocks[-1]):
        with patched(loaded.model, {name: np.arange(1)}, PERTURBATIONS["zero"]):
            assert kept.evaluate([name]).nll_sums.tolist() == evaluate(loaded, sequences, 2).nll_sums.tolist()


def test_the_blocks_come_from_the_last_to_the_first_and_then_the_rest(llama: Any) -> None:
    layers = llama.anatomy.parameters
    parts = [{layers[name].layer for name in part} for part in sweep(llama, sequences_of(llama), Needs.GRADIENT)]
    assert parts == [{1}, {0}, {None}]


def test_a_run_finds_the_same_either_way(loaded: Any, data_file: Path) -> None:
    tables = {}
    for source in ("resident", "sweep"):
        asked = RunSpec(
            model="tiny", data_file=data_file, topk=(5,), metrics=("grad_x_weight", "taylor", "wanda"),
            gradients=source, controls=("bottom", "random"), control_seeds=1, stability="halves",
        )  # fmt: skip
        result = analyze(loaded, asked)
        tables[source] = [(w.parameter, w.flat_index) for ranking in result.rankings for w in ranking.weights]
        assert {"topk_wanda.csv", "stability.csv"} <= set(dict(run_tables(result)))
    assert tables["sweep"] == tables["resident"]


def test_a_model_whose_blocks_cannot_be_parted_is_analysed_all_at_once_and_that_is_said(data_file: Path) -> None:
    said: list[dict[str, Any]] = []
    loaded = wrap(tiny_architecture("openai-gpt"))
    asked = RunSpec(model="tiny", data_file=data_file, topk=(2,), gradients="sweep", perturbations=())
    result = analyze(loaded, asked, lambda event: said.append(events.to_dict(event)))
    assert len(result.rankings[0].weights) == 2
    assert any("kept at once: a block does not give" in event.get("text", "") for event in said)


def test_what_needs_all_gradients_at_once_is_refused_with_the_sweep() -> None:
    for fields in ({"fidelity": 20}, {"metrics": ("hutchinson_diag",)}):
        with pytest.raises(InvalidInput, match="all weights at once"):
            RunSpec(model="tiny", gradients="sweep", **fields)


def test_memory_decides_where_nobody_does(llama: Any, data_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = RunSpec(model="tiny", data_file=data_file, topk=(2,), perturbations=())
    for free, unit in ((1 << 40, "sequence"), (1000, "block")):
        said: list[events.Event] = []
        monkeypatch.setattr("cwa_engine.planning.free_bytes", lambda device, free=free: free)
        analyze(llama, asked, said.append)
        assert {e.unit for e in said if isinstance(e, events.Progress) and e.stage == "score"} == {unit}


def test_an_interrupted_sweep_leaves_the_model_as_it_was(llama: Any) -> None:
    before = fingerprint(llama.model)

    def interrupt(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(sweep(llama, sequences_of(llama), Needs.GRADIENT, None, interrupt))
    assert fingerprint(llama.model) == before
    assert all(parameter.grad is None for parameter in llama.model.parameters())
    assert_same(llama, sequences_of(llama), Needs.GRADIENT, 2)


def test_a_loss_that_is_not_finite_stops_the_sweep_and_names_the_batch(llama: Any) -> None:
    llama.model.model.norm.weight.data[0] = float("nan")
    with pytest.raises(RunFailed, match=r"batch 1 of 8 is nan"):
        list(sweep(llama, sequences_of(llama), Needs.GRADIENT))
