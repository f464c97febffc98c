"""The question `metrics`: a better metric is found, equal ones are told apart one time in twenty, the cheaper is used."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

import cwa_engine as cwa
from cwa_engine.base.errors import InvalidInput
from cwa_engine.methods.metrics import METRICS
from cwa_engine.questions.fidelity import Prediction, Predictions, fidelities
from cwa_engine.records.run_report import RunReport
from cwa_engine.studies.analysis.consistency import concordance, least_blocks
from cwa_engine.studies.analysis.fidelities import Sampled, advantage, correlation, estimate
from cwa_engine.studies.answer import Answer
from cwa_engine.studies.registry import answered, study_question
from cwa_engine.studies.study import Study
from tests.engine.conftest import TEXTS, wrap
from tests.engine.study_runs import LLAMA, Planted, planted_run, study_runs, targets_in
from tests.models import tiny_model

WEIGHTS = 80


def predicted(noise: dict[str, float], model: str = "m1", seed: int = 0, **options: Any) -> RunReport:
    """A run in which each metric's scores are the damage of 80 weights times this much noise."""
    rng = np.random.default_rng([seed, len(model), ord(model[-1])])
    harm = rng.normal(size=WEIGHTS)
    scores = {name: np.exp(3 * (harm + level * rng.normal(size=WEIGHTS))) for name, level in noise.items()}
    rows = [
        Prediction(
            f"w[{n},0]", "all", float(np.exp(3 * harm[n])), 0.0, 1.0, tuple(float(s[n]) for s in scores.values())
        )
        for n in range(WEIGHTS)
    ]
    answers = [Predictions(tuple(rows), tuple(fidelities(rows, list(noise))))]
    options.setdefault("tops", {name: targets_in(LLAMA, "down", 0, 10) for name in noise})
    return planted_run(model, answers=answers, fidelity=WEIGHTS, **options)


def of_metrics(*runs: RunReport) -> Answer:
    return answered("metrics", study_runs(runs))


def rows(answer: Answer, table: str) -> Any:
    return next(entry.rows for entry in answer.tables if entry.table.name == table)


def test_a_metric_that_predicts_better_is_used_although_it_costs_more() -> None:
    answer = of_metrics(predicted({"magnitude": 4.0, "grad_x_weight": 0.3}))
    assert answer.sentence.startswith("use grad_x_weight (1 forward and 1 backward passes over the scoring texts)")
    assert "clearly worse: magnitude" in answer.sentence


def test_the_cheaper_of_two_that_predict_alike_is_used_and_the_tie_is_said() -> None:
    answer = of_metrics(predicted({"taylor": 0.5, "grad_x_weight": 0.5}))
    assert answer.sentence.startswith("use grad_x_weight")
    other = predicted({"taylor": 0.49, "grad_x_weight": 0.51}, seed=3)
    answer = of_metrics(other)
    assert answer.sentence.startswith("use grad_x_weight")
    if rows(answer, "metric_fidelity.csv")[0].best == "taylor":
        assert "taylor, which takes 1 forward and 2 backward passes, is not clearly better" in answer.sentence


def test_metrics_that_predict_nothing_are_not_recommended() -> None:
    rng = np.random.default_rng(2)
    rows_of = [Prediction(f"w[{n},0]", "all", float(rng.normal()), 0, 0, tuple(rng.normal(size=2))) for n in range(60)]
    found = Predictions(tuple(rows_of), tuple(fidelities(rows_of, ["magnitude", "taylor"])))
    tops = {name: targets_in(LLAMA, "down", 0, 10) for name in ("magnitude", "taylor")}
    answer = of_metrics(planted_run("m", answers=[found], tops=tops, fidelity=60))
    assert "not concluded" in answer.sentence and "no metric's scores are clearly related" in answer.sentence
    assert answer.refused


def test_correlations_are_those_of_scipy_and_the_jackknife_is_by_hand() -> None:
    report = predicted({"magnitude": 1.0, "taylor": 0.5})
    scores = {row.metric: row for row in rows(of_metrics(report), "metrics.csv")}
    table = report.predictions
    changes = [row.delta_nll for row in table]
    for place, name in enumerate(("magnitude", "taylor")):
        values = [row.scores[place] for row in table]
        assert scores[name].spearman == pytest.approx(stats.spearmanr(values, changes)[0])
        found = estimate(Sampled.of(report), name)
        without = [
            stats.spearmanr(np.delete(np.array(values), i), np.delete(np.array(changes), i))[0] for i in range(WEIGHTS)
        ]
        assert found and found.error == pytest.approx(float(np.sqrt(WEIGHTS - 1) * np.std(without)), rel=1e-9)


