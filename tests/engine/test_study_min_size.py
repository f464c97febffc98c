"""The question `min-size`: the smallest model that passes with all larger ones, by thresholds that are stated."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

import cwa_engine as cwa
from cwa_engine.base.errors import InvalidInput
from cwa_engine.questions.stability import Agreement, Stability
from cwa_engine.records.run_report import RunReport
from cwa_engine.rows import HalfOverlap
from cwa_engine.studies.answer import Answer
from cwa_engine.studies.questions.min_size import RULE
from cwa_engine.studies.registry import answered, study_question
from cwa_engine.studies.study import Study
from tests.engine.conftest import TEXTS, wrap
from tests.engine.study_runs import GPT2, LLAMA, NEOX, Planted, planted_run, study_runs, targets_in
from tests.models import tiny_model

METRIC, K = "grad_x_weight", 20
UNITS = 4 * (64 * 64 * (1 + 1 + 4 + 4))  # weights of the planted models' blocks


def model(
    millions: int, common: int | None = 15, delta: float = 0.5, worst: float | None = 0.01, **others: Any
) -> RunReport:
    """Of so many millions of weights, whose halves share `common` of the top 20; `delta` beside `worst` of its controls."""
    halves = [] if common is None else [HalfOverlap(METRIC, K, common, common, common, common, K * K / UNITS)]
    layout = others.get("layout", LLAMA)
    return planted_run(
        f"m{millions}",
        parameters=millions * 1_000_000,
        damage=[Planted(METRIC, K, delta, worst=worst)],
        tops={METRIC: targets_in(layout, "down", 1, K)},
        halves=halves,
        **others,
    )


def min_size(*runs: RunReport) -> Answer:
    return answered("min-size", study_runs(runs))


def passing(answer: Answer) -> dict[str, bool]:
    return {row.model: row.passes for row in answer.tables[0].rows}


def test_the_smallest_that_passes_with_all_larger_ones_is_the_answer() -> None:
    answer = min_size(model(1, common=3), model(10), model(100), model(1000, common=20))
    assert "m10 (10M) is the smallest reliable model: it passes, as all 2 larger ones do" in answer.sentence
    assert "m1 fails, as the halves share 3 of 20" in answer.sentence
    assert passing(answer) == {"m1": False, "m10": True, "m100": True, "m1000": True}


@pytest.mark.parametrize(
    ("failing", "why"),
    [
        ({"common": 9}, "the halves share 9 of 20"),
        ({"worst": 0.6}, "indistinguishable beside its controls"),
        ({"delta": -0.5}, "helpful beside its controls"),
        ({"worst": None}, "not tested beside its controls"),
        ({"common": None}, "not ranked by halves"),
        ({"nll": 10.8, "vocabulary": 50_000}, "no better than guessing"),
    ],
)
def test_a_model_fails_by_each_part_of_the_rule_and_says_which(failing: dict[str, Any], why: str) -> None:
    answer = min_size(model(1, **failing), model(10))
    assert "m10 (10M) is the smallest reliable model" in answer.sentence
    assert why in answer.sentence


def test_exactly_half_in_common_is_enough() -> None:
    assert passing(min_size(model(1, common=10), model(10))) == {"m1": True, "m10": True}


def test_a_larger_model_that_fails_ends_the_sequence_and_is_said() -> None:
    answer = min_size(model(1), model(10, common=2), model(100))
    assert "m100 (100M) is the smallest reliable model; m10 fails" in answer.sentence
    assert any("not monotone: m1 would pass, but m10" in finding.sentence for finding in answer.findings)
    none = min_size(model(1), model(10), model(100, worst=2.0))
    assert "none of 3 models is reliable: m100 fails" in none.sentence
    assert any("m1 and m10 would pass, but m100" in finding.sentence for finding in none.findings)


def test_a_small_model_that_was_not_tried_is_said() -> None:
    assert "a smaller one was not tried" in min_size(model(1), model(10)).sentence


def test_models_of_equal_size_pass_together() -> None:
    twin = planted_run(
        "twin", parameters=10_000_000, damage=[Planted(METRIC, K, 0.5)], tops={METRIC: targets_in(LLAMA, "down", 1, K)},
        halves=[HalfOverlap(METRIC, K, 1, 1, 1, 1, 0.1)],
    )  # fmt: skip
    assert "m100 (100M) is the smallest reliable model; twin fails" in min_size(model(10), twin, model(100)).sentence


def test_what_chance_gives_is_that_of_random_sets_of_all_ranked_weights() -> None:
    row = min_size(model(1, common=2), model(10)).tables[0].rows[0]
    assert row.chance == pytest.approx(K * K / UNITS)
    assert row.p_value == pytest.approx(stats.hypergeom.sf(1, UNITS, K, K), rel=1e-6)
    assert row.share == 0.1


def test_half_of_a_few_weights_can_be_chance() -> None:
    """Of 40 weights in all, two random sets of 20 have half in common."""
    small = planted_run(
        "small", parameters=1_000_000, width=2, layers=1, damage=[Planted(METRIC, K, 0.5)], tops={METRIC: []},
        halves=[HalfOverlap(METRIC, K, 11, 11, 11, 11, 10.0)],
    )  # fmt: skip
    answer = min_size(small, model(10))
    assert "random sets share as much" in answer.sentence
    assert answer.tables[0].rows[0].p_value == pytest.approx(stats.hypergeom.sf(10, 40, K, K))


def test_halves_of_a_stability_run_serve_as_well() -> None:
    """Jaccard 15 / 25 of two sets of 20 is 15 in common."""
    agreement = Agreement(METRIC, K, 1, 2, 15 / 25, 0.001, 0.7, 0.5)
    run = model(1, common=None, answers=[Stability((agreement,), {})], stability="halves")
    assert min_size(run, model(10)).tables[0].rows[0].common == 15


def test_a_model_without_stable_weights_or_damage_passes_in_at_most_one_of_twenty_studies() -> None:
    """Four models, none reliable: the halves agree at random, and the critical set is one more draw of its 19 controls."""
    rng, wrong = np.random.default_rng(3), 0
    for _ in range(80):
        runs = []
        for millions in (1, 10, 100, 1000):
            draws = abs(rng.normal(size=20))
            common = int(rng.hypergeometric(K, UNITS - K, K))
            runs.append(model(millions, common, float(draws[0]), float(draws[1:].max())))
        wrong += "is the smallest reliable model" in min_size(*runs).sentence
    assert wrong == 0  # both parts must err at once


def test_the_controls_alone_let_through_one_of_twenty_models_and_no_more_for_several() -> None:
    """All rankings are stable and no critical set is more than its controls; without a sequence 4 models would give 19 %."""
    rng, wrong, times = np.random.default_rng(4), 0, 200
    for _ in range(times):
        draws = abs(rng.normal(size=(4, 20)))
        runs = [model(10**n, 20, float(row[0]), float(row[1:].max())) for n, row in enumerate(draws)]
        wrong += "is the smallest reliable model" in min_size(*runs).sentence
    assert wrong <= 20  # 200 times 5 % is 10; 38 without


def test_planted_reliable_models_are_found() -> None:
    rng, found = np.random.default_rng(5), 0
    for _ in range(40):
        runs = [model(10**n, int(rng.binomial(K, 0.2 if n < 2 else 0.8)), 0.5) for n in range(4)]
        found += "m100 (100M) is the smallest reliable model" in min_size(*runs).sentence
    assert found >= 38


def test_families_that_are_mixed_are_named_by_the_guide_or_by_their_layout() -> None:
    answer = min_size(model(1, layout=NEOX), model(10))
    assert any("gpt_neox.layers and model.layers (by the names of their parameters)" in why for why in answer.refused)
    assert not any("families" in why for why in min_size(model(1), model(10)).refused)
    known = [
        planted_run(name, parameters=n, layout=layout, damage=[Planted(METRIC, K)])
        for name, n, layout in (("gpt2", 124_000_000, GPT2), ("EleutherAI/pythia-410m", 405_000_000, NEOX))
    ]
    assert any("(by the model guide)" in why for why in min_size(*known).refused)


def test_every_further_series_is_told_as_a_test_of_its_own() -> None:
    runs = [
        planted_run(f"m{n}", parameters=n, damage=[Planted(METRIC, 10), Planted(METRIC, K)], halves=[])
        for n in (1000, 2000)
    ]
    assert any("top 10 by grad_x_weight, a test of its own" in why for why in min_size(*runs).refused)


def test_the_thresholds_are_in_the_rule() -> None:
    assert min_size(model(1)).rule == RULE
    assert "50%" in RULE and "p <= 0.05" in RULE


@pytest.mark.parametrize(
    ("grid", "run", "why"),
    [
        ({"model": ("a",)}, {}, "this study has 1"),
        ({"model": ("a", "b")}, {"perturbations": []}, "measures no damage"),
        ({"model": ("a", "b")}, {"controls": []}, "without controls"),
        ({"model": ("a", "b")}, {"control_seeds": 5}, "5 draws"),
        ({"model": ("a", "b")}, {"scope": "per_layer"}, "all weights together"),
    ],
)
def test_a_study_that_cannot_answer_is_refused_before_it_runs(grid: Any, run: Any, why: str) -> None:
    with pytest.raises(InvalidInput, match=why) as refused:
        study_question("min-size").check(Study(question="min-size", grid=grid, run=run))
    assert refused.value.hint


def test_real_runs_of_tiny_models_have_an_answer() -> None:
    texts = [f"{text} This is number {number} of its kind." for number in range(4) for text in TEXTS]
    runs = [
        cwa.analyze(wrap(tiny_model(name)), texts=texts, topk=[5], control_seeds=19, matrices=False, stability="halves")
        for name in ("llama", "gpt2")
    ]
    rows = {row.parameters: row for row in min_size(*runs).tables[0].rows}
    for run in runs:
        halves = next(entry for entry in run.summary.halves if entry.k == 5)
        row = rows[run.model.parameters]
        assert (row.common, row.outcome) == (halves.common, run.verdicts[0].outcome)
        assert row.passes == (
            halves.common >= 3 and run.verdicts[0].outcome == "harmful" and not run.baseline.is_guessing
        )
