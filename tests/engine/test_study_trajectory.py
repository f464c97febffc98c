"""The question `trajectory`: planted histories are read off, random ones refused, and the order of revisions is said."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from scipy import stats

import cwa_engine as cwa
from cwa_engine.base.errors import InvalidInput
from cwa_engine.records.run_report import RunReport
from cwa_engine.studies.analysis.revisions import median_place, number_of
from cwa_engine.studies.answer import Answer
from cwa_engine.studies.registry import answered, study_question
from cwa_engine.studies.study import Study
from tests.engine.conftest import TEXTS, wrap
from tests.engine.study_runs import LLAMA, Planted, planted_run, study_runs, targets_in
from tests.models import tiny_model

FINAL = targets_in(LLAMA, "down", 0, 10)
OTHERS = targets_in(LLAMA, "up", 1, 40)
STEPS = ["step1", "step1000", "step64000", "main"]


def revision(name: str, top: list[str], **options: Any) -> RunReport:
    """A run of this revision; its top is filled up to 20 places with other weights."""
    filled = top + [target for target in OTHERS if target not in top][: 20 - len(top)]
    return planted_run("pythia", tops={"grad_x_weight": filled}, topk=[10, 20], revision=name, **options)


def planted(**options: Any) -> list[RunReport]:
    """Of the last top ten, 2 are there from the first step on, 5 from step1000, 9 from step64000."""
    tops = [FINAL[:2] + OTHERS[:8] + FINAL[2:4], FINAL[:5], FINAL[:9], FINAL]
    return [revision(name, top, **options) for name, top in zip(STEPS, tops, strict=True)]


def trajectory(*runs: RunReport) -> Answer:
    return answered("trajectory", study_runs(runs, "model", "revision"))


def rows(answer: Answer, table: str) -> Any:
    return next(entry.rows for entry in answer.tables if entry.table.name == table)


def test_when_each_weight_of_the_last_top_became_critical_is_read_off() -> None:
    answer = trajectory(*planted())
    steps = {row.revision: row for row in rows(answer, "trajectory.csv")}
    assert [steps[name].common for name in STEPS] == [2, 5, 9, 10]
    assert [steps[name].since_here for name in STEPS] == [2, 3, 4, 1]
    assert [steps[name].settled for name in STEPS] == [2, 5, 9, 10]
    ranked = 4 * 10 * 64 * 64
    assert steps["step1000"].p_value == pytest.approx(float(stats.hypergeom.sf(4, ranked, 10, 10)), rel=1e-6)
    weights = {row.target: row for row in rows(answer, "trajectory_weights.csv")}
    assert weights[FINAL[2]].ranks == "11 3 3 3"  # in the first 20 of step1, not in the first 10
    assert weights[FINAL[2]].critical_since == "step1000"
    assert weights[FINAL[9]].ranks == "- - - 10" and weights[FINAL[9]].depth == 20
    assert "half stay in the top from step1000 on" in answer.sentence
    assert any(
        "2 since step1, 3 since step1000, 4 since step64000 and 1 since main" in f.sentence for f in answer.findings
    )
    assert not answer.refused


def test_a_weight_that_left_the_top_again_is_critical_since_its_return() -> None:
    tops = [FINAL, FINAL[:9], FINAL, FINAL]
    answer = trajectory(*(revision(name, top) for name, top in zip(STEPS, tops, strict=True)))
    since = {row.target: row.critical_since for row in rows(answer, "trajectory_weights.csv")}
    assert since[FINAL[9]] == "step64000" and since[FINAL[0]] == "step1"


def test_the_order_is_that_of_training_whatever_the_order_of_cells() -> None:
    runs = planted()
    mixed = trajectory(runs[3], runs[1], runs[2], runs[0])
    assert rows(mixed, "trajectory.csv") == rows(trajectory(*runs), "trajectory.csv")
    unnamed = [revision(name, FINAL) for name in ("early", "middle", "late")]
    assert any(
        "in the order in which they were given (early, middle and late)" in r for r in trajectory(*unnamed).refused
    )
    assert [number_of(name) for name in ("step1000", "main", "v2-step30", "b")] == [1000, float("inf"), 30, None]


def test_revisions_given_as_models_are_one_trajectory() -> None:
    names = [f"/ladder/llama-m-step{step}" for step in (100, 20, 3)]
    runs = [
        planted_run(name, tops={"grad_x_weight": FINAL}, topk=[10], revision=None, files={"model.safetensors": name})
        for name in names
    ]
    answer = answered("trajectory", study_runs(runs, "model"))
    assert [row.revision for row in rows(answer, "trajectory.csv")] == ["step3", "step20", "step100"]
    assert answer.sentence.startswith("llama-m: of the top 10")


def test_revisions_with_nothing_in_common_say_nothing_of_when() -> None:
    runs = [
        revision(name, targets_in(LLAMA, of, 2, 20)) for name, of in zip(STEPS, ("q", "o", "up", "down"), strict=True)
    ]
    answer = trajectory(*runs)
    assert "no earlier revision shares more than chance explains" in answer.sentence
    assert any("when weights became critical" in said for said in answer.refused)


def test_random_tops_are_called_related_at_most_one_time_in_twenty() -> None:
    """Tops of 10 among 100 of the same parameters, so that some are shared by chance."""
    rng, wrong, trials = np.random.default_rng(5), 0, 150
    layout = (("model.layers.#.mlp.down_proj.weight", "down", 1, 1),)
    names = [f"model.layers.0.mlp.down_proj.weight[{n % 10},{n // 10}]" for n in range(100)]
    for _ in range(trials):
        runs = [
            planted_run("m", layout=layout, layers=1, width=10, topk=[10], revision=name,
                        tops={"grad_x_weight": [names[i] for i in rng.permutation(100)[:10]]})
            for name in STEPS
        ]  # fmt: skip
        wrong += "half stay in the top" in trajectory(*runs).sentence
    assert wrong / trials <= 0.05


def test_the_interval_of_the_median_holds_it_at_least_95_times_in_a_hundred() -> None:
    rng, held, trials = np.random.default_rng(6), 0, 1000
    for _ in range(trials):
        _, low, high = median_place(rng.integers(0, 101, 30).tolist())
        held += low <= 50 <= high
    assert held / trials >= 0.95
    places = sorted(range(100))
    interval = stats.binom.interval(0.95, 100, 0.5)
    assert median_place(places) == (49, int(interval[0]) - 1, 100 - int(interval[0]))
    assert median_place([3, 1, 2]) == (2, 1, 3)


def test_damage_over_steps_is_paired_with_the_last_revision_by_text() -> None:
    changes = np.random.default_rng(7).normal(1.0, 0.3, 32)
    tilt = 0.001 * np.tile([1, -1], 16)
    runs = [
        revision(name, FINAL, damage=[Planted(k=10, changes=tuple(changes * 0 + level + tilt + changes - 1))])
        for name, level in zip(STEPS, (0.2, 0.8, 1.0, 1.0), strict=True)
    ]
    answer = trajectory(*runs)
    less = [row.less for row in rows(answer, "trajectory.csv")]
    assert less[:2] == [pytest.approx(0.8), pytest.approx(0.2)] and less[3] is None
    said = next(found.sentence for found in answer.findings if "changes the loss" in found.sentence)
    assert "clearly lower than in main: step1 and step1000" in said and "(harmful)" in said


def test_damage_on_other_texts_is_not_subtracted_and_the_answer_says_so() -> None:
    damage = {"damage": [Planted(k=10)]}
    runs = [revision(name, FINAL, **damage, text_seed="other" if name == "step1" else "texts") for name in STEPS]
    answer = trajectory(*runs)
    assert rows(answer, "trajectory.csv")[0].less is None
    assert any("step1 scored other texts" in said for said in answer.refused)
    assert any("damage of step1 was not measured like that of main" in said for said in answer.refused)


def test_fewer_than_three_revisions_are_refused_before_and_after_they_ran() -> None:
    check = study_question("trajectory").check
    check(Study(grid={"model": ("pythia",), "revision": tuple(STEPS)}))
    check(Study(grid={"model": ("a-step1", "a-step2", "a-step3")}))
    with pytest.raises(InvalidInput, match="at least 3 revisions") as refused:
        check(Study(grid={"model": ("pythia",), "revision": ("step1", "main")}))
    assert refused.value.hint
    few = trajectory(*planted()[2:])
    assert "not concluded" in few.sentence and few.refused
    assert "not concluded" in trajectory().sentence


def test_another_model_among_the_revisions_is_named() -> None:
    runs = [*planted()[:3], revision("main", FINAL, parameters=7)]
    answer = trajectory(*runs)
    assert "is no revision of main: the models differ in size" in answer.sentence


def test_runs_of_real_models_are_answered() -> None:
    runs = []
    for name, seed in zip(STEPS[:3], (0, 0, 1), strict=True):
        report = cwa.analyze(wrap(tiny_model("llama", seed)), texts=TEXTS, topk=[5, 20], control_seeds=2)
        spec = report.spec.model_copy(update={"revision": name})
        runs.append(report.__class__(**{**vars(report), "spec": spec}))
    answer = trajectory(*runs)
    assert len(rows(answer, "trajectory.csv")) == 6  # also of matrices alone
    for entry in answer.tables:
        assert entry.table.from_bytes(entry.table.to_bytes(entry.rows)) == list(entry.rows)


def test_runs_of_early_versions_have_no_chance_level_and_are_refused() -> None:
    early = [dataclasses.replace(run, ranked=()) for run in planted()]
    answer = trajectory(*early)
    assert "not concluded: what chance gives is not known" in answer.sentence and "early version" in answer.refused[0]
