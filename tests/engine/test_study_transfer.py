"""The question `transfer`: planted coordinates and damage carry over, planted strangers do not, and shapes are not mixed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

import cwa_engine as cwa
from cwa_engine.base.errors import InvalidInput
from cwa_engine.records.run_report import RunReport
from cwa_engine.studies.analysis.multiple import holm
from cwa_engine.studies.answer import Answer, StudyRun
from cwa_engine.studies.further import further_cells
from cwa_engine.studies.questions.transfer import further
from cwa_engine.studies.registry import answered, study_question
from cwa_engine.studies.study import Cell, Study, cells_of
from tests.engine.conftest import TEXTS, wrap
from tests.engine.study_runs import LLAMA, NEOX, Planted, planted_run, study_runs, targets_in
from tests.models import tiny_model

METRIC, K = "grad_x_weight", 20
TOP = targets_in(LLAMA, "down", 1, K)
STUDY = Study(question="transfer", grid={"model": ("base", "tuned", "other")})


def model(name: str, targets: list[str] = TOP, delta: float = 0.8, seed: int = 0, **others: Any) -> RunReport:
    planted = Planted(METRIC, K, delta, error=0.05, seed=seed)
    return planted_run(name, damage=[planted], tops={METRIC: targets}, **others)


def given(name: str, delta: float, seed: int = 9, **others: Any) -> RunReport:
    """A run of the second step: the base's critical weights in this model."""
    planted = Planted("given", K, delta, error=0.05, seed=seed)
    return planted_run(name, damage=[planted], metrics=[], weights=TOP, topk=[K], **others)


def transfer(*runs: RunReport) -> Answer:
    return answered("transfer", study_runs(runs))


def row_of(answer: Answer, variant: str) -> Any:
    return next(row for row in answer.tables[0].rows if row.variant == variant)


@pytest.fixture
def answer() -> Answer:
    """A variant with most of the base's weights, whose damage carries over, and one with others, where it does not."""
    tuned = model("tuned", TOP[:15] + targets_in(LLAMA, "up", 2, 5), 0.6, seed=1)
    other = model("other", targets_in(LLAMA, "o", 3, K), 0.9, seed=2)
    return transfer(model("base"), tuned, other, given("tuned", 0.5), given("other", 0.004))


def test_what_carries_over_is_told_from_what_does_not(answer: Answer) -> None:
    assert "tuned has 15 of 20 of its coordinates, and their damage carries over" in answer.sentence
    assert (
        "other has 0 of 20, no more than by chance was found, but their damage is indistinguishable there"
        in answer.sentence
    )


def test_the_overlap_has_its_chance_level_and_is_corrected_for_the_number_of_variants(answer: Answer) -> None:
    row = row_of(answer, "tuned")
    everything = sum(units for units in (64 * 64, 64 * 64, 4 * 64 * 64, 4 * 64 * 64)) * 4
    within = 4 * 64 * 64  # all of the base's top, and 15 of the variant's, are of one down projection
    assert row.common == 15
    assert row.expected == pytest.approx(K * K / everything)
    assert row.expected_within == pytest.approx(K * 15 / within)
    assert row.p_within == pytest.approx(stats.hypergeom.sf(14, within, K, 15), rel=1e-6)
    assert row.p_holm == pytest.approx(2 * row.p_within)
    assert row_of(answer, "other").p_holm == 1


def test_damage_of_the_bases_weights_is_beside_the_variants_own_and_the_bases(answer: Answer) -> None:
    row = row_of(answer, "tuned")
    assert (row.base_damage, row.own, row.carried) == pytest.approx((0.8, 0.6, 0.5))
    assert row.minus_base == pytest.approx(-0.3)
    assert row.minus_base_low < -0.3 < row.minus_base_high
    assert row.of_own == pytest.approx(0.5 / 0.6)
    assert row.carried_outcome == "harmful"


