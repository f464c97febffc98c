"""The question `scaling`: planted laws are found with their exponents, planted others refused, and nothing is left unsaid."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
import pytest
from scipy import stats

import cwa_engine as cwa
from cwa_engine.base.errors import InvalidInput
from cwa_engine.questions.critical_set import CriticalSet, CriticalSetStep
from cwa_engine.records.run_report import RunReport
from cwa_engine.studies.answer import Answer
from cwa_engine.studies.registry import answered, study_question
from cwa_engine.studies.study import Study
from tests.engine.conftest import TEXTS, wrap
from tests.engine.study_runs import NEOX, Planted, half_interval, planted_run, study_runs
from tests.models import tiny_model

SIZES = [1_000_000, 3_000_000, 10_000_000, 30_000_000, 100_000_000]


def damaged(size: int, delta: float, error: float = 0.05, **others: Any) -> RunReport:
    """A model of this size, with an error that is this share of its damage; texts differ as the size says."""
    planted = Planted(k=10, delta=delta, error=abs(delta) * error if math.isfinite(delta) else 0.0, seed=size)
    return planted_run(f"m{size // 1_000_000}", parameters=size, damage=[planted], **others)


def scaling(*runs: RunReport) -> Answer:
    return answered("scaling", study_runs(runs))


def rows(answer: Answer, table: str) -> Any:
    return next(entry.rows for entry in answer.tables if entry.table.name == table)


def law(size: int) -> float:
    return 2 * (size / 1e6) ** -0.3


def test_a_planted_power_law_is_found_with_its_exponent() -> None:
    answer = scaling(*(damaged(size, law(size)) for size in SIZES))
    assert "falls with size as a power law over 5 models from 1M to 100M parameters" in answer.sentence
    assert "is not rejected" in answer.sentence
    fit = next(row for row in rows(answer, "scaling_fits.csv") if row.law == "power law")
    assert fit.slope == pytest.approx(-0.3, abs=1e-9)
    assert fit.low < -0.3 < fit.high < 0
    assert not answer.refused


def test_the_table_has_each_models_damage_with_its_interval_and_its_worst_control() -> None:
    answer = scaling(*(damaged(size, law(size)) for size in reversed(SIZES)))
    points = rows(answer, "scaling.csv")
    assert [row.parameters for row in points] == SIZES
    for row, size in zip(points, SIZES, strict=True):
        assert row.damage == pytest.approx(law(size))
        assert row.high - row.damage == pytest.approx(half_interval(0.05 * law(size), 32))
        assert row.ratio == pytest.approx(law(size) / 0.01)
        assert row.power_law == pytest.approx(law(size))
        assert (row.unit, row.outcome, row.worst_control) == ("nats per token", "harmful", 0.01)


def test_where_texts_cannot_be_paired_the_fit_is_weighted_by_each_runs_own_interval() -> None:
    values, errors, tokens = [2.0, 1.0, 0.9, 0.4, 0.3], [0.3, 0.05, 0.05, 0.05, 0.1], [20, 21, 20, 20, 20]
    runs = [
        damaged(size, value, error, tokens=count, truncated=1)
        for size, value, error, count in zip(SIZES, values, errors, tokens, strict=True)
    ]
    answer = scaling(*runs)
    fit = next(row for row in rows(answer, "scaling_fits.csv") if row.law == "power law")
    line = np.polyfit(np.log(SIZES), np.log(values), 1, w=1 / np.array(errors))
    rest = (np.log(values) - np.polyval(line, np.log(SIZES))) / errors
    assert fit.misfit == pytest.approx(float(rest @ rest), rel=1e-3)  # t is tabled to four digits
    assert "did not read the same bytes" in " ".join(answer.refused)


def test_damage_with_a_floor_is_no_power_law() -> None:
    answer = scaling(*(damaged(size, 0.3 + 2 * (size / 1e6) ** -0.8) for size in SIZES))
    assert (
        "follows no power law" in answer.sentence
        and "an exponential and a constant are rejected too" in answer.sentence
    )


def test_a_damage_that_does_not_change_with_size_is_no_scaling() -> None:
    noise = stats.norm.ppf([0.3, 0.8, 0.2, 0.6, 0.5])
    answer = scaling(*(damaged(size, 0.7 * (1 + 0.03 * float(by))) for size, by in zip(SIZES, noise, strict=True)))
    assert "no scaling of damage with size was found" in answer.sentence


def test_three_sizes_are_not_fitted_and_said_side_by_side() -> None:
    answer = scaling(*(damaged(size, law(size)) for size in SIZES[:3]))
    assert "no law is fitted: 3 sizes" in answer.sentence
    assert any("a law needs at least 4" in reason for reason in answer.refused)
    assert not rows(answer, "scaling_fits.csv")
    assert any("m10 less than that of m1" in finding.sentence for finding in answer.findings)


def test_a_collapsed_model_is_named_and_in_no_fit() -> None:
    answer = scaling(*(damaged(size, math.inf if size == SIZES[2] else law(size)) for size in SIZES))
    assert "over 4 models from 1M to 100M parameters; without m10, whose loss is not finite" in answer.sentence
    assert any("m10 is not finite" in reason for reason in answer.refused)
    point = rows(answer, "scaling.csv")[2]
    assert (point.damage, point.collapsed, point.fitted) == (None, True, False)
    few = scaling(*(damaged(size, math.inf if size == SIZES[2] else law(size)) for size in SIZES[:4]))
    assert "3 sizes with a finite loss" in few.sentence and "without m10" in few.sentence


@pytest.mark.parametrize("delta", [0.01, -0.2, 0.0])
def test_damage_that_is_not_clearly_above_zero_is_not_fitted(delta: float) -> None:
    runs = [damaged(size, law(size)) for size in SIZES[:4]]
    planted = Planted(k=10, delta=delta, error=0.05)
    answer = scaling(*runs, planted_run("m100", parameters=SIZES[4], damage=[planted]))
    assert "not clearly above 0" in answer.sentence and "m100" in answer.sentence


def test_one_model_under_two_names_is_not_two_points_of_a_law() -> None:
    copies = [damaged(size, law(size)) for size in SIZES]
    copy = planted_run(
        "copy",
        parameters=SIZES[0],
        damage=[Planted(k=10, delta=law(SIZES[0]), seed=SIZES[0])],
        files=copies[0].model.files,
    )
    assert "m1 and copy are the same files" in scaling(*copies, copy).sentence


def test_sizes_of_two_families_are_said_to_confound() -> None:
    runs = [damaged(size, law(size), layout=NEOX) for size in SIZES[:2]] + [
        damaged(size, law(size)) for size in SIZES[2:]
    ]
    assert any("different families confound" in reason for reason in scaling(*runs).refused)


def test_models_with_other_tokens_are_compared_in_bits_per_byte() -> None:
    """δ in bits per byte is δ in nats per token over the nats of a token, times its bits per byte."""
    runs = [
        damaged(size, law(size), tokens=20 + place, bits_per_byte=1.0 + place / 10) for place, size in enumerate(SIZES)
    ]
    points = rows(scaling(*runs), "scaling.csv")
    assert [row.damage for row in points] == pytest.approx(
        [law(size) * (1.0 + place / 10) / 3.0 for place, size in enumerate(SIZES)]
    )
    assert {row.unit for row in points} == {"bits per byte"}


def test_as_many_tokens_that_stand_for_other_bytes_are_other_tokens() -> None:
    """Texts cut at as many tokens are other texts with another tokenizer."""
    runs = [damaged(size, law(size), bits_per_byte=1.0 + place / 10) for place, size in enumerate(SIZES)]
    assert {row.unit for row in rows(scaling(*runs), "scaling.csv")} == {"bits per byte"}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"text_seed": "other texts"}, "measured on other texts"),
        ({"tokens": 21, "bits_per_byte": None}, "no bits per byte"),
    ],
)
def test_damage_without_a_common_unit_is_not_fitted(change: dict[str, Any], why: str) -> None:
    answer = scaling(*(damaged(size, law(size)) for size in SIZES[:4]), damaged(SIZES[4], law(SIZES[4]), **change))
    assert why in answer.sentence


def test_a_model_whose_critical_set_is_not_beyond_its_controls_is_named() -> None:
    weak = planted_run("m100", parameters=SIZES[4], damage=[Planted(k=10, delta=law(SIZES[4]), error=0.02, worst=3.0)])
    answer = scaling(*(damaged(size, law(size)) for size in SIZES[:4]), weak)
    assert any("in 4 of 5 models; not in m100 (indistinguishable)" in finding.sentence for finding in answer.findings)
    assert "in 1 of 5 models it is not told from controls" in answer.sentence


def test_revisions_of_the_models_are_no_sizes_of_one_law() -> None:
    runs = [
        damaged(size, law(size) * factor, revision=name)
        for size in SIZES
        for name, factor in (("v1", 1.0), ("v2", 3.0))
    ]
    answer = answered("scaling", study_runs(runs, "model", "revision"))
    fits = [row for row in rows(answer, "scaling_fits.csv") if row.law == "power law"]
    assert [(fit.others, fit.sizes) for fit in fits] == [("revision v1", 5), ("revision v2", 5)]
    assert [fit.slope for fit in fits] == pytest.approx([-0.3, -0.3])


def searched(size: int, weights: int, reached: bool = True) -> RunReport:
    steps = tuple(CriticalSetStep(n, f"w{n}", 2.0, 0.1, 0.05, 0.15, 1.1) for n in range(1, weights + 1))
    planted = Planted(k=10, delta=law(size), error=0.05 * law(size), seed=size)
    found = CriticalSet(10.0, reached, steps)
    return planted_run(f"m{size // 1_000_000}", parameters=size, damage=[planted], answers=[found])


def kill_set_sentence(answer: Answer) -> str:
    return next(finding.sentence for finding in answer.findings if finding.sentence.startswith("weights needed"))


def test_sets_that_were_searched_for_are_fitted_and_their_rule_is_said() -> None:
    counts = [2, 4, 7, 13, 24]
    sentence = kill_set_sentence(scaling(*(searched(size, count) for size, count in zip(SIZES, counts, strict=True))))
    slope = stats.linregress([math.log(size) for size in SIZES], [math.log(count) for count in counts]).slope
    assert "multiplies perplexity by 10 on the scoring texts" in sentence
    assert f"exponent of a power law {slope:+.3g}" in sentence and "no bend was found" in sentence
    assert "all are of one size" in kill_set_sentence(scaling(*(searched(size, 3) for size in SIZES)))
    missed = scaling(*(searched(size, count, count < 20) for size, count in zip(SIZES, counts, strict=True)))
    assert "not every model has such a set" in kill_set_sentence(missed)


def test_sets_of_the_k_that_were_measured_are_told_as_such_and_not_fitted() -> None:
    def run(size: int, enough: int) -> RunReport:
        cases = [Planted(k=k, delta=3.0 if k >= enough else 0.2, seed=size) for k in (1, 10, 100)]
        return planted_run(f"m{size // 1_000_000}", parameters=size, damage=cases)

    sentence = kill_set_sentence(scaling(run(SIZES[0], 1), run(SIZES[1], 10), run(SIZES[2], 10), run(SIZES[3], 100)))
    assert "the smallest k measured that multiplies perplexity by 10" in sentence
    assert "m1 1, m3 10 (more than 1), m10 10 (more than 1) and m30 100 (more than 10)" in sentence
    assert "no law is fitted to sets of the few sizes that were measured" in sentence


@pytest.mark.parametrize(
    ("grid", "run", "why"),
    [
        ({"model": ("a",)}, {}, "this study has 1"),
        ({"seed": (1, 2)}, {"model": "a"}, "this study has 1"),
        ({"model": ("a", "b")}, {"perturbations": []}, "measures no damage"),
        ({"model": ("a", "b")}, {"weights": ["x[1,2]"]}, "given weights"),
    ],
)
def test_a_study_that_cannot_answer_is_refused_before_it_runs(grid: Any, run: Any, why: str) -> None:
    with pytest.raises(InvalidInput, match=why) as refused:
        study_question("scaling").check(Study(question="scaling", grid=grid, run=run))
    assert refused.value.hint


def test_a_study_that_can_answer_is_not_refused() -> None:
    study_question("scaling").check(Study(question="scaling", grid={"model": ("a", "b", "c", "d")}))


def test_no_run_at_all_and_no_damage_at_all_are_said() -> None:
    for runs in ([], [planted_run()]):
        assert "no run measured any damage" in scaling(*runs).sentence


def test_real_runs_of_tiny_models_have_an_answer() -> None:
    texts = [f"{text} This is number {number} of its kind." for number in range(2) for text in TEXTS]
    runs = [
        cwa.analyze(wrap(tiny_model(name)), texts=texts, topk=[2, 10], control_seeds=2, matrices=False)
        for name in ("llama", "gpt2")
    ]
    answer = answered("scaling", study_runs(runs))
    assert "no law is fitted: 2 sizes" in answer.sentence
    by_model = {row.parameters: row for row in rows(answer, "scaling.csv") if row.k == 10}
    for run in runs:
        point = next(point for point in run.damage if (point.k, point.selection) == (10, "critical"))
        row = by_model[run.model.parameters]
        bits = run.baseline.bits_per_byte
        assert bits
        scale = 1.0 if row.unit == "nats per token" else bits / run.baseline.nll
        assert row.damage == pytest.approx(point.delta_nll * scale)


def test_without_scipy_nothing_is_fitted_and_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [damaged(size, law(size)) for size in SIZES]
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    answer = scaling(*runs)
    assert "no law is fitted: scipy is not installed: `pip install 'cwtool[studies]'`" in answer.sentence
    assert len(rows(answer, "scaling.csv")) == len(SIZES)
