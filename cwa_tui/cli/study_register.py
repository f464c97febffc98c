"""`cwtool study register`: write down what a study asks before anything is measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cwa_engine.base.errors import InvalidInput
from cwa_tui.cli import completion
from cwa_tui.cli.output import say, show
from cwa_tui.cli.parameters import Json

if TYPE_CHECKING:
    from cwa_engine.studies.folder import StudyFolder


def register_study(
    which: Annotated[
        str,
        typer.Argument(
            metavar="FILE.toml|STUDY",
            help="A file with a study, which is made and registered; or the id of one that is there.",
            show_default=False,
            autocompletion=completion.study_ids,
        ),
    ],
    as_json: Json = False,
) -> None:
    """Hash what a study asks, the rule of its answer and its texts, and write that down with the time. Nothing is measured.

    It is written once; `study show` says whether it was before the first run, and whether anything has changed since."""
    from cwa_engine.studies.registration import register, standing

    folder = _folder(which)
    registration = register(folder)
    found = standing(folder)
    if as_json:
        show({"study": folder.id, **registration, "standing": found.sentence, "holds": found.holds})
        return
    show(f"{folder.id}: {found.sentence}")
    say("publish the hash where others can see when: the clock of this machine proves little")
    if not found.runs:
        say(f"to run it: cwtool study resume {folder.id}")


def _folder(which: str) -> StudyFolder:
    """The study of a file, made if it is not there; else the one of that id."""
    from cwa_engine.options import parsed
    from cwa_engine.studies.folder import StudyFolder
    from cwa_engine.studies.study import Study
    from cwa_engine.studies.study_file import SUFFIX, read_study
    from cwa_tui.cli.connection import chosen_host
    from cwa_tui.form.places import model_name

    if not (which.endswith(SUFFIX) or "/" in which):
        return StudyFolder.open(which)
    if chosen_host():
        raise InvalidInput("a study of another machine is registered by its id", hint="`cwtool study list` has the ids")
    study = parsed(Study, read_study(which, model_name), hint="`cwtool study run --help` lists the options")
    folder, known = StudyFolder.of(study)
    if known:
        say(f"{folder.id} asks for the same: it is registered")
    return folder
