"""The question `stability`: the axis that moves a ranking is found, and what was clear beforehand tells nothing."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

import cwa_engine as cwa
from cwa_engine.base.errors import InvalidInput
from cwa_engine.records.run_report import RunReport
from cwa_engine.rows import HalfOverlap
from cwa_engine.studies.analysis.pairs import PairOverlap, overlaps_of, pairs_of
from cwa_engine.studies.answer import Answer, StudyRun
from cwa_engine.studies.registry import answered, study_question
from cwa_engine.studies.study import Cell, Study
from tests.engine.conftest import TEXTS, wrap
from tests.engine.study_runs import LLAMA, Planted, planted_run, study_runs, targets_in
from tests.models import tiny_model


def ranked(shared: int, other: int, metric: str = "taylor", **options: Any) -> RunReport:
    """A run whose top 20 has these many weights of a common list, and others of its own number."""
    top = targets_in(LLAMA, "down", 0, shared) + targets_in(LLAMA, "up", 1, 20 - shared, first=100 * other)
    options.setdefault("text_seed", options.get("dataset", "texts"))
    return planted_run("m", tops={metric: top}, topk=[20], **options)


def stable(runs: list[RunReport], *grid: str) -> Answer:
    return answered("stability", study_runs(runs, "model", *grid))


def rows(answer: Answer, table: str) -> Any:
    return next(entry.rows for entry in answer.tables if entry.table.name == table)


def test_the_axis_that_moves_the_ranking_most_is_named_with_what_is_shared_and_chance() -> None:
    runs = [
        ranked(18 if seed else 19, 10 * number + seed, seed=seed, dataset=dataset)
        if dataset == "a"
        else ranked(8, 10 * number + seed, seed=seed, dataset=dataset)
        for number, dataset in enumerate("ab")
        for seed in (0, 1)
    ]
    tops = [[w.target for w in run.topk()] for run in runs]
    answer = stable(runs, "dataset", "seed")
    by_axis = {row.axis: row for row in rows(answer, "stability.csv")}
    for axis, pairs in (("dataset", ((0, 2), (1, 3))), ("seed", ((0, 1), (2, 3)))):
        common = [len(set(tops[one]) & set(tops[other])) for one, other in pairs]
        assert by_axis[axis].shared == pytest.approx(np.mean(common))
        assert (by_axis[axis].least, by_axis[axis].most) == (min(common), max(common))
    pair = rows(answer, "stability_pairs.csv")[0]
    assert pair.p_value == pytest.approx(float(stats.hypergeom.sf(pair.common - 1, 4 * 10 * 64 * 64, 20, 20)), rel=1e-6)


def few_and_enough(seeds: int) -> list[RunReport]:
    """Runs by two datasets with nothing in common, and seeds that change few places."""
    tops = {"a": targets_in(LLAMA, "down", 0, 20), "b": targets_in(LLAMA, "q", 2, 20)}
    return [
        planted_run("m", tops={"taylor": top[: 20 - seed] + targets_in(LLAMA, "o", 3, seed, first=7 * seed)}, topk=[20],
                    seed=seed, dataset=name, text_seed=name)
        for name, top in tops.items()
        for seed in range(seeds)
    ]  # fmt: skip


def test_an_axis_moves_most_only_where_each_of_its_pairs_shares_less() -> None:
    runs = [ranked(19, 1, seed=0, dataset="a"), ranked(18, 2, seed=1, dataset="a")]
    runs += [ranked(5, 3, seed=0, dataset="b"), ranked(4, 4, seed=1, dataset="b")]
    answer = stable(runs, "dataset", "seed")
    # seeds share 18 with a and 4 with b, datasets 5 and 4: they overlap
    assert "no axis moves the ranking clearly more" in answer.sentence
    runs = few_and_enough(seeds=2)
    answer = stable(runs, "dataset", "seed")
    assert "that dataset moves the ranking most is not concluded from so few pairs" in answer.sentence
    assert any("by chance with p = 0.33" in said for said in answer.refused)  # 2 in 6 orders of four pairs
    answer = stable(few_and_enough(seeds=3), "dataset", "seed")
    assert "of these axes dataset moves the ranking most" in answer.sentence
    assert any("takes at least 6 models for 2 axes" in said for said in answer.refused)
    assert any("no agreement beyond chance was found" in found.sentence for found in answer.findings)


def test_rankings_that_could_not_differ_tell_nothing() -> None:
    seeds = [ranked(20, 0, "grad_x_weight", seed=seed) for seed in (0, 1)]
    answer = stable(seeds, "seed")
    assert "nothing is learned" in answer.sentence and "draws nothing by the seed" in answer.sentence
    same = [ranked(20, 0, "grad_x_weight", dataset=name, text_seed="one") for name in ("a", "b")]
    answer = stable(same, "dataset")
    assert "both runs scored the same texts" in answer.sentence
    assert any("told nothing new" in said for said in answer.refused)
    values = [ranked(20, 0, "magnitude", dataset=name) for name in ("a", "b")]
    assert "magnitude reads no texts" in stable(values, "dataset").sentence
    other_seeds = [ranked(18 + seed, seed, "taylor", seed=seed) for seed in (0, 1)]
    assert "18 with another seed" in stable(other_seeds, "seed").sentence


def test_an_axis_stands_beside_what_halves_of_the_texts_do() -> None:
    half = [HalfOverlap("grad_x_weight", 20, 12, 12, 10, 10, 0.1)]
    runs = [ranked(19, n, "grad_x_weight", dtype=dtype, halves=half) for n, dtype in enumerate(("float32", "bfloat16"))]
    said = next(f.sentence for f in stable(runs, "dtype").findings if "halves" in f.sentence)
    assert "share 10, so it moves the ranking less than halving the texts" in said


def test_damage_on_the_same_texts_is_paired_and_on_others_as_of_unrelated_texts() -> None:
    changes = np.random.default_rng(1).normal(0.5, 0.2, 32)
    damage = [
        [Planted("taylor", 20, changes=tuple(changes + 0.02 * seed + 0.001 * np.tile([1, -1], 16)))] for seed in (0, 1)
    ]
    paired = stable([ranked(20, 0, seed=seed, damage=damage[seed]) for seed in (0, 1)], "seed")
    (row,) = rows(paired, "stability_damage.csv")
    assert row.paired and row.difference == pytest.approx(-0.02) and row.high < 0
    assert any("differs in 1 of 1 pair" in found.sentence for found in paired.findings)
    unpaired = stable([ranked(20, 0, dataset=name, damage=damage[n]) for n, name in enumerate("ab")], "dataset")
    (row,) = rows(unpaired, "stability_damage.csv")
    reach = math.sqrt(2) * (1 + 2 / 32) * float(stats.t.ppf(0.975, 31)) * np.std(changes, ddof=1) / math.sqrt(32)
    assert not row.paired and row.difference - row.low == pytest.approx(reach, rel=0.01)
    assert any("does not differ clearly" in found.sentence for found in unpaired.findings)


def test_equal_damage_is_called_different_at_most_one_time_in_twenty() -> None:
    """Three runs on unrelated texts with skewed changes of the same mean: any of three pairs."""
    rng, wrong, trials = np.random.default_rng(3), 0, 100
    for _ in range(trials):
        runs = [
            ranked(
                20, 0, dataset=name, texts=24, damage=[Planted("taylor", 20, changes=tuple(rng.lognormal(0, 0.7, 24)))]
            )
            for name in "abc"
        ]
        found = rows(stable(runs, "dataset"), "stability_damage.csv")
        wrong += any(row.low > 0 or row.high < 0 for row in found)
    assert wrong / trials <= 0.05


def test_axes_that_move_a_ranking_alike_are_told_apart_at_most_one_time_in_twenty() -> None:
    """Scores are a truth and as much noise of one axis as of the other, three values each."""
    rng, wrong, trials = np.random.default_rng(4), 0, 60
    names = targets_in(LLAMA, "down", 0, 400)
    for _ in range(trials):
        truth, noise = rng.normal(size=400), rng.normal(size=(2, 3, 400))
        runs = []
        for number, (seed, dataset) in enumerate((s, d) for s in range(3) for d in range(3)):
            scores = truth + 0.5 * (noise[0, seed] + noise[1, dataset])
            top = [names[place] for place in np.argsort(-scores)[:20]]
            run = planted_run(
                "m", tops={"taylor": top}, topk=[20], seed=seed, dataset=str(dataset), text_seed=str(dataset)
            )
            runs.append(StudyRun(Cell(number + 1, {"seed": str(seed), "dataset": str(dataset)}, run.spec), run))
        wrong += "moves the ranking most" in answered("stability", runs).sentence
    assert wrong / trials <= 0.05


def test_a_study_in_which_nothing_varies_is_refused_before_it_runs() -> None:
    check = study_question("stability").check
    check(Study(grid={"model": ("gpt2",), "seed": (0, 1)}, run={"metrics": ["taylor"]}))
    with pytest.raises(InvalidInput, match="grad_x_weight draws nothing by the seed"):
        check(Study(grid={"model": ("gpt2",), "seed": (0, 1)}, run={"metrics": ["grad_x_weight"]}))
    for grid, said in (
        ({"model": ("gpt2", "opt")}, "nothing varies but the model"),
        ({"model": ("gpt2",), "seed": (0,)}, "nothing varies"),
        ({"model": ("gpt2",), "seed": (0, 1), "structure": ("weight", "row")}, "structure says what is ranked"),
    ):
        with pytest.raises(InvalidInput, match=said) as refused:
            check(Study(grid=grid))
        assert refused.value.hint


def test_too_few_runs_give_no_answer_and_no_traceback() -> None:
    assert "nothing is known" in stable([], "seed").sentence
    alone = stable([ranked(20, 0, seed=1)], "seed")
    assert "nothing is known" in alone.sentence and alone.refused


def test_runs_of_a_real_model_on_other_texts_are_answered() -> None:
    runs = []
    for number, limit in enumerate((4, 8, 6), start=1):
        report = cwa.analyze(wrap(tiny_model("llama")), texts=TEXTS, eval_limit=limit, topk=[10], control_seeds=2)
        runs.append(StudyRun(Cell(number, {"eval_limit": str(limit)}, report.spec), report))
    answer = answered("stability", runs)
    assert "with another eval_limit" in answer.sentence
    assert any("some may be the same" in said for said in answer.refused)
    told: list[PairOverlap] = list(overlaps_of(pairs_of(runs), "grad_x_weight"))
    assert len(told) == 3
    for entry in answer.tables:
        assert entry.table.from_bytes(entry.table.to_bytes(entry.rows)) == list(entry.rows)


def test_a_pair_counts_once_where_the_rest_of_the_grid_changes_nothing_in_its_rankings() -> None:
    grid = [(dtype, seed) for dtype in ("float32", "bfloat16") for seed in (0, 1)]
    for metric, pairs in (("grad_x_weight", 1), ("taylor", 2)):  # seeds draw nothing, and signs of tokens
        runs = [ranked(19, 1 if dtype == "float32" else 2, metric, dtype=dtype, seed=seed) for dtype, seed in grid]
        of_dtype = next(row for row in rows(stable(runs, "dtype", "seed"), "stability.csv") if row.axis == "dtype")
        assert (of_dtype.pairs - of_dtype.left_out, of_dtype.shared) == (pairs, 19)


def test_a_collapse_is_named_and_enters_no_figure() -> None:
    damage = [[Planted("taylor", 20, delta=delta)] for delta in (0.5, math.inf)]
    answer = stable([ranked(20, seed, seed=seed, damage=damage[seed]) for seed in (0, 1)], "seed")
    assert rows(answer, "stability_damage.csv") == []
    assert any("the loss is not finite" in said for said in answer.refused)