def test_metrics_are_compared_on_the_weights_that_both_rank() -> None:
    report = predicted({"taylor": 0.5, "wanda": 0.5})
    kept = [
        Prediction(r.target, r.stratum, r.delta_nll, 0, 1, (r.scores[0], r.scores[1] if n % 2 else None))
        for n, r in enumerate(report.predictions)
    ]
    tops = {name: targets_in(LLAMA, "down", 0, 10) for name in ("taylor", "wanda")}
    found = Predictions(tuple(kept), tuple(fidelities(kept, ["taylor", "wanda"])))
    run = planted_run("m", answers=[found], tops=tops, fidelity=80)
    (row,) = rows(of_metrics(run), "metric_fidelity.csv")
    half = kept[1::2]
    by_hand = [stats.spearmanr([r.scores[i] for r in half], [r.delta_nll for r in half])[0] for i in (0, 1)]
    assert row.weights == len(half)
    assert row.difference == pytest.approx(abs(by_hand[0] - by_hand[1])) or row.difference == pytest.approx(
        by_hand[("taylor", "wanda").index(row.best)] - by_hand[("taylor", "wanda").index(row.metric)]
    )


def test_the_cost_of_a_metric_is_in_passes_over_the_scoring_texts() -> None:
    passes = {name: (METRICS[name].passes(8).forward, METRICS[name].passes(8).backward) for name in METRICS}
    assert passes["magnitude"] == (0, 0)
    assert passes["wanda"] == passes["obs"] == passes["super_weight"] == (1, 0)
    assert passes["grad_x_weight"] == passes["grad_squared"] == passes["obd"] == passes["gblm"] == (1, 1)
    assert passes["taylor"] == (1, 2)
    assert passes["hutchinson_diag"] == (10, 10)


def test_critical_sets_of_the_same_weights_stand_beside_each_other_paired_by_text() -> None:
    noise = {"magnitude": 4.0, "grad_x_weight": 0.3, "taylor": 0.3}
    changes = np.random.default_rng(5).normal(0.5, 0.1, 32)
    damage = [
        Planted("magnitude", 10, changes=tuple(changes - 0.4), delta=0.1),
        Planted("grad_x_weight", 10, changes=tuple(changes), delta=0.5),
        Planted("taylor", 10, changes=tuple(changes + np.tile([0.01, -0.01], 16)), delta=0.5, seed=1),
    ]
    answer = of_metrics(predicted(noise, damage=damage))
    said = next(found.sentence for found in answer.findings if "changes the loss" in found.sentence)
    assert "raises it clearly more than magnitude" in said and "no difference was found" in said
    row = next(row for row in rows(answer, "metric_damage.csv") if row.ranking == "magnitude")
    assert row.less == pytest.approx(0.4, abs=0.02) and row.less_low > 0


def test_metrics_agree_as_much_as_their_lists_share_beside_chance() -> None:
    shared = targets_in(LLAMA, "down", 0, 10)
    tops = {"taylor": shared, "magnitude": [*shared[:5], *targets_in(LLAMA, "up", 1, 5)]}
    (row,) = rows(of_metrics(predicted({"taylor": 0.3, "magnitude": 2.0}, tops=tops)), "metric_agreement.csv")
    ranked = 4 * (1 + 1 + 4 + 4) * 64 * 64
    assert (row.common, row.k) == (5, 10)
    assert row.expected == pytest.approx(100 / ranked)
    assert row.p_value == pytest.approx(float(stats.hypergeom.sf(4, ranked, 10, 10)), rel=1e-6)


