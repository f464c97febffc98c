"""Studies of small trained models. What they answer is computed again from the files of the runs, with csv and numpy alone."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

import cwa_engine as cwa
from cwa_engine.studies.notebook import run_study
from cwa_engine.studies.report import StudyReport
from cwa_engine.studies.study import Study
from cwa_tui.cli.study_show import MOST_ROWS, study_page
from tests.ladder.models import BASE, FAMILIES, FINE_TUNED, LOW_END, QUANTISED, SIZES
from tests.ladder.rungs import LADDER
from tests.ladder.texts import write_texts

K = 16
METRIC = "grad_x_weight"
SMALLEST = next(iter(SIZES))


class Studies:
    """Asks questions of studies on the ladder. Cells that several studies have in common run once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._runner = cwa.LocalRunner(folder / "runs")
        self._run = {
            "data_file": str(write_texts(folder / "texts.jsonl", 48)),
            "metrics": [METRIC],
            "topk": [4, K],
            "perturbations": ["zero"],
            "matrices": False,
            "stability": "halves",
            "batch_size": 32,
        }

    def ask(self, question: str, grid: Mapping[str, Any], **run: Any) -> StudyReport:
        study = Study(question=question, grid=dict(grid), run={**self._run, **run})
        return run_study(study, self._runner, self._folder / "studies", say=lambda text: None)

    def close(self) -> None:
        self._runner.close()

    def rows(self, run_id: str, name: str) -> list[dict[str, str]]:
        """A table of a run."""
        return read(self._folder / "runs" / run_id / name)

    def damage(self, run_id: str, k: int = K) -> np.ndarray[Any, Any]:
        """What the critical set adds to the loss of each text, in nats. [texts]"""
        rows = self.rows(run_id, "evaluation.csv")
        intact, critical = (
            {row["sequence"]: float(row["nll_sum"]) for row in rows if row["selection"] == name and row["k"] == of}
            for name, of in (("intact", ""), ("critical", str(k)))
        )
        return np.array([critical[text] - intact[text] for text in intact])

    def tokens(self, run_id: str) -> np.ndarray[Any, Any]:
        """Scored tokens of each text. [texts]"""
        rows = self.rows(run_id, "evaluation.csv")
        return np.array([float(row["tokens"]) for row in rows if row["selection"] == "intact"])

    def top(self, run_id: str, k: int = K, metric: str = METRIC) -> list[dict[str, str]]:
        return self.rows(run_id, f"topk_{metric}.csv")[:k]


