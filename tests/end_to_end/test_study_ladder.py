"""Studies of small trained models. What they answer is computed again from the files of the runs, with csv and numpy alone."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cwa_engine as cwa
from cwa_engine.studies.notebook import run_study
from cwa_engine.studies.report import StudyReport
from cwa_engine.studies.study import Study
from tests.ladder.models import BASE, FAMILIES, FINE_TUNED, LOW_END, QUANTISED, SIZES
from tests.ladder.texts import write_texts

K = 16
METRIC = "grad_x_weight"


class Studies:
    """Asks questions of studies on the ladder. Cells that several studies have in common run once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._runner = cwa.LocalRunner(folder / "runs")
        self._run = {
            "data_file": str(write_texts(folder / "texts.jsonl", 64)),
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
        counts = Counter(row["component"] for row in studies.top(run_id))
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


def test_no_model_of_the_low_end_is_relied_on(studies: Studies, scaling: StudyReport) -> None:
    """An untrained model has the most stable ranking of all; that it does no better than guessing is what tells."""
    report = studies.ask("min-size", {"model": [LOW_END, *SIZES]})
    rows = {row["model"]: row for row in table(report, "min_size.csv", k=K)}
    assert rows[LOW_END]["passes"] == "False"
    assert float(rows[LOW_END]["share"]) > max(float(rows[model]["share"]) for model in SIZES)
    assert "no better than guessing" in rows[LOW_END]["why"]
    passing = [model for model in rows if rows[model]["passes"] == "True"]
    assert report.answer
    assert passing or "is reliable" in report.answer.sentence
    assert {model: run_ids(report)[model] for model in SIZES} == run_ids(scaling)


def test_the_best_metric_is_the_one_whose_scores_go_with_the_measured_damage(studies: Studies) -> None:
    metrics = (METRIC, "taylor", "magnitude")
    report = studies.ask("metrics", {"model": [BASE]}, metrics=metrics, topk=[K], fidelity=40)
    ((_, run_id),) = run_ids(report).items()
    print(studies.rows(run_id, "fidelity.csv")[:3])