def test_models_agree_on_an_order_only_where_they_are_enough() -> None:
    noise = {"magnitude": 4.0, "grad_squared": 1.2, "grad_x_weight": 0.2}
    few = of_metrics(*(predicted(noise, f"m{n}", seed=n) for n in range(2)))
    assert any("takes at least 3 models for 3 metrics" in said for said in few.refused)
    enough = of_metrics(*(predicted(noise, f"m{n}", seed=n) for n in range(4)))
    said = next(found.sentence for found in enough.findings if "order of the metrics" in found.sentence)
    assert "grad_x_weight > grad_squared > magnitude" in said and "Kendall's W 1.00" in said
    assert "over 4 models" in enough.sentence


def test_orders_at_random_are_called_consistent_at_most_one_time_in_twenty() -> None:
    rng = np.random.default_rng(7)
    found = [concordance(rng.normal(size=(4, 3)), seed) for seed in range(400)]
    assert np.mean([entry is not None and entry.is_clear for entry in found]) <= 0.065
    assert [least_blocks(things) for things in (2, 3, 4)] == [6, 3, 2]
    assert concordance(rng.normal(size=(5, 2))) is None


def test_w_is_that_of_friedmans_statistic() -> None:
    values = np.random.default_rng(8).normal(size=(5, 4))
    found = concordance(values)
    chi2 = stats.friedmanchisquare(*values.T).statistic
    assert found and found.w == pytest.approx(chi2 / (5 * 3))


@pytest.mark.parametrize("noise", [0.5, 2.0])
def test_equal_metrics_are_told_apart_at_most_one_time_in_twenty(noise: float) -> None:
    """Four metrics with the same noise, 40 weights: how often any is called clearly worse than the best."""
    rng, wrong, held, trials = np.random.default_rng(9), 0, 0, 200
    large = rng.normal(size=20_000)
    truth = stats.spearmanr(large, large + noise * rng.normal(size=20_000))[0]
    for _ in range(trials):
        harm = rng.normal(size=40)
        sampled = Sampled(np.exp(harm), {f"m{n}": np.exp(harm + noise * rng.normal(size=40)) for n in range(4)})
        values = {name: found.value for name in sampled.scores if (found := estimate(sampled, name))}
        best = max(values, key=lambda name: values[name])
        others = [found for name in values if name != best and (found := advantage(sampled, best, name))]
        wrong += any(other.interval(6)[1] > 0 for other in others)
        interval = correlation(sampled, "m0")
        assert interval
        held += interval[1] <= truth <= interval[2]
    assert wrong / trials <= 0.05
    assert held / trials >= 0.93


def test_a_study_that_compares_no_metrics_is_refused_before_it_runs() -> None:
    check = study_question("metrics").check
    run = dict(study_question("metrics").run)
    check(Study(run=run, grid={"model": ("gpt2",)}))
    for bad, said in (
        (Study(run={**run, "metrics": ["taylor"]}, grid={"model": ("gpt2",)}), "at least two metrics"),
        (Study(run={**run, "fidelity": None}, grid={"model": ("gpt2",)}), "what single weights cost"),
        (Study(run={**run, "fidelity": 20}, grid={"model": ("gpt2",)}), "mostly the first of one metric"),
        (Study(run={"fidelity": 60}, grid={"model": ("gpt2",), "metrics": (("taylor",), ("obd",))}), "run apart"),
    ):
        with pytest.raises(InvalidInput, match=said) as refused:
            check(bad)
        assert refused.value.hint


def test_runs_without_fidelity_give_no_answer_and_no_traceback() -> None:
    answer = of_metrics(planted_run("m", damage=[Planted("taylor", 10)]))
    assert "not concluded" in answer.sentence
    assert answered("metrics", []).refused


def test_a_run_of_a_real_model_is_answered() -> None:
    report = cwa.analyze(
        wrap(tiny_model("llama")), texts=TEXTS, metrics=["grad_x_weight", "magnitude", "wanda"], topk=[10], fidelity=40,
        control_seeds=2,
    )  # fmt: skip
    answer = of_metrics(report)
    assert {row.metric for row in rows(answer, "metrics.csv")} == {"grad_x_weight", "magnitude", "wanda"}
    compared = {(row.first, row.second) for row in rows(answer, "metric_agreement.csv")}
    assert ("grad_x_weight", "magnitude") in compared
    assert not any({"wanda", "magnitude"} == set(pair) for pair in compared)  # wanda ranks fewer weights
    for entry in answer.tables:
        assert entry.table.from_bytes(entry.table.to_bytes(entry.rows)) == list(entry.rows)