def test_the_share_of_the_variants_own_damage_has_the_interval_of_a_jackknife() -> None:
    rng = np.random.default_rng(4)
    own, carried = rng.normal(0.6, 0.2, 32), rng.normal(0.5, 0.2, 32)
    runs = [
        planted_run("tuned", damage=[Planted(METRIC, K, changes=tuple(map(float, own)))], tops={METRIC: TOP}),
        planted_run(
            "tuned", damage=[Planted("given", K, changes=tuple(map(float, carried)))], metrics=[], weights=TOP, topk=[K]
        ),
    ]
    row = row_of(transfer(model("base"), *runs), "tuned")
    logs = [math.log(np.delete(carried, i).mean() / np.delete(own, i).mean()) for i in range(32)]
    reach = (1 + 2 / 32) * stats.t.ppf(0.975, 31) * math.sqrt(31 / 32 * np.sum((np.array(logs) - np.mean(logs)) ** 2))
    ratio = carried.mean() / own.mean()
    assert row.of_own == pytest.approx(ratio)
    assert row.of_own_low == pytest.approx(ratio * math.exp(-reach), rel=1e-4)
    assert row.of_own_high == pytest.approx(ratio * math.exp(reach), rel=1e-4)


def test_random_variants_are_said_to_carry_over_in_at_most_one_of_twenty_studies() -> None:
    """Three variants whose top k are drawn at random within the parameter that the base's are from, small so that they meet."""
    rng, wrong = np.random.default_rng(11), 0
    name = LLAMA[0][0].replace("#", "0")
    everything = [f"{name}[{place // 8},{place % 8}]" for place in range(64)]

    def drawn(model_name: str) -> RunReport:
        return planted_run(model_name, tops={METRIC: list(rng.permutation(everything)[:K])}, width=8, layers=1)

    for _ in range(60):
        rows = transfer(*(drawn(name) for name in ("base", "a", "b", "c"))).tables[0].rows
        wrong += any(row.carries_over for row in rows)
    assert wrong <= 6  # 60 times 5 % is 3


def test_weights_of_models_of_other_shapes_are_not_the_same_coordinates() -> None:
    answer = transfer(model("base"), model("large", parameters=2_000_000))
    assert "cannot be looked for in any variant" in answer.sentence
    assert any("differ in size: 1,000,000 and 2,000,000" in reason for reason in answer.refused)
    assert row_of(answer, "large").common is None
    layout = transfer(model("base"), model("neox", targets_in(NEOX, "down", 1, K), layout=NEOX))
    assert any("no parameter has the same name" in reason for reason in layout.refused)
    assert row_of(layout, "neox").own == pytest.approx(0.8)  # damage stands side by side all the same


def test_another_tokenizer_is_compared_in_bits_per_byte() -> None:
    base = model("base", bits_per_byte=1.5)
    tuned = model("tuned", TOP, 0.6, bits_per_byte=1.2, parameters=1_000_001, tokens=30)
    row = row_of(transfer(base, tuned), "tuned")
    assert row.unit == "bits per byte"
    assert (row.base_damage, row.own) == pytest.approx((0.8 * 1.5 / 3, 0.6 * 1.2 / 3))


def test_variants_that_were_measured_on_other_texts_have_coordinates_but_no_damage_in_common() -> None:
    answer = transfer(model("base"), model("tuned", text_seed="other texts"))
    assert "tuned has 20 of 20 of its coordinates" in answer.sentence
    assert any("not compared in damage: tuned was measured on other texts" in reason for reason in answer.refused)
    assert (row_of(answer, "tuned").common, row_of(answer, "tuned").own) == (20, None)


def test_a_variant_that_collapses_has_no_number_and_carries_over() -> None:
    answer = transfer(model("base"), model("tuned"), given("tuned", math.inf))
    assert "and their damage carries over" in answer.sentence
    assert any("leaves no finite loss" in finding.sentence for finding in answer.findings)
    assert row_of(answer, "tuned").carried is None


def test_without_the_second_step_it_says_what_was_not_measured_and_how_to() -> None:
    answer = transfer(model("base"), model("tuned"))
    assert "their damage was not measured there" in answer.sentence
    assert any("--weights" in reason and "topk_grad_x_weight.csv" in reason for reason in answer.refused)


