"""A study from a notebook or script, from the question to the answer. torch-free."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from cwa_engine.base.errors import InvalidInput
from cwa_engine.base.files import user_path
from cwa_engine.data.datasets import absolute_dataset
from cwa_engine.hub.sources import absolute_name
from cwa_engine.named_runners import NamedRunner
from cwa_engine.runner import Runner
from cwa_engine.studies import running
from cwa_engine.studies import study as studies
from cwa_engine.studies.folder import StudyFolder
from cwa_engine.studies.report import StudyReport, study_report

_PATHS: dict[str, Callable[[str], str]] = {
    "model": absolute_name,
    "dataset": absolute_dataset,
    "data_file": lambda given: str(user_path(given, "data_file")),
}


class Study(studies.Study):
    """A study that a notebook asks for.

    study = cwa.Study(question="scaling", grid={"model": ["model-a", "model-b"]}, run={"topk": 100})
    print(study.run(on="ray").answer.sentence)
    """

    def run(
        self,
        on: Runner | str = "local",
        folder: str | Path | None = None,
        say: Callable[[str], None] = print,
        **options: Any,
    ) -> StudyReport:
        """Run all cells, wait for their end, and give what they answer; asked again it goes on where it stopped.

        `on` is a runner, or names one: "local" is this process, "ray" a Ray of this machine's own, "ray:auto" the one that
        runs here, "ray:HOST:6379" that of a cluster. A named one takes `options`, as `slots` and `gpus`, and is closed at the
        end. For `folder`, `say` and what is raised see `run_study`.
        """
        return run_study(self, on, folder, say, **options)


def run_study(
    study: studies.Study,
    on: Runner | str,
    folder: str | Path | None = None,
    say: Callable[[str], None] = print,
    **options: Any,
) -> StudyReport:
    """Run all cells of a study, wait for their end, and give what they answer.

    Asked again it goes on where it stopped: no cell that is done runs twice. `on` is a runner, or the name of one as
    `Study.run` has it, which takes `options`. `folder` is where studies are kept, if not in the state folder. `say` hears what
    is worth telling. Raises InvalidInput for a study that cannot answer its question, and for a name that there is not.

        study = cwa.Study(question="scaling", grid={"model": ["model-a", "model-b"]}, run={"topk": 100})
        report = cwa.run_study(study, on=cwa.LocalRunner("results"))
        print(report.answer.sentence)
    """
    if isinstance(on, str):
        asked = NamedRunner(on, options)
        with closing(asked.open(say)) as runner:
            return _run(study, runner, folder, say, asked)
    if options:
        raise InvalidInput(
            f"{', '.join(options)} belongs to a runner that is named", hint="give it to the runner when you make it"
        )
    return _run(study, on, folder, say)


def _run(
    study: studies.Study,
    on: Runner,
    folder: str | Path | None,
    say: Callable[[str], None],
    asked_for: NamedRunner | None = None,
) -> StudyReport:
    asked = study if on.elsewhere else _with_whole_paths(study)
    kept, _ = StudyFolder.of(asked, Path(folder) if folder is not None else None, on.where)
    if asked_for:
        kept.keep_runner(asked_for)
    running.run_study(kept, on, say)
    return study_report(kept, on)


def _with_whole_paths(study: studies.Study) -> studies.Study:
    """Names of files made absolute, as another process may have another working folder."""
    run = {name: _whole(name, value) for name, value in study.shared.items()}
    grid = {name: tuple(_whole(name, value) for value in values) for name, values in study.grid.items()}
    return studies.Study(question=study.question, name=study.name, run=run, grid=grid)


def _whole(name: str, value: Any) -> Any:
    return _PATHS[name](value) if value and name in _PATHS else value