def read(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def table(report: StudyReport, name: str, **wanted: object) -> list[dict[str, str]]:
    """Rows of a table in the study's folder that have these values."""
    rows = read(report.folder.path / name)
    return [row for row in rows if all(row[column] == str(value) for column, value in wanted.items())]


def run_ids(report: StudyReport) -> dict[str, str]:
    assert all(cell.state == "done" for cell in report.cells), report.cells
    return {cell.label: cell.run_id for cell in report.cells}


@pytest.fixture(scope="module")
def studies(ladder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studies]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HOME", str(ladder))
        asked = Studies(tmp_path_factory.mktemp("studies"))
        yield asked
        asked.close()


@pytest.fixture(scope="module")
def scaling(studies: Studies) -> StudyReport:
    return studies.ask("scaling", {"model": [*SIZES]})


def test_three_sizes_are_too_few_for_a_law(studies: Studies) -> None:
    answer = studies.ask("scaling", {"model": [*SIZES][:3]}).answer
    assert answer
    assert "no law is fitted: 3 sizes" in answer.sentence
    assert not next(rows for rows in answer.tables if rows.table.name == "scaling_fits.csv").rows


def test_the_damage_of_each_size_is_that_of_its_texts(studies: Studies, scaling: StudyReport) -> None:
    points = table(scaling, "scaling.csv", k=K)
    assert [point["model"] for point in points] == [*SIZES]
    for point in points:
        run_id = run_ids(scaling)[point["model"]]
        damage = studies.damage(run_id).sum() / studies.tokens(run_id).sum()
        assert float(point["damage"]) == pytest.approx(damage, rel=1e-9)


def test_whether_a_power_law_fits_follows_from_the_damage_and_its_errors(
    studies: Studies, scaling: StudyReport
) -> None:
    """The misfit of generalised least squares, with the jackknife's errors; Hotelling's T² by its F distribution."""
    from scipy import stats

    ids = list(run_ids(scaling).values())
    left_out = []
    for run_id in ids:
        damage, tokens = studies.damage(run_id), studies.tokens(run_id)
        left_out.append(np.log((damage.sum() - damage) / (tokens.sum() - tokens)))
    texts = len(left_out[0])
    errors = np.linalg.inv(np.cov(left_out) * (texts - 1) ** 2 / texts)
    points = table(scaling, "scaling.csv", k=K)
    logs = np.log([float(point["damage"]) for point in points])
    design = np.column_stack([np.ones(4), np.log([float(point["parameters"]) for point in points])])
    rest = logs - design @ np.linalg.solve(design.T @ errors @ design, design.T @ errors @ logs)
    misfit = rest @ errors @ rest
    p_value = stats.f.sf(misfit * (texts - 2) / ((texts - 1) * 2), 2, texts - 2)

    (fit,) = table(scaling, "scaling_fits.csv", k=K, law="power law")
    assert float(fit["misfit"]) == pytest.approx(misfit, rel=1e-6)
    assert float(fit["p_value"]) == pytest.approx(p_value, rel=1e-6)
    assert scaling.answer
    assert ("follows no power law" in scaling.answer.sentence) is bool(p_value <= 0.05)


def test_where_a_family_has_its_critical_weights_is_counted_from_their_ranking(studies: Studies) -> None:
    report = studies.ask("architecture", {"model": [*FAMILIES]})
    shares = {}
    for model, run_id in run_ids(report).items():
        # GPT-2 and OPT have one matrix for both, so the others' count as one, too.
        parts = [row["component"] for row in studies.top(run_id)]
        counts = Counter("embedding or head" if part in ("embedding", "head") else part for part in parts)
        shares[model] = {part: counts[part] / K for part in counts}
        told = table(report, "profiles.csv", model=model, k=K, by="component")
        assert {row["part"]: float(row["share"]) for row in told if float(row["share"])} == shares[model]
    pairs = table(report, "profile_distances.csv", k=K, by="component")
    assert len(pairs) == 6
    for pair in pairs:
        first, second = shares[pair["first"]], shares[pair["second"]]
        overlap = sum(min(first.get(part, 0), second.get(part, 0)) for part in {*first, *second})
        assert float(pair["overlap"]) == pytest.approx(overlap)
        assert float(pair["distance"]) == pytest.approx(1 - overlap)
    assert report.answer
    assert "one model of each family" in " ".join(report.answer.refused)
    page = io.StringIO()
    Console(file=page, width=100).print(study_page(report))
    assert f"and {len(table(report, 'profiles.csv')) - MOST_ROWS} more rows" in page.getvalue()


def test_no_model_of_the_low_end_is_relied_on(studies: Studies, scaling: StudyReport) -> None:
    """An untrained model has the most stable ranking of all; that it does no better than guessing is what tells."""
    report = studies.ask("min-size", {"model": [LOW_END, *SIZES]})
    rows = {row["model"]: row for row in table(report, "min_size.csv", k=K)}
    assert rows[LOW_END]["passes"] == "False"
    assert float(rows[LOW_END]["share"]) > max(float(rows[model]["share"]) for model in SIZES)
    assert "no better than guessing" in rows[LOW_END]["why"]
    for model, run_id in run_ids(report).items():
        damage, tokens = studies.damage(run_id), studies.tokens(run_id)
        assert float(rows[model]["damage"]) == pytest.approx(damage.sum() / tokens.sum(), rel=1e-9)
        passes = float(rows[model]["share"]) >= 0.5 and rows[model]["outcome"] == "harmful"
        assert rows[model]["passes"] == str(passes)
    from_largest = [LOW_END, *SIZES][::-1]
    relied_on = list(takewhile(lambda model: rows[model]["passes"] == "True", from_largest))
    assert [model for model in from_largest if rows[model]["relied_on"] == "True"] == relied_on
    assert report.answer
    assert (relied_on[-1] if relied_on else "none of 5 models is reliable") in report.answer.sentence
    assert {model: run_ids(report)[model] for model in SIZES} == run_ids(scaling)


def test_the_best_metric_is_the_one_whose_scores_go_with_the_measured_damage(studies: Studies) -> None:
    from scipy import stats

    metrics = (METRIC, "taylor", "magnitude")
    report = studies.ask("metrics", {"model": [BASE]}, metrics=metrics, topk=[K], stability=None, fidelity=40)
    (run_id,) = run_ids(report).values()
    measured = studies.rows(run_id, "fidelity.csv")
    damage = [abs(float(row["delta_nll"])) for row in measured]
    correlation = {
        metric: stats.spearmanr([float(row[f"score_{metric}"]) for row in measured], damage).statistic
        for metric in metrics
    }
    told = {row["metric"]: float(row["spearman"]) for row in table(report, "metrics.csv")}
    assert told == pytest.approx(correlation, rel=1e-9)
    best = max(correlation, key=lambda metric: correlation[metric])
    worse = table(report, "metric_fidelity.csv", best=best)
    assert {row["metric"]: float(row["difference"]) for row in worse} == pytest.approx(
        {metric: correlation[best] - correlation[metric] for metric in metrics if metric != best}
    )
    assert report.answer
    assert report.answer.sentence.startswith("use ")


def test_a_quantised_model_keeps_its_critical_weights_and_one_trained_further_loses_most(studies: Studies) -> None:
    report = studies.ask("transfer", {"model": [BASE, QUANTISED, FINE_TUNED]})
    ids = run_ids(report)
    tops = {model: {row["target"] for row in studies.top(ids[model])} for model in (BASE, QUANTISED, FINE_TUNED)}
    shared = {model: len(tops[BASE] & tops[model]) for model in (QUANTISED, FINE_TUNED)}
    assert shared[QUANTISED] > 3 * K / 4
    assert shared[FINE_TUNED] < K / 2
    rows = {row["variant"]: row for row in table(report, "transfer.csv", k=K)}
    assert {model: int(rows[model]["common"]) for model in shared} == shared
    for model in shared:
        given = ids[f"{model}, weights {K} given"]  # the base's critical weights, damaged in the variant
        carried, own, base = (studies.damage(run_id) for run_id in (given, ids[model], ids[BASE]))
        tokens = studies.tokens(given).sum()
        assert float(rows[model]["carried"]) == pytest.approx(carried.sum() / tokens, rel=1e-9)
        assert float(rows[model]["of_own"]) == pytest.approx(carried.sum() / own.sum(), rel=1e-9)
        assert float(rows[model]["minus_base"]) == pytest.approx((carried - base).sum() / tokens, rel=1e-6)


def test_the_history_of_the_top_weights_is_read_off_the_rankings_of_the_checkpoints(studies: Studies) -> None:
    steps = [f"step{step}" for step in LADDER[SIZES[SMALLEST]].checkpoints]
    report = studies.ask("trajectory", {"model": [SMALLEST], "revision": [*steps, "main"]}, topk=[K, 10 * K])
    ids = run_ids(report).values()
    tops = [{row["target"] for row in studies.top(run_id)} for run_id in ids]
    told = table(report, "trajectory.csv", k=K)
    assert [row["revision"] for row in told] == [*steps, "main"]
    assert [int(row["common"]) for row in told] == [len(top & tops[-1]) for top in tops]
    for row in table(report, "trajectory_weights.csv"):
        critical = [row["target"] in top for top in tops]
        since = len(tops) - critical[::-1].index(False)  # the first revision after the last in which it is not critical
        assert row["critical_since"] == [*steps, "main"][since]
    losses = [float(row["perplexity"]) for row in told]
    assert losses == sorted(losses, reverse=True)


def test_shorter_texts_move_a_ranking_and_the_seed_of_controls_does_not(studies: Studies) -> None:
    report = studies.ask("stability", {"model": [SMALLEST], "seed": [0, 1], "seq_len": [64, 128]})
    ids = {label.partition(", ")[2]: run_id for label, run_id in run_ids(report).items()}
    tops = {label: {row["target"] for row in studies.top(run_id)} for label, run_id in ids.items()}
    pairs = table(report, "stability_pairs.csv", k=K, axis="seq_len")
    assert len(pairs) == 2
    for pair in pairs:
        first, second = (tops[f"{pair['others']}, seq_len {pair[which]}"] for which in ("first", "second"))
        assert int(pair["common"]) == len(first & second) < K
    assert all(tops[f"seed 0, seq_len {length}"] == tops[f"seed 1, seq_len {length}"] for length in (64, 128))
    assert all(pair["nothing_new"] for pair in table(report, "stability_pairs.csv", axis="seed"))
