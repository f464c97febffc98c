"""A study from a notebook or script, from the question to the answer. torch-free."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from cwa_engine.base.files import user_path
from cwa_engine.data.datasets import absolute_dataset
from cwa_engine.hub.sources import absolute_name
from cwa_engine.runner import Runner
from cwa_engine.studies import running
from cwa_engine.studies.folder import StudyFolder
from cwa_engine.studies.report import StudyReport, study_report
from cwa_engine.studies.study import Study

_PATHS: dict[str, Callable[[str], str]] = {
    "model": absolute_name,
    "dataset": absolute_dataset,
    "data_file": lambda given: str(user_path(given, "data_file")),
}


def run_study(
    study: Study, on: Runner, folder: str | Path | None = None, say: Callable[[str], None] = print
) -> StudyReport:
    """Run all cells of a study, wait for their end, and give what they answer.

    Asked again it goes on where it stopped: no cell that is done runs twice. `folder` is where studies are kept, if not in
    the state folder. `say` hears what is worth telling. Raises InvalidInput for a study that cannot answer its question.

        study = cwa.Study(question="scaling", grid={"model": ["model-a", "model-b"]}, run={"topk": 100})
        report = cwa.run_study(study, on=cwa.LocalRunner("results"))
        print(report.answer.sentence)
    """
    asked = study if on.elsewhere else _with_whole_paths(study)
    kept, _ = StudyFolder.of(asked, Path(folder) if folder is not None else None, on.where)
    running.run_study(kept, on, say)
    return study_report(kept, on)


def _with_whole_paths(study: Study) -> Study:
    """Names of files made absolute, as another process may have another working folder."""
    run = {name: _whole(name, value) for name, value in study.run.items()}
    grid = {name: tuple(_whole(name, value) for value in values) for name, values in study.grid.items()}
    return Study(question=study.question, name=study.name, run=run, grid=grid)


def _whole(name: str, value: Any) -> Any:
    return _PATHS[name](value) if value and name in _PATHS else value