def test_the_second_step_damages_the_bases_weights_in_each_variant_of_its_shape() -> None:
    runs = study_runs([model("base"), model("tuned", TOP[::-1]), model("large", parameters=2_000_000)])
    specs = further(STUDY, runs)
    assert [spec.model for spec in specs] == ["tuned"]
    assert (specs[0].weights, specs[0].metrics, specs[0].stability) == (tuple(TOP), (), None)
    cells = further_cells(STUDY, cells_of(STUDY), specs)
    assert [(cell.number, cell.label) for cell in cells] == [(4, "tuned, weights 20 given")]
    assert further(STUDY, runs) == specs
    assert further(STUDY, runs[:1]) == ()


def test_further_cells_tell_the_dtypes_of_one_model_apart() -> None:
    study = Study(question="transfer", grid={"dtype": ("float32", "bfloat16", "float16")}, run={"model": "base@v1"})
    runs = study_runs([model("base", dtype=name, revision="v1") for name in study.grid["dtype"]], "model", "dtype")
    labels = [cell.label for cell in further_cells(study, cells_of(study), further(study, runs))]
    assert labels == ["base@v1, dtype bfloat16, weights 20 given", "base@v1, dtype float16, weights 20 given"]


def test_a_missing_base_is_said() -> None:
    runs = study_runs([model("base"), model("tuned"), model("third")])[1:]
    assert any(
        "the first model has no run; tuned is taken as the base" in why for why in answered("transfer", runs).refused
    )


@pytest.mark.parametrize(
    ("grid", "run", "why"),
    [
        ({"model": ("a",)}, {}, "at least one variant"),
        ({"model": ("a", "b")}, {"perturbations": []}, "measures no damage"),
        ({"model": ("a", "b")}, {"weights": ["x[1,2]"]}, "own critical weights"),
    ],
)
def test_a_study_that_cannot_answer_is_refused_before_it_runs(grid: Any, run: Any, why: str) -> None:
    with pytest.raises(InvalidInput, match=why):
        study_question("transfer").check(Study(question="transfer", grid=grid, run=run))


def test_two_dtypes_of_one_model_are_a_base_and_its_variant() -> None:
    study_question("transfer").check(
        Study(question="transfer", grid={"dtype": ("float32", "bfloat16")}, run={"model": "a"})
    )


def test_nothing_to_compare_is_said() -> None:
    assert "fewer than two models" in transfer().sentence
    assert "fewer than two models" in transfer(model("base")).sentence


def test_holms_correction_is_that_of_its_paper() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx((0.03, 0.06, 0.06))
    assert holm([]) == ()
    assert holm([0.6, 0.7]) == (1, 1)


def test_a_real_model_with_a_little_noise_keeps_its_coordinates_and_their_damage() -> None:
    import torch

    texts = [f"{text} This is number {number} of its kind." for number in range(2) for text in TEXTS]
    base, tuned = tiny_model("llama"), tiny_model("llama")
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.mul_(1 + 1e-3 * torch.randn_like(parameter))
    asked: dict[str, Any] = {"topk": [10], "control_seeds": 2, "matrices": False}
    runs = [
        StudyRun(Cell(number, {"model": name}, report.spec), report)
        for number, (name, report) in enumerate(
            [(n, cwa.analyze(wrap(m), texts=texts, **asked)) for n, m in (("base", base), ("tuned", tuned))], start=1
        )
    ]
    [spec] = further(STUDY, runs)
    second = cwa.analyze(
        wrap(tuned), texts=texts, metrics=[], weights=list(spec.weights), topk=[10], control_seeds=2, matrices=False
    )
    row = (
        answered("transfer", [*runs, StudyRun(Cell(3, {"model": "tuned", "weights": "10 given"}, spec), second)])
        .tables[0]
        .rows[0]
    )
    tops = [{weight.target for weight in run.report.topk()} for run in runs]
    assert row.common == len(tops[0] & tops[1]) >= 7
    point = next(point for point in second.damage if point.selection == "critical")
    assert row.carried == pytest.approx(point.delta_nll)
    assert row.unit == "nats per token"


def test_cells_of_the_grid_keep_their_numbers() -> None:
    assert [cell.number for cell in cells_of(STUDY)] == [1, 2, 3]
