"""What is made of many weights at once, against the same one by one."""

from __future__ import annotations

import csv
import dataclasses
import functools
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cwa_engine.base.table import Alike, RowsAlike, Table
from cwa_engine.damage.cases import comparisons
from cwa_engine.methods.controls import CONTROLS, Selection
from cwa_engine.methods.metrics import Needs
from cwa_engine.models.anatomy import Parameter
from cwa_engine.models.structures import first_weights, target_names, unit_count, units_of
from cwa_engine.pipeline import analyze
from cwa_engine.records.export import run_tables
from cwa_engine.rows import ControlDraw
from cwa_engine.sensitivity.gradients import resident
from cwa_engine.sensitivity.ranking import Ranker, rank
from cwa_engine.spec import RunSpec
from cwa_engine.targets import STRUCTURES
from tests.engine.test_controls import cases, population
from tests.engine.test_metrics import sequences_of
from tests.engine.test_structures import grid, parameters


@functools.cache
def members(parameter: Parameter, structure: str) -> list[tuple[str, list[int]]]:
    """(target, flat indices) of every unit, from the tensor laid out as [experts, out, in]."""
    found = []
    for expert, matrix in enumerate(grid(parameter)):
        lead = f"{expert}," if parameter.experts else ""
        outs, ins = matrix.shape
        if parameter.is_vector:
            units = [(f"{o}", matrix[o]) for o in range(outs)]
        elif structure == "weight":
            units = [(f"{o},{i}", matrix[o, i : i + 1]) for o in range(outs) for i in range(ins)]
        elif structure == "row":
            units = [(f"{o},:", matrix[o]) for o in range(outs)]
        elif structure == "column":
            units = [(f":,{i}", matrix[:, i]) for i in range(ins)]
        else:
            size = parameter.head_size or 1
            units = [(f":,{i}:{i + size}", matrix[:, i : i + size]) for i in range(0, ins, size)]
        found += [(f"{parameter.name}[{lead}{said}]", sorted(inside.flatten().tolist())) for said, inside in units]
    return found


@given(parameters(), st.sampled_from(STRUCTURES), st.randoms(use_true_random=False))
def test_units_are_named_and_found_all_at_once_as_one_by_one(parameter: Parameter, structure: str, dice: Any) -> None:
    if not unit_count(parameter, structure):
        return
    slow = members(parameter, structure)
    by_name = dict(slow)
    units = np.array(dice.sample(range(len(slow)), len(slow)))
    first = first_weights(parameter, structure, units)
    names = target_names(parameter, structure, first)
    assert sorted(names) == sorted(by_name)
    for unit, flat_index, name in zip(units.tolist(), first.tolist(), names, strict=True):
        assert by_name[name][0] == flat_index
        assert set(units_of(parameter, structure, np.array(by_name[name])).tolist()) == {unit}


@pytest.mark.parametrize("scope", ["global", "per_parameter"])
@pytest.mark.parametrize("structure", ["weight", "row", "column", "head"])
def test_every_row_of_a_ranking_says_what_looking_up_its_weight_alone_says(
    llama: Any, structure: str, scope: str
) -> None:
    statistics = resident(llama, sequences_of(llama)[:2], Needs.GRADIENT)
    ranking = rank(llama, statistics, "grad_x_weight", 4, True, structure, scope)
    assert ranking.weights
    for row in (*ranking.weights, *ranking.lowest):
        parameter = llama.anatomy.parameters[row.parameter]
        inside = next(inside for target, inside in members(parameter, structure) if target == row.target)
        place = parameter.place(inside[0])
        values = llama.model.get_parameter(row.parameter).detach().flatten()[inside]
        assert row.flat_index == inside[0]
        assert row.value == (float(values[0]) if structure == "weight" else float(values.double().norm()))
        assert row.out_feature == (place.out_feature if structure in ("weight", "row") else None)
        assert row.in_feature == (place.in_feature if structure in ("weight", "column") else None)
        assert (row.layer, row.component, row.expert) == (parameter.layer, parameter.component, place.expert)
        assert row.standard_error is None
        assert row.stable is None


