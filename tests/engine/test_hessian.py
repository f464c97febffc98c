"""The Hessian's diagonal, estimated and exact, against the whole Hessian row by row."""

from __future__ import annotations

import copy
import csv
import io
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cwa_engine.base import events
from cwa_engine.evaluation.loss_scale import LossScale
from cwa_engine.methods.metrics import Needs
from cwa_engine.pipeline import analyze
from cwa_engine.records.export import run_tables
from cwa_engine.sensitivity import finalists
from cwa_engine.sensitivity.gradients import resident
from cwa_engine.sensitivity.hessian import exact_diagonal, hutchinson_diagonal
from cwa_engine.sensitivity.score_cache import ScoreCache
from cwa_engine.sensitivity.signs import weight_signs
from cwa_engine.spec import RunSpec
from tests.engine.conftest import doubled, wrap
from tests.engine.test_metrics import hessian_by_hand, sequences_of, without_rounding_to_float32


def last_vector(loaded: Any) -> Any:
    """The model with its last vector alone in view, whose Hessian is small."""
    return loaded.with_parameters([name for name, p in loaded.anatomy.parameters.items() if p.is_vector][-1:])


@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
def test_the_estimate_is_the_mean_over_probes_of_each_text_and_its_error_their_spread(
    loaded: Any, precision: torch.dtype
) -> None:
    only = last_vector(wrap(loaded.model if precision is torch.float32 else doubled(loaded.model)))
    sequences = sequences_of(only)[:3]
    (name,) = only.anatomy.parameters
    parameters, probes = {name: only.model.get_parameter(name)}, 5
    tokens = sum(sequence.scored_tokens for sequence in sequences)
    samples = []  # [texts, probes, weights]
    for sequence in sequences:
        hessian = hessian_by_hand(only, name, [list(sequence.ids)]) * sequence.scored_tokens / tokens
        signs = [weight_signs(parameters, sequence, 3, probe)[name].double() for probe in range(probes)]
        assert all(set(s.tolist()) == {-1.0, 1.0} for s in signs)
        samples.append(torch.stack([s * (hessian @ s) for s in signs]))
    of_texts = torch.stack(samples)
    assert float(of_texts.abs().max()) > 1e-4
    found = hutchinson_diagonal(only, sequences, probes, seed=3)
    largest = float(of_texts.abs().max())
    right, error = of_texts.mean(1).sum(0), (of_texts.var(1) / probes).sum(0).sqrt()
    torch.testing.assert_close(found.estimate[name].double(), right, rtol=1e-3, atol=2e-4 * largest)
    torch.testing.assert_close(found.error[name].double(), error, rtol=1e-2, atol=1e-3 * largest)
    assert hutchinson_diagonal(only, sequences, 1, seed=3).error == {}  # one probe has no spread


def test_estimates_of_many_seeds_are_off_by_as_much_as_their_errors_say(llama: Any) -> None:
    only = last_vector(llama)
    (name,) = only.anatomy.parameters
    sequences = sequences_of(only)[:3]
    exact = hessian_by_hand(only, name, [list(sequence.ids) for sequence in sequences]).diagonal()
    draws = [hutchinson_diagonal(only, sequences, 4, seed) for seed in range(30)]
    off = torch.stack([(draw.estimate[name] - exact) / draw.error[name] for draw in draws])
    assert abs(float(off.median())) < 0.2
    assert 0.8 < float(off.square().median().sqrt() / 0.6745) < 1.3  # as many standard errors as a normal one has


