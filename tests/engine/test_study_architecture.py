"""The question `architecture`: planted families are told apart, random ones are not, and too few models give no test."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest

import cwa_engine as cwa
from cwa_engine.base.errors import InvalidInput
from cwa_engine.records.run_report import RunReport
from cwa_engine.studies.analysis.labels import smallest_p, within_between
from cwa_engine.studies.answer import Answer
from cwa_engine.studies.registry import answered, study_question
from cwa_engine.studies.study import Study
from tests.engine.conftest import TEXTS, wrap
from tests.engine.study_runs import GPT2, LLAMA, NEOX, Layout, Planted, planted_run, study_runs, targets_in
from tests.models import tiny_model

ENDS = "embedding or head"
ALIKE = {"q": "qkv", "k": "qkv", "v": "qkv", "gate": "up", "embedding": ENDS, "head": ENDS}  # stored otherwise
METRIC, K = "grad_x_weight", 40
NAMES = {LLAMA: "llama", NEOX: "neox", GPT2: "gpt2"}


def model(
    layout: Layout, number: int, places: dict[tuple[str, int], int], delta: float = 0.5, **others: Any
) -> RunReport:
    """A model whose top 40 has so many weights in each (component, layer)."""
    targets = [t for (part, layer), count in places.items() for t in targets_in(layout, part, layer, count)]
    name = f"{NAMES[layout]}{number}"
    planted = Planted(METRIC, K, delta, seed=number)
    return planted_run(
        name, layout=layout, damage=[planted], tops={METRIC: targets}, parameters=10**6 * (1 + number), **others
    )


def drawn(layout: Layout, number: int, rng: np.random.Generator, down: float) -> RunReport:
    """Weights drawn one by one: of the down projections with this probability, of the output projections else."""
    count = int(rng.binomial(K, down))
    layers = rng.multinomial(count, [0.25] * 4)
    others = rng.multinomial(K - count, [0.25] * 4)
    places = {("down", layer): int(n) for layer, n in enumerate(layers)}
    return model(layout, number, places | {("o", layer): int(n) for layer, n in enumerate(others)})


def architecture(*runs: RunReport) -> Answer:
    return answered("architecture", study_runs(runs))


def rows(answer: Answer, table: str) -> Any:
    return next(entry.rows for entry in answer.tables if entry.table.name == table)


def families(downs: dict[Layout, float], each: int, rng: np.random.Generator) -> list[RunReport]:
    return [drawn(layout, number, rng, down) for layout, down in downs.items() for number in range(each)]


def test_planted_families_are_told_apart_by_component_and_not_by_depth() -> None:
    answer = architecture(*families({LLAMA: 0.9, NEOX: 0.3, GPT2: 0.6}, 3, np.random.default_rng(1)))
    assert "families have their critical weights in other places" in answer.sentence
    assert ", by component (p = " in answer.sentence and "by component and" not in answer.sentence
    assert "all 1,680 divisions of the models" in answer.sentence
    assert any("by the names of their parameters" in why for why in answer.refused)


def test_models_that_differ_by_chance_alone_are_no_families() -> None:
    answer = architecture(*families({LLAMA: 0.6, NEOX: 0.6}, 4, np.random.default_rng(2)))
    assert "no difference between families was found" in answer.sentence


def test_families_that_are_none_are_told_apart_in_one_of_twenty_studies_and_planted_ones_in_most() -> None:
    def found(difference: float, times: int) -> float:
        rng = np.random.default_rng(3)
        told = 0
        for _ in range(times):
            downs = {LLAMA: 0.5 + difference, NEOX: 0.5 - difference}
            answer = architecture(*families(downs, 4, rng))
            told += "have their critical weights in other places" in answer.sentence
        return told / times

    assert found(0.0, 60) <= 0.12
    assert found(0.2, 15) >= 0.8


def test_the_test_over_families_counts_all_divisions_of_the_models() -> None:
    rng = np.random.default_rng(4)
    points, labels = rng.normal(size=7), list("aaabbcc")
    distances = abs(points[:, None] - points[None, :])

    def gap(order: tuple[str, ...]) -> float:
        pairs = list(itertools.combinations(range(7), 2))
        near = [distances[i, j] for i, j in pairs if order[i] == order[j]]
        far = [distances[i, j] for i, j in pairs if order[i] != order[j]]
        return float(np.mean(far) - np.mean(near))

    orders = set(itertools.permutations(labels))
    found = within_between(distances, labels)
    assert (found.exact, found.divisions) == (True, len(orders))
    assert found.between - found.within == pytest.approx(gap(tuple(labels)))
    assert found.p_value == pytest.approx(np.mean([gap(order) >= gap(tuple(labels)) - 1e-12 for order in orders]))


def test_many_models_are_divided_at_random_with_a_p_close_to_the_exact_one() -> None:
    points = np.concatenate([np.random.default_rng(5).normal(size=10), np.random.default_rng(6).normal(1.2, size=10)])
    found = within_between(abs(points[:, None] - points[None, :]), ["a"] * 10 + ["b"] * 10)
    assert not found.exact and 1e-4 <= found.p_value < 0.05


@pytest.mark.parametrize(
    ("labels", "least"),
    [("aabb", 2 / 6), ("aaabbb", 2 / 20), ("aaaabbbb", 2 / 70), ("aab", 1 / 3), ("aaabbbccc", 6 / 1680)],
)
def test_the_smallest_p_is_that_of_families_that_could_not_be_further_apart(labels: str, least: float) -> None:
    assert smallest_p(list(labels)) == pytest.approx(least)
    numbers = np.array([100 * ord(label) + place for place, label in enumerate(labels)], dtype=float)
    found = within_between(abs(numbers[:, None] - numbers[None, :]), list(labels))
    assert found.p_value >= least - 1e-12


@pytest.mark.parametrize(
    ("counts", "why"),
    [
        ({LLAMA: 1, NEOX: 1, GPT2: 1}, "one model of each family"),
        ({LLAMA: 3}, "all models are of one family"),
        ({LLAMA: 3, NEOX: 3}, "6 models of 2 families can give no p below 0.1"),
    ],
)
def test_too_few_models_of_a_family_give_no_test_of_families(counts: dict[Layout, int], why: str) -> None:
    rng = np.random.default_rng(7)
    runs = [drawn(layout, number, rng, 0.5) for layout, count in counts.items() for number in range(count)]
    answer = architecture(*runs)
    assert why in answer.sentence
    assert any(why in reason for reason in answer.refused)
    assert not rows(answer, "family_tests.csv")


def test_one_model_under_several_names_is_not_several_models_of_a_family() -> None:
    rng = np.random.default_rng(10)
    runs = families({LLAMA: 0.9, NEOX: 0.3}, 4, rng)
    copy = model(LLAMA, 9, {("down", 0): K}, files=runs[0].model.files)
    assert "llama0 and llama9 are the same files" in architecture(*runs, copy).sentence


def test_two_profiles_are_as_far_apart_as_their_shares() -> None:
    first = model(LLAMA, 1, {("down", 0): 30, ("q", 3): 10})
    second = model(NEOX, 2, {("down", 0): 10, ("qkv", 3): 20, ("o", 1): 10})
    answer = architecture(first, second)
    by = {row.by: row for row in rows(answer, "profile_distances.csv")}
    assert by["component"].distance == pytest.approx((abs(30 - 10) + abs(10 - 20) + 10) / 40 / 2)
    assert by["component"].overlap == pytest.approx(0.5)
    assert by["depth"].distance == pytest.approx((20 + 10 + 10) / 40 / 2)
    assert "llama1 and neox2 differ in components (50% apart" in answer.sentence


def test_chance_of_a_distance_is_that_of_random_divisions() -> None:
    first = model(LLAMA, 1, {("down", 0): 30, ("o", 0): 10})
    second = model(NEOX, 2, {("down", 0): 20, ("o", 0): 20})
    row = next(row for row in rows(architecture(first, second), "profile_distances.csv") if row.by == "component")
    exact = {n: math.comb(50, n) * math.comb(30, 40 - n) / math.comb(80, 40) for n in range(10, 41)}
    assert row.expected == pytest.approx(sum(p * abs(2 * n - 50) / 40 for n, p in exact.items()), rel=0.05)
    assert row.p_value == pytest.approx(sum(p for n, p in exact.items() if abs(2 * n - 50) >= 10), abs=0.02)


def test_shares_are_of_all_models_and_add_up_to_one() -> None:
    first = model(LLAMA, 1, {("down", 0): 30, ("q", 3): 10})
    answer = architecture(first, model(NEOX, 2, {("qkv", 3): 40}))
    shares = [row for row in rows(answer, "profiles.csv") if row.by == "component"]
    assert {row.part for row in shares} == {"down", "qkv", "o", "up"}
    for name in ("llama1", "neox2"):
        mine = [row for row in shares if row.model == name]
        assert sum(row.share for row in mine) == pytest.approx(1)
        assert sum(row.eligible for row in mine) == pytest.approx(1)
    assert next(row.share for row in shares if (row.model, row.part) == ("llama1", "qkv")) == 0.25


def test_many_pairs_are_corrected_for_their_number() -> None:
    rng = np.random.default_rng(8)
    pairs = [
        r for r in rows(architecture(*families({LLAMA: 0.5}, 4, rng)), "profile_distances.csv") if r.by == "component"
    ]
    least = min(pairs, key=lambda row: row.p_value)
    assert len(pairs) == 6
    assert least.p_holm == pytest.approx(min(1, 6 * least.p_value))


def test_families_whose_sizes_do_not_meet_are_said_to_be_confounded_with_size() -> None:
    rng = np.random.default_rng(9)
    runs = [drawn(LLAMA, n, rng, 0.5) for n in range(4)] + [drawn(NEOX, n, rng, 0.5) for n in range(10, 14)]
    assert any("do not meet in size" in why for why in architecture(*runs).refused)


def test_damage_stands_side_by_side_in_bits_per_byte() -> None:
    places = {("down", 0): K}
    runs = [
        model(LLAMA, 1, places, 0.5, bits_per_byte=1.2),
        model(NEOX, 2, places, 0.9, tokens=30, bits_per_byte=1.5),
        model(GPT2, 3, places, math.inf, tokens=31),
    ]
    answer = architecture(*runs)
    damage = {row.model: row for row in rows(answer, "family_damage.csv")}
    assert damage["llama1"].damage == pytest.approx(0.5 * 1.2 / 3)
    assert damage["neox2"].damage == pytest.approx(0.9 * 1.5 / 3)
    assert (damage["gpt23"].damage, damage["gpt23"].collapsed) == (None, True)
    assert any("in bits per byte" in f.sentence and "gpt23 beyond all numbers" in f.sentence for f in answer.findings)


def test_the_guide_names_families_where_it_knows_all_models() -> None:
    runs = [
        planted_run(name, layout=layout, tops={METRIC: targets_in(layout, "down", 1, K)}, parameters=n)
        for name, layout, n in (("gpt2", GPT2, 124), ("gpt2-medium", GPT2, 355), ("EleutherAI/pythia-410m", NEOX, 405))
    ]
    counts = Counter(row.family for row in rows(architecture(*runs), "profiles.csv") if row.by == "component")
    assert len(counts) == 2 and "gpt_neox.layers" not in counts
    tuned = planted_run("mine", layout=GPT2, tops={METRIC: targets_in(GPT2, "down", 1, K)})
    named = {row.family for row in rows(architecture(*runs, tuned), "profiles.csv")}
    assert named == {"transformer.h", "gpt_neox.layers"}


def test_nothing_to_compare_is_said() -> None:
    assert "nothing is known" in architecture().sentence
    assert "nothing is known" in architecture(model(LLAMA, 1, {("down", 0): K})).sentence


@pytest.mark.parametrize(
    ("grid", "run", "why"),
    [
        ({"model": ("a",)}, {}, "this study has 1"),
        ({"model": ("a", "b")}, {"weights": ["x[1,2]"]}, "lie where you chose"),
    ],
)
def test_a_study_that_cannot_answer_is_refused_before_it_runs(grid: Any, run: Any, why: str) -> None:
    with pytest.raises(InvalidInput, match=why):
        study_question("architecture").check(Study(question="architecture", grid=grid, run=run))


def test_real_runs_of_tiny_models_have_an_answer_with_the_shares_of_their_rankings() -> None:
    texts = [f"{text} This is number {number} of its kind." for number in range(2) for text in TEXTS]
    runs = [
        cwa.analyze(wrap(tiny_model(name)), texts=texts, topk=[20], control_seeds=2, matrices=False)
        for name in ("llama", "gpt2", "neox", "opt")
    ]
    answer = architecture(*runs)
    assert "one model of each family" in answer.sentence
    found = rows(answer, "profiles.csv")
    for run in runs:
        merged = Counter(ALIKE.get(weight.component, weight.component) for weight in run.topk())
        mine = {r.part: r.count for r in found if (r.parameters, r.by) == (run.model.parameters, "component")}
        assert {part: count for part, count in mine.items() if count} == merged