def drawn_by_sets(rng: np.random.Generator, size: int, wanted: int, taken: set[int]) -> list[int]:
    """As `random` has drawn from the first version on, with Python's own sets."""
    if size - len(taken) < wanted:
        taken = set()
    if size <= 4 * (wanted + len(taken)):
        free = np.array([number for number in range(size) if number not in taken])
        return sorted(rng.choice(free, wanted, replace=False).tolist())
    drawn: set[int] = set()
    while len(drawn) < wanted:
        drawn = (drawn | set(rng.integers(0, size, wanted - len(drawn)).tolist())) - taken
    return sorted(drawn)


@given(cases(), st.integers(1, 2000), st.integers(0, 3))
def test_draws_are_those_of_earlier_versions(case: tuple[Selection, dict[str, int]], factor: int, seed: int) -> None:
    critical, small = case
    sizes = {name: size * factor for name, size in small.items()}
    drawn = CONTROLS["random_matched"].draw(critical, population(sizes), np.random.default_rng(seed))
    rng = np.random.default_rng(seed)
    slow = {name: drawn_by_sets(rng, sizes[name], len(taken), set(taken.tolist())) for name, taken in critical.items()}
    assert {name: units.tolist() for name, units in drawn.items()} == slow


words = st.text('ab%,"\n\r\0 ', max_size=5)


@given(words, words, st.lists(st.tuples(words, st.lists(st.integers(0, 2**31 - 1), max_size=4)), max_size=4))
def test_rows_that_are_alike_are_written_as_rows_are(metric: str, control: str, named: Any) -> None:
    blocks = []
    for seed, (name, numbers) in enumerate(named):
        form = ControlDraw(metric, 3, control, seed or None, name.replace("%", "%%") + "[%d,:]")
        blocks.append(Alike(form, "target", np.array(numbers, dtype=np.int32).reshape(-1, 1)))
    alike = RowsAlike(blocks)
    plain = [
        ControlDraw(metric, 3, control, seed or None, f"{name}[{number},:]")
        for seed, (name, numbers) in enumerate(named)
        for number in numbers
    ]
    table = Table("controls.csv", ControlDraw)
    assert list(alike) == plain
    assert [alike[place] for place in range(-len(plain), len(plain))] == plain + plain
    assert len(alike) == len(plain)
    assert table.to_bytes(alike) == table.to_bytes(plain)


@pytest.mark.parametrize("structure", ["weight", "row", "head"])
def test_controls_are_written_as_they_were_drawn(llama: Any, data_file: Path, structure: str) -> None:
    asked = RunSpec(
        model="tiny", data_file=data_file, topk=(1, 2), metrics=("grad_x_weight",), structure=structure, seq_len=16,
        controls=("random", "random_matched"), control_seeds=2, batch_size=1,
    )  # fmt: skip
    result = analyze(llama, asked)
    expected = [["metric", "k", "control", "seed", "target"]]
    for comparison in comparisons(llama, result.rankings, asked):
        for draw in comparison.draws:
            for name, units in draw.units.items():
                names = [target for target, _ in members(llama.anatomy.parameters[name], structure)]
                expected += [
                    [comparison.metric, str(comparison.k), draw.control, str(draw.seed), names[unit]]
                    for unit in units.tolist()
                ]
    content = dict(run_tables(result))["controls.csv"].decode()
    assert list(csv.reader(io.StringIO(content))) == expected
    assert len(expected) == 1 + len(result.rankings) * 4 * (1 + 2)


def test_errors_of_estimates_are_those_of_the_weights_that_are_selected(llama: Any) -> None:
    statistics = resident(llama, sequences_of(llama)[:2], Needs.GRADIENT)
    generator = torch.Generator().manual_seed(0)
    parts = []
    for name, stats in statistics.items():
        shape = stats.gradient.shape
        estimate, error = torch.rand(shape, generator=generator), torch.rand(shape, generator=generator)
        parts.append({name: dataclasses.replace(stats, hessian=estimate, hessian_error=error)})
    ranker = Ranker(llama, "hessian", 50)
    for part in parts:
        ranker.offer(part)
    errors = {name: stats.hessian_error.flatten() for part in parts for name, stats in part.items()}
    found = [row.standard_error for row in ranker.ranking().weights]
    assert found == [float(errors[row.parameter][row.flat_index]) for row in ranker.ranking().weights]
    assert len(set(found)) > 40