def test_exact_entries_are_slopes_of_the_gradient(loaded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    without_rounding_to_float32(monkeypatch)
    loaded = wrap(doubled(loaded.model))
    parameters = loaded.anatomy.parameters
    smallest = sorted(parameters, key=lambda name: parameters[name].numel)
    names = [smallest[0], next(name for name in smallest if not parameters[name].is_vector)]
    sequences = sequences_of(loaded)[:2]
    found = exact_diagonal(loaded, sequences, [(name, index) for name in names for index in (0, 5, 17)])
    for name, entries in zip(names, np.array_split(np.array(found), 2), strict=True):
        slopes = slopes_of_gradients(loaded.model, name, [0, 5, 17], sequences)
        assert entries.tolist() == pytest.approx(slopes, rel=1e-4, abs=1e-9)
    assert max(map(abs, found)) > 1e-5


def slopes_of_gradients(model: Any, name: str, indices: list[int], sequences: Any) -> list[float]:
    """How each weight's gradient changes with the weight, by differences."""
    step, entries = 1e-4, []
    weight = model.get_parameter(name)
    tokens = sum(sequence.scored_tokens for sequence in sequences)
    for index in indices:
        slopes = []
        for sign in (1, -1):
            with torch.no_grad():
                weight.view(-1)[index] += sign * step
            model.zero_grad()
            for sequence in sequences:
                ids = torch.tensor([sequence.ids])
                (model(input_ids=ids, labels=ids).loss * sequence.scored_tokens / tokens).backward()
            with torch.no_grad():
                weight.view(-1)[index] -= sign * step
            slopes.append(float(weight.grad.view(-1)[index]))
        entries.append((slopes[0] - slopes[1]) / (2 * step))
    return entries


def test_in_float16_both_are_those_of_the_same_weights_in_float32(loaded: Any) -> None:
    half = wrap(loaded.model.half())
    full = wrap(copy.deepcopy(half.model).float())
    sequences = sequences_of(half)[:3]
    scale = LossScale(half.model).of(sequences)
    ours, right = hutchinson_diagonal(half, sequences, 2, 0, scale), hutchinson_diagonal(full, sequences, 2, 0)
    for field in ("estimate", "error"):
        for name, expected in getattr(right, field).items():
            largest = float(expected.abs().max())
            torch.testing.assert_close(getattr(ours, field)[name], expected, rtol=0.05, atol=0.05 * largest + 1e-4)
    weights = [(name, 3) for name in list(half.anatomy.parameters)[::4]]
    expected = exact_diagonal(full, sequences, weights)
    assert exact_diagonal(half, sequences, weights, scale) == pytest.approx(expected, rel=0.05, abs=1e-4)


def asked(data_file: Path, **fields: Any) -> RunSpec:
    usual = {"metrics": ("hutchinson_diag",), "topk": (5,), "probes": 2, "perturbations": (), "matrices": False}
    return RunSpec(model="tiny", data_file=data_file, **{**usual, **fields})


def test_finalists_are_ranked_by_exact_entries_whatever_is_kept(llama: Any, data_file: Path) -> None:
    said: list[dict[str, Any]] = []
    cache = ScoreCache(data_file.parent / "cache", 10**6)
    analyze(llama, asked(data_file), lambda event: said.append(events.to_dict(event)), cache)
    assert any("100 finalists are computed exactly" in event.get("text", "") for event in said)
    found = analyze(llama, asked(data_file, topk=(100,)), cache=cache)
    assert found.scores_from == {"hutchinson_diag": ""}
    rows = found.rankings[0].weights
    assert [row.rank for row in rows] == list(range(1, 101))
    assert {row.standard_error for row in rows} == {0.0}
    exact = exact_diagonal(llama, sequences_of(llama)[0::2], [(row.parameter, row.flat_index) for row in rows])
    assert [row.score for row in rows] == pytest.approx([abs(value) for value in exact], rel=1e-4)
    assert all((one.score or 0) >= (other.score or 0) for one, other in itertools.pairwise(rows))


def test_matrices_alone_are_ranked_by_exact_entries_too(
    llama: Any, data_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finalists, "MOST", 20)
    found = analyze(llama, asked(data_file, matrices=True))
    assert [ranking.metric for ranking in found.rankings] == ["hutchinson_diag", "hutchinson_diag_matrices"]
    sequences = sequences_of(llama)[0::2]
    for ranking in found.rankings:
        exact = exact_diagonal(llama, sequences, [(row.parameter, row.flat_index) for row in ranking.weights])
        assert [row.score for row in ranking.weights] == pytest.approx([abs(value) for value in exact], rel=1e-4)
    assert all(row.layer is not None and row.in_feature is not None for row in found.rankings[1].weights)


def test_half_of_the_finalists_have_the_largest_estimates_and_half_the_largest_fisher(
    llama: Any, data_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finalists, "MOST", 6)
    rows = analyze(llama, asked(data_file, topk=(6,))).rankings[0].weights
    sequences = sequences_of(llama)[0::2]
    estimates = hutchinson_diagonal(llama, sequences, 2, 0).estimate
    fisher: Any = resident(llama, sequences, Needs.TOKEN_FISHER, 1)
    scores = {
        (name, index): (abs(value), float(fisher[name].token_fisher.flatten()[index]))
        for name, tensor in estimates.items()
        for index, value in enumerate(tensor.flatten().tolist())
    }
    by_estimate, by_fisher = (sorted(scores, key=lambda place: -scores[place][side]) for side in (0, 1))
    found = {(row.parameter, row.flat_index) for row in rows}
    assert set(by_estimate[:3]) | set(by_fisher[:3]) <= found <= set(by_estimate[:6]) | set(by_fisher[:6])


def test_beyond_the_finalists_scores_are_estimates_with_their_errors(
    llama: Any, data_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finalists, "MOST", 4)
    result = analyze(llama, asked(data_file, topk=(10,), controls=("bottom",)))
    table = list(csv.DictReader(io.StringIO(dict(run_tables(result))["topk_hutchinson_diag.csv"].decode())))
    errors = [float(row["standard_error"]) for row in table]
    assert list(table[0])[-1] == "standard_error"
    assert errors[:4] == [0.0] * 4 and min(errors[4:]) > 0
    assert len({row["target"] for row in table}) == 10
    estimate = hutchinson_diagonal(llama, sequences_of(llama)[0::2], 2, 0)
    for row in table[4:]:
        place = row["parameter"], int(row["flat_index"])
        assert float(row["score"]) == pytest.approx(abs(float(estimate.estimate[place[0]].view(-1)[place[1]])))
        assert float(row["standard_error"]) == pytest.approx(float(estimate.error[place[0]].view(-1)[place[1]]))
    per_layer = analyze(llama, asked(data_file, topk=(3,), scope="per_layer")).rankings[0].weights  # of three groups
    assert [row.rank for row in per_layer] == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    for layer in (0, 1, None):
        of_layer = [row.standard_error == 0 for row in per_layer if row.layer == layer]
        assert of_layer == sorted(of_layer, reverse=True)  # exact ones come first
    assert sum(row.standard_error == 0 for row in per_layer) == 4


def test_whole_rows_have_neither_exact_scores_nor_errors(llama: Any, data_file: Path) -> None:
    rows = analyze(llama, asked(data_file, structure="row")).rankings[0].weights
    assert {row.standard_error for row in rows} == {None}
