"""What a run found, in memory and read back from its files, is the same; files that are not what it wrote are refused."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cwa_engine.base.errors import Altered, CwaError, InvalidInput, NotFound, OutputTaken
from cwa_engine.base.plain import from_plain
from cwa_engine.pipeline import analyze
from cwa_engine.questions.ablation import Ablated
from cwa_engine.questions.critical_set import CriticalSet, CriticalSetStep
from cwa_engine.questions.fidelity import Predictions
from cwa_engine.questions.interactions import Interactions
from cwa_engine.questions.spike_removal import SpikeRemoval
from cwa_engine.questions.stability import Stability
from cwa_engine.records.export import ModelRecord, RunRecord, write_run
from cwa_engine.records.run_report import open_run, report_of
from cwa_engine.records.run_summary import DamageSummary
from cwa_engine.rows import DamagePoint, Separation, to_plain
from cwa_engine.spec import RunSpec
from tests.engine.conftest import TEXTS, wrap
from tests.models import tiny_model

ROWS = ("damage", "evaluations", "controls")
OF_QUESTIONS = ("interactions", "stability", "predictions", "ablations", "critical_set", "spike_removal", "fidelity")
IN_SUMMARY = ("separations", "verdicts", "baseline", "texts", "floor")


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> RunRecord:
    """A run that was asked every question."""
    texts = tmp_path_factory.mktemp("texts") / "texts.txt"
    texts.write_text("\n\n".join(TEXTS) + "\n")
    spec = RunSpec(
        model="tiny", data_file=texts, metrics=("grad_x_weight", "super_weight", "ablation"), topk=(2, 3),
        candidates=6, critical_set=1.01, iterate=2, stability="halves", fidelity=4, individually=True,
        control_seeds=2, controls=("random",), position_test=True, kl=True,
    )  # fmt: skip
    result = analyze(wrap(tiny_model("llama")), spec)
    model = ModelRecord("tiny", "/nowhere", "folder", None, {}, "float32", "cpu", "", result.parameters, ("a note",))
    return RunRecord("20260101-000000-tiny-abcd", spec, "cwtool run", model, result, 1.5, ["one line", "ünï"])


@pytest.fixture
def folder(record: RunRecord, tmp_path: Path) -> Path:
    write_run(tmp_path / record.run_id, record)
    return tmp_path / record.run_id


def test_a_report_of_files_has_all_that_the_run_found(record: RunRecord, folder: Path) -> None:
    report, result = open_run(folder), record.result
    for name in ROWS:
        assert tuple(getattr(report, name)) == tuple(getattr(result, name)) != (), name
    for name in IN_SUMMARY:
        assert getattr(report, name) == getattr(result, name) != (), name
    ablated, predicted = result.answer(Ablated), result.answer(Predictions)
    assert report.interactions == result.answer(Interactions).rows != ()
    assert report.stability == result.answer(Stability).agreements != ()
    assert (report.predictions, report.fidelity) == (predicted.rows, predicted.fidelity) != ((), ())
    assert (report.ablations, report.summary.ablation) == (ablated.rows, ablated.cost)
    assert report.critical_set == result.answer(CriticalSet)
    assert report.spike_removal == result.answer(SpikeRemoval)
    for ranking in result.rankings:
        assert report.topk(ranking.metric) == ranking.weights
    assert report.topk() == result.rankings[0].weights
    assert report.spikes == tuple(spike for ranking in result.rankings for spike in ranking.spikes)
    assert report.metrics == tuple(ranking.metric for ranking in result.rankings)
    assert (report.spec, report.command, report.model) == (record.spec, record.command, record.model)
    assert report.log == tuple(record.log)
    assert {row.metric: row.in_every_repeat for row in report.summary.stability} == {
        ranking.metric: sum(weight.stable is True for weight in ranking.top(3))
        for ranking in result.rankings
        if any(row.metric == ranking.metric for row in result.answer(Stability).agreements)
    }


def test_a_report_in_memory_is_the_one_read_from_the_files_it_writes(record: RunRecord, tmp_path: Path) -> None:
    report = report_of(record)
    read = open_run(report.save(tmp_path / "run"))
    assert read == report and read.fingerprint == report.fingerprint
    for name in (*ROWS, *OF_QUESTIONS, *IN_SUMMARY, "summary", "rankings", "spikes", "log"):
        assert getattr(read, name) == getattr(report, name), name
    assert report.damage == record.result.damage
    with pytest.raises(OutputTaken):
        report.save(tmp_path / "run")


def test_a_run_is_found_by_its_id_in_the_state_folder(
    record: RunRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CWTOOL_HOME", str(tmp_path))
    write_run(tmp_path / "runs" / record.run_id, record)
    assert open_run(record.run_id).run_id == record.run_id
    with pytest.raises(NotFound, match="no run '20260101-000000-tiny-abce'") as refused:
        open_run("20260101-000000-tiny-abce")
    assert record.run_id in refused.value.hint
    with pytest.raises(NotFound, match="holds no run"):
        open_run(tmp_path)


@pytest.mark.parametrize("name", ["summary.json", "manifest.json", "perturbation.csv", "SHA256SUMS"])
def test_a_run_of_which_a_file_was_altered_is_refused(folder: Path, name: str) -> None:
    fingerprint = open_run(folder).fingerprint
    (folder / name).write_bytes((folder / name).read_bytes() + b" ")
    with pytest.raises(Altered, match=name):
        open_run(folder, fingerprint)


def test_a_table_that_is_altered_after_the_run_was_opened_is_refused(folder: Path) -> None:
    report = open_run(folder)
    (folder / "perturbation.csv").write_text("metric\n")
    with pytest.raises(Altered, match=r"perturbation\.csv"):
        _ = report.damage


def test_a_run_that_was_replaced_as_a_whole_is_refused_by_its_fingerprint(
    record: RunRecord, folder: Path, tmp_path: Path
) -> None:
    write_run(tmp_path / "other", dataclasses.replace(record, started=2.0))
    with pytest.raises(Altered):
        open_run(tmp_path / "other", open_run(folder).fingerprint)


def test_rows_come_as_pandas_frames(record: RunRecord) -> None:
    pytest.importorskip("pandas")
    report = report_of(record)
    frame = report.frame("topk", "grad_x_weight")
    assert list(frame["target"]) == [weight.target for weight in report.topk("grad_x_weight")]
    damage = report.frame("damage")
    assert list(damage["delta_nll"]) == [point.delta_nll for point in report.damage]
    assert [None if seed is damage["seed"].dtype.na_value else seed for seed in damage["seed"]] == [
        point.seed for point in report.damage
    ]
    assert report.frame("topk")["standard_error"].dtype == "float64"
    for place, row in enumerate(report.fidelity):
        column = report.frame("predictions")[f"score_{row.metric}"]
        scores = [math.nan if p.scores[place] is None else p.scores[place] for p in report.predictions]
        assert list(column) == pytest.approx(scores, nan_ok=True)
    with pytest.raises(InvalidInput, match="'damages'") as refused:
        report.frame("damages")
    assert "'damage'" in refused.value.hint
    with pytest.raises(NotFound, match="no ranking by 'obd'"):
        report.frame("topk", "obd")


def test_without_pandas_a_frame_says_what_is_missing(record: RunRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    report = report_of(record)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(InvalidInput, match="pandas is not installed"):
        report.frame("damage")


@pytest.mark.parametrize(
    "change",
    [
        {"baseline": {"nll": "low"}},
        {"rankings": [{"metric": "m"}]},
        {"damage": [{"metric": "m", "k": 1}]},
        {"damage": 3},
        {"texts": None},
        {"timings": {"score": "fast"}},
    ],
)
def test_a_summary_of_another_shape_is_named_and_no_value_is_made_up(
    folder: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "SHA256SUMS"}
    manifest = json.loads(files["manifest.json"])
    del manifest["sums"]  # as a run of an early version, which has no hash of its summary
    files |= {
        "summary.json": json.dumps({**json.loads(files["summary.json"]), **change}).encode(),
        "manifest.json": json.dumps(manifest).encode(),
    }
    (tmp_path / "early").mkdir()
    for name, content in files.items():
        (tmp_path / "early" / name).write_bytes(content)
    with pytest.raises(CwaError, match=f"summary.json.*{next(iter(change))}"):
        open_run(tmp_path / "early")


def points() -> st.SearchStrategy[CriticalSet]:
    step = st.builds(CriticalSetStep, st.integers(), st.text(), *[st.floats() for _ in range(5)])
    return st.builds(CriticalSet, st.floats(), st.booleans(), st.lists(step).map(tuple))


@given(points())
def test_rows_read_back_from_plain_values_but_for_what_is_not_finite(found: CriticalSet) -> None:
    plain = json.loads(json.dumps(to_plain(found), allow_nan=False))
    read = from_plain(CriticalSet, plain)
    assert to_plain(read) == plain
    for one, other in zip(read.steps, found.steps, strict=True):
        for name in ("delta_nll", "perplexity_ratio"):
            was, now = getattr(other, name), getattr(one, name)
            assert was == now if math.isfinite(was) else math.isnan(now)


def test_plain_values_of_another_type_are_refused_by_name() -> None:
    point = to_plain(DamagePoint("m", 1, "zero", "critical", None, 1, 2.0, 3.0, 0.1, 0.0, 0.2, 1.1))
    for name, value in [("k", True), ("k", 1.5), ("nll", "2.0"), ("metric", None), ("seed", "0"), ("collapsed_at", 1)]:
        with pytest.raises(ValueError, match=name):
            from_plain(DamagePoint, {**point, name: value})
    del point["nll"]
    with pytest.raises(ValueError, match="nll"):
        from_plain(DamagePoint, {**point, "of a later version": 1})
    with pytest.raises(ValueError, match="metric"):
        from_plain(Separation, {})


def test_of_several_controls_the_one_that_collapsed_is_the_worst_and_else_the_largest_change_in_either_direction() -> (
    None
):
    def group(*largest: float | None) -> DamageSummary:
        key: dict[str, Any] = {"metric": "obd", "k": 3, "perturbation": "zero"}
        figures: dict[str, Any] = {
            "draws": 19, "texts": 8, "critical": 1.0, "median": 0.0, "as_extreme": 0, "p_value": 0.05, "largest_low": None,
            "largest_high": None, "ratio": None, "beyond": False,
        }  # fmt: skip
        controls = (Separation(**key, control=f"c{n}", largest=change, **figures) for n, change in enumerate(largest))
        return DamageSummary(**key, critical=None, controls=tuple(controls))

    def worst(*largest: float | None) -> str | None:
        found = group(*largest).worst_control
        return found.control if found else None

    assert worst(0.1, -0.4, 0.2) == "c1"
    assert worst(0.1, None, 0.2) == "c1"
    assert worst() is None
