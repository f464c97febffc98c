"""Norms that multiply by 1 + w: zero, scores and doses are of the factor, wherever it stands."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cwa_engine.damage.patch import patched
from cwa_engine.data.corpus import Text
from cwa_engine.data.tokens import tokenize
from cwa_engine.evaluation.perplexity import evaluate
from cwa_engine.methods.metrics import METRICS, Needs
from cwa_engine.methods.perturbations import PERTURBATIONS, Options
from cwa_engine.models.loading import load_model
from cwa_engine.pipeline import analyze
from cwa_engine.questions.ablation import ablate
from cwa_engine.sensitivity.gradients import resident
from cwa_engine.sensitivity.ranking import rank
from cwa_engine.spec import RunSpec
from tests.architectures import tiny_architecture
from tests.engine.conftest import TEXTS, wrap
from tests.models import tiny_tokenizer

ADDING = ("gemma", "gemma2", "gemma3_text", "nemotron", "qwen3_next", "vaultgemma")
PLAIN = ("llama", "gpt2", "qwen2", "mamba", "olmo2", "gemma3n_text")
NORM = "model.layers.0.input_layernorm.weight"


@pytest.fixture
def gemma() -> Any:
    """A Gemma whose norms differ from their start, so that 1 + w and w rank differently."""
    model = tiny_architecture("gemma")
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4) if parameter.dim() > 1 else parameter.copy_(torch.randn(parameter.shape) * 0.5)
    return wrap(model)


@pytest.fixture
def sequences(gemma: Any) -> Any:
    return tokenize(gemma.tokenizer, [Text(text, "test") for text in TEXTS[:4]], 32)


@pytest.mark.parametrize("model_type", ADDING)
def test_norms_that_add_one_are_known_by_what_they_compute(model_type: str) -> None:
    anatomy = wrap(tiny_architecture(model_type)).anatomy
    norms = {name for name, p in anatomy.parameters.items() if p.component == "norm" and name.endswith("weight")}
    assert set(anatomy.offsets) <= norms
    assert set(anatomy.offsets.values()) == {1.0}
    assert "model.norm.weight" in anatomy.offsets


@pytest.mark.parametrize("model_type", PLAIN)
def test_other_norms_add_nothing(model_type: str) -> None:
    assert wrap(tiny_architecture(model_type)).anatomy.offsets == {}


def nll_with_factor(gemma: Any, sequences: Any, place: int, factor: float) -> float:
    """The loss of a copy whose norm's weight is written so that it multiplies by `factor` there."""
    changed = copy.deepcopy(gemma.model)
    with torch.no_grad():
        changed.get_parameter(NORM)[place] = factor - 1
    return evaluate(wrap(changed), sequences).nll


@pytest.mark.parametrize(
    ("name", "options", "becomes"),
    [
        ("zero", Options(), lambda factor: 0),
        ("sign_flip", Options(), lambda factor: -factor),
        ("scale", Options(scale_factor=0.5), lambda factor: 0.5 * factor),
    ],
)
def test_a_perturbation_of_a_factor_is_one_of_one_plus_w(
    name: str, options: Options, becomes: Any, gemma: Any, sequences: Any
) -> None:
    before = gemma.model.get_parameter(NORM).detach().clone()
    factor = 1 + float(before[3])
    with patched(gemma.model, {NORM: np.array([3])}, PERTURBATIONS[name], options, gemma.anatomy.offsets):
        assert 1 + float(gemma.model.get_parameter(NORM).detach()[3]) == pytest.approx(becomes(factor), abs=1e-6)
        measured = evaluate(gemma, sequences).nll
    assert measured == pytest.approx(nll_with_factor(gemma, sequences, 3, becomes(factor)), abs=1e-6)
    assert torch.equal(gemma.model.get_parameter(NORM), before)


def test_scaling_by_one_changes_nothing(gemma: Any) -> None:
    everything = {NORM: np.arange(gemma.anatomy.parameters[NORM].numel)}
    with patched(gemma.model, everything, PERTURBATIONS["scale"], Options(scale_factor=1.0), gemma.anatomy.offsets) as (
        receipt,
    ):
        assert receipt.unchanged == len(everything[NORM])


@pytest.mark.parametrize("metric", ["magnitude", "grad_x_weight", "obd"])
def test_scores_are_of_the_factor(metric: str, gemma: Any, sequences: Any) -> None:
    only = gemma.with_parameters([NORM])
    statistics = resident(only, sequences, Needs.GRADIENT | Needs.TOKEN_FISHER, 1)
    ranking = rank(only, statistics, metric, 5)
    stored = gemma.model.get_parameter(NORM).detach()
    score = METRICS[metric].score
    assert score is not None
    expected = score(1 + stored, statistics[NORM]).sort(descending=True)
    assert [row.flat_index for row in ranking.weights] == expected.indices[:5].tolist()
    assert [row.score for row in ranking.weights] == pytest.approx(expected.values[:5].tolist())
    assert ranking.weights[0].value == float(stored[expected.indices[0]]), "the value shown is the stored one"


def test_a_run_zeroes_the_factors_of_the_norms_that_it_ranks(gemma: Any, tmp_path: Path) -> None:
    text = tmp_path / "texts.txt"
    text.write_text("\n\n".join(TEXTS))
    spec = RunSpec(model="tiny", metrics=("magnitude",), include=(NORM,), topk=(1,), data_file=text, bos="never")
    result = analyze(gemma, spec)
    (top,) = result.rankings[0].weights
    evaluation = tokenize(gemma.tokenizer, [Text(text, "test") for text in TEXTS[1::2]], 512)
    expected = nll_with_factor(gemma, evaluation, top.flat_index, 0.0)
    assert result.damage[0].nll == pytest.approx(expected, rel=1e-5)


def test_exact_ablation_zeroes_factors_in_its_copies_too(gemma: Any, sequences: Any) -> None:
    only = gemma.with_parameters([NORM])
    ranking = rank(only, resident(only, sequences, Needs.GRADIENT, 1), "grad_x_weight", 8)
    found = ablate(only, sequences, ranking.weights, 3, seed=0, emit=lambda event: None)
    intact = evaluate(gemma, sequences).nll
    for row in (row for row in found.rows if row.exact):
        place = next(unit.flat_index for unit in ranking.weights if unit.target == row.target)
        change = nll_with_factor(gemma, sequences, place, 0.0) - intact
        assert row.delta_nll == pytest.approx(change, abs=1e-5)


def test_a_model_whose_norms_add_one_says_so_when_it_is_loaded(gemma: Any, tmp_path: Path) -> None:
    gemma.model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    (note,) = load_model(str(tmp_path)).notes
    assert note.startswith("norms here multiply by 1 + w")
