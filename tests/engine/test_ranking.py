"""Scopes and structures of a ranking, against sorting everything."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest
import torch

from cwa_engine.methods.metrics import METRICS, Needs
from cwa_engine.models.structures import unit_count, unit_weights
from cwa_engine.sensitivity.gradients import resident
from cwa_engine.sensitivity.ranking import rank, scores_at
from tests.engine.test_metrics import sequences_of

GROUPS = {
    "global": lambda parameter: 0,
    "per_layer": lambda parameter: parameter.layer,
    "per_parameter": lambda parameter: parameter.name,
    "per_component": lambda parameter: parameter.component,
}


@pytest.fixture
def statistics(loaded: Any) -> Any:
    return resident(loaded, sequences_of(loaded)[:3], Needs.GRADIENT)


def summed(loaded: Any, statistics: Any, structure: str) -> list[tuple[Any, int, float]]:
    """(parameter, unit, sum of |w g| over its weights) of every unit there is, one by one."""
    found = []
    for name, parameter in loaded.anatomy.parameters.items():
        scores = (loaded.model.get_parameter(name).detach() * statistics[name].gradient).abs().flatten()
        if structure == "weight":
            found += [(parameter, index, score) for index, score in enumerate(scores.tolist())]
            continue
        for unit in range(unit_count(parameter, structure)):
            members = torch.from_numpy(unit_weights(parameter, structure, torch.tensor([unit]).numpy()))
            found.append((parameter, unit, float(scores[members].sum())))
    return found


@pytest.mark.parametrize("structure", ["weight", "row", "column", "head"])
@pytest.mark.parametrize("piece", [1 << 20, 100])
def test_a_structure_scores_the_sum_over_its_weights(
    loaded: Any, statistics: Any, structure: str, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cwa_engine.sensitivity.ranking._PIECE", piece)
    expected = sorted(summed(loaded, statistics, structure), key=lambda entry: -entry[2])
    k = min(12, len(expected))
    ranking = rank(loaded, statistics, "grad_x_weight", k, structure=structure)
    assert [row.score for row in ranking.weights] == pytest.approx([score for _, _, score in expected[:k]], rel=1e-5)
    for row in ranking.weights:
        assert row.target.startswith(row.parameter + "[")
        assert (":" in row.target) == (structure != "weight")


@pytest.mark.parametrize("scope", list(GROUPS))
def test_a_scope_has_the_best_of_each_of_its_groups(loaded: Any, statistics: Any, scope: str) -> None:
    groups = defaultdict(list)
    for parameter, unit, score in summed(loaded, statistics, "weight"):
        groups[GROUPS[scope](parameter)].append((score, parameter.name, unit))
    ranking = rank(loaded, statistics, "grad_x_weight", 3, scope=scope)
    assert len(ranking.weights) == sum(min(3, len(members)) for members in groups.values())
    parameters = loaded.anatomy.parameters
    for key, members in groups.items():
        rows = [row for row in ranking.weights if GROUPS[scope](parameters[row.parameter]) == key]
        assert [row.rank for row in rows] == list(range(1, len(rows) + 1))
        best = sorted((score for score, _, _ in members), reverse=True)[:3]
        assert [row.score for row in rows] == pytest.approx(best, rel=1e-5)
    assert [row.rank for row in ranking.weights] == sorted(row.rank for row in ranking.weights)
    assert {row.rank for row in ranking.top(1)} == {1}


def test_a_metric_of_linear_layers_ranks_nothing_else(loaded: Any) -> None:
    statistics = resident(loaded, sequences_of(loaded)[:2], Needs.INPUTS)
    ranking = rank(loaded, statistics, "wanda", 5)
    linear = {
        name
        for name, parameter in loaded.anatomy.parameters.items()
        if not parameter.is_vector and "wpe" not in name and "embed_positions" not in name
    }
    assert set(ranking.parameters) <= linear
    assert any("mlp" in name or "fc1" in name for name in ranking.parameters)


def test_scores_of_chosen_units_are_those_of_the_ranking(loaded: Any, statistics: Any) -> None:
    ranking = rank(loaded, statistics, "grad_x_weight", 200)
    chosen: dict[str, list[int]] = defaultdict(list)
    for row in ranking.weights:
        chosen[row.parameter].append(row.flat_index)
    units = {name: torch.tensor(sorted(indices)).numpy() for name, indices in chosen.items()}
    found = scores_at(loaded, statistics, METRICS["grad_x_weight"], "weight", units)
    expected = {(row.parameter, row.flat_index): row.score for row in ranking.weights}
    for name, scores in found.items():
        assert scores.tolist() == [expected[name, index] for index in units[name].tolist()]
