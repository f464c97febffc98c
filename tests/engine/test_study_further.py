"""Runs that a question asks for once the grid has ended: each once, whatever dies in between."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cwa_engine.base.errors import DataError
from cwa_engine.studies.folder import FURTHER, StudyFolder
from cwa_engine.studies.report import study_report
from cwa_engine.studies.running import progress_of, run_study
from cwa_engine.studies.study import Study
from tests.engine import fake_runner
from tests.engine.fake_runner import FakeRunner
from tests.engine.study_runs import LLAMA, Planted, planted_run, targets_in

TOP = targets_in(LLAMA, "down", 1, 3)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StudyFolder:
    """A study of transfer whose runs all find the same weights."""

    def found(self: fake_runner.FakeRun) -> object:
        metric = "given" if self.spec.weights else "grad_x_weight"
        asked = {"metrics": [], "weights": TOP, "topk": [3]} if self.spec.weights else {"tops": {metric: TOP}}
        planted = Planted(metric, 3, delta=0.5)
        return planted_run(self.spec.model, damage=[planted], run_id=f"20260101-000000-{self.run_id}", **asked)

    monkeypatch.setattr(fake_runner.FakeRun, "report", found)
    texts = tmp_path / "texts.txt"
    texts.write_text("one text\n\nanother text\n")
    study = Study(question="transfer", grid={"model": ("base", "tuned")}, run={"topk": (3,), "data_file": texts})
    return StudyFolder.of(study, tmp_path / "studies")[0]


def test_further_runs_are_asked_for_once_the_grid_has_ended(folder: StudyFolder) -> None:
    runner = FakeRunner()
    progress = run_study(folder, runner)
    assert [(cell.cell.number, cell.cell.label, cell.state) for cell in progress] == [
        (1, "base", "done"),
        (2, "tuned", "done"),
        (3, "tuned, weights 3 given", "done"),
    ]
    assert runner.asked == ["base", "tuned", "tuned"]
    assert runner.runs["run-2"].spec.weights == tuple(TOP)
    report = study_report(folder, runner)
    assert report.complete and report.answer
    assert "tuned has 3 of 3 of its coordinates, and their damage carries over" in report.answer.sentence


def test_going_on_with_a_study_that_has_ended_asks_for_nothing(folder: StudyFolder) -> None:
    runner = FakeRunner()
    run_study(folder, runner)
    again = StudyFolder.at(folder.path)
    assert len(again.cells) == 3
    run_study(again, runner)
    assert len(runner.asked) == 3


def test_a_process_that_died_before_the_second_step_leaves_it_to_the_next(folder: StudyFolder) -> None:
    runner = FakeRunner()
    run_study(folder, runner, wait=False)
    assert [cell.state for cell in progress_of(folder, runner)] == ["queued", "queued"]
    for run in runner.runs.values():
        list(run.events())
    run_study(StudyFolder.at(folder.path), runner)
    assert len(runner.asked) == 3
    (folder.path / FURTHER).unlink()  # as if it had died before this file was written: the same runs are found again
    run_study(StudyFolder.at(folder.path), runner)
    assert len(runner.asked) == 3


def test_a_base_that_failed_leaves_no_second_step(folder: StudyFolder) -> None:
    runner = FakeRunner(failing={"base"})
    assert [cell.state for cell in run_study(folder, runner)] == ["failed", "done"]
    answer = study_report(folder, runner).answer
    assert answer and any("the first model has no run" in reason for reason in answer.refused)


def test_a_list_of_further_runs_that_is_damaged_is_named(folder: StudyFolder) -> None:
    for content in ("{", json.dumps([{"model": 3}]), "[1]", "7"):
        (folder.path / FURTHER).write_text(content)
        with pytest.raises(DataError, match="further"):
            _ = folder.cells
