"""The folder of a study: `studies/<id>/` in the state folder, with study.json and journal.jsonl. torch-free."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from cwa_engine.base.errors import DataError, InvalidInput, NotFound, OutputError, did_you_mean
from cwa_engine.base.files import is_read_once, write_folder, write_whole
from cwa_engine.base.places import state_folder
from cwa_engine.base.plain import JsonMap
from cwa_engine.named_runners import NamedRunner, named_at
from cwa_engine.options import parsed
from cwa_engine.records.run_id import new_run_id
from cwa_engine.spec import RunSpec, parse_spec
from cwa_engine.studies.further import further_cells
from cwa_engine.studies.journal import Journal
from cwa_engine.studies.registry import study_question, with_needs
from cwa_engine.studies.study import Cell, Study, cells_of

STUDY, JOURNAL, REGISTRATION, FURTHER = "study.json", "journal.jsonl", "registration.json", "further.json"
RUNNER = "runner.json"  # which runner with a name ran it last; of no other machine's concern, so no bundle has it
LATEST = "latest"


@dataclass(frozen=True)
class StudyFolder:
    """A study that was asked for. It is never changed: what is submitted for it stands in its journal."""

    path: Path
    study: Study  # with what its question's runs need
    created: float  # seconds since the epoch
    where: str = ""  # its runs are, as in `Runner.where`; empty for the daemon of this machine

    @property
    def id(self) -> str:
        """`20261126-103205-scaling-k7q2`; its end is enough wherever a study is named."""
        return self.path.name

    @classmethod
    def create(cls, study: Study, root: Path | None = None, where: str = "") -> StudyFolder:
        """Write the folder of a new study. `root` is the folder of studies, if not that in the state folder; `where` is that
        of the runner that will run it.

        Raises InvalidInput for a study that cannot answer its question, and OutputError.
        """
        study = with_needs(study)
        _check_texts(cells_of(study))
        root = root or studies_folder()
        path = root / new_run_id(study.name or study.question or "grid")
        created = time.time()
        fields = study.to_plain()
        about = {"created": created, "where": where, "sha256": study.sha256(), "study": fields}
        try:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_folder(path, [(STUDY, json.dumps(about, indent=2).encode())])
        except OSError as error:
            raise OutputError(f"{path} cannot be written: {error.strerror}", hint="make room there") from error
        return cls.at(path)

    @classmethod
    def of(cls, study: Study, root: Path | None = None, where: str = "") -> tuple[StudyFolder, bool]:
        """The latest study that asks for the same under the same name there, else a new one; and whether it was there."""
        wanted = with_needs(study)
        asked = (wanted.sha256(), wanted.name, where)
        for folder in cls.all(root):
            if (folder.study.sha256(), folder.study.name, folder.where) == asked:
                return folder, True
        return cls.create(study, root, where), False

    @classmethod
    def at(cls, path: Path) -> StudyFolder:
        """The study of a folder. Raises NotFound, and DataError for one that is damaged."""
        try:
            about = json.loads((path / STUDY).read_text("utf-8"))
            study = parsed(Study, about["study"], hint="")
            created, sha256, where = float(about["created"]), about["sha256"], str(about["where"])
        except FileNotFoundError:
            raise NotFound(f"{path} holds no study", hint="`cwtool study list` lists all") from None
        except (OSError, ValueError, KeyError, TypeError, RecursionError, InvalidInput) as error:
            raise _damaged(path, str(error)) from error
        if study.sha256() != sha256:
            raise _damaged(path, "it is not what was asked for: its hash differs")
        return cls(path, study, created, where)

    @classmethod
    def open(cls, id_or_end: str, root: Path | None = None) -> StudyFolder:
        """The study of that id, or whose id begins or ends so; "latest" is the latest.

        Raises NotFound, InvalidInput where it may be several, and DataError for one that is damaged.
        """
        names = _names(root or studies_folder())
        if id_or_end == LATEST and names:
            return cls.at(names[0])
        matches = [path for path in names if path.name == id_or_end]
        matches = matches or [path for path in names if id_or_end and path.name.endswith(f"-{id_or_end}")]
        matches = matches or [path for path in names if id_or_end and path.name.startswith(id_or_end)]
        if len(matches) == 1:
            return cls.at(matches[0])
        if matches:
            some = ", ".join(path.name for path in matches[:3])
            raise InvalidInput(f"'{id_or_end}' may be {len(matches)} studies: {some}", hint="give more of the id")
        if id_or_end == LATEST:
            raise NotFound("there is no study yet", hint="`cwtool study run --help` says how to make one")
        near = did_you_mean(id_or_end, [path.name for path in names])
        raise NotFound(f"there is no study '{id_or_end}'", hint=near or "`cwtool study list` lists all")

    @classmethod
    def all(cls, root: Path | None = None) -> list[StudyFolder]:
        """All studies that can be read, the latest first."""
        return cls.all_and_damaged(root)[0]

    @classmethod
    def all_and_damaged(cls, root: Path | None = None) -> tuple[list[StudyFolder], list[DataError]]:
        """All studies that can be read, the latest first, and what is wrong with the others."""
        found, damaged = [], []
        for path in _names(root or studies_folder()):
            try:
                found.append(cls.at(path))
            except DataError as error:
                damaged.append(error)
            except NotFound:
                continue
        return sorted(found, key=lambda folder: folder.created, reverse=True), damaged

    @cached_property
    def grid(self) -> tuple[Cell, ...]:
        """The runs that were asked for."""
        return cells_of(self.study)

    @property
    def cells(self) -> tuple[Cell, ...]:
        """The grid, and behind it the runs that its question made from the reports of those that are done."""
        return (*self.grid, *further_cells(self.study, self.grid, self.further))

    @property
    def further(self) -> tuple[RunSpec, ...]:
        """What further.json says; none before the grid has ended. Raises DataError for one that is damaged."""
        try:
            return tuple(parse_spec(fields) for fields in json.loads((self.path / FURTHER).read_text("utf-8")))
        except FileNotFoundError:
            return ()
        except (OSError, ValueError, TypeError, RecursionError, InvalidInput) as error:
            raise _damaged(self.path, str(error), FURTHER) from error

    @property
    def awaits_further(self) -> bool:
        """Whether its question may still ask for runs behind the grid."""
        asks = bool(self.study.question) and study_question(self.study.question).further is not None
        return asks and not (self.path / FURTHER).exists()

    def write_further(self, specs: Sequence[RunSpec]) -> None:
        """Make these specs the cells behind the grid. Raises OutputError."""
        content = json.dumps([spec.model_dump(mode="json") for spec in specs], indent=2)
        try:
            write_whole(self.path / FURTHER, content.encode())
        except OSError as error:
            raise OutputError(f"{self.path} cannot be written: {error.strerror}", hint="make room there") from error

    @property
    def runner(self) -> NamedRunner | None:
        """The runner that ran it last, with its address and options, where its runs are with one that has a name; else None.

        Raises DataError where that cannot be read.
        """
        if (known := named_at(self.where)) is None:
            return None
        try:
            kept = json.loads((self.path / RUNNER).read_text("utf-8"))
            last = NamedRunner(str(kept["name"]), dict(kept["options"]))
        except FileNotFoundError:
            return known
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(
                f"{self.path / RUNNER} cannot be read: {error}", hint="remove it, and give --on again"
            ) from error
        return NamedRunner(last.name, {**last.options, **known.options}) if last.kind == known.kind else known

    def keep_runner(self, runner: NamedRunner) -> None:
        """Write down who runs it, so that it goes on there. Raises OutputError."""
        options = {name: value for name, value in runner.options.items() if value is not None}
        content = json.dumps({"name": runner.name, "options": options}, indent=2, default=str)
        try:
            write_whole(self.path / RUNNER, content.encode())
        except OSError as error:
            raise OutputError(f"{self.path} cannot be written: {error.strerror}", hint="make room there") from error

    @property
    def journal(self) -> Journal:
        return Journal(self.path / JOURNAL)

    @property
    def registration(self) -> JsonMap | None:
        """What registration.json says; None for a study that was not registered. Raises DataError for one that is damaged."""
        try:
            found = json.loads((self.path / REGISTRATION).read_text("utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as error:
            raise _damaged(self.path, str(error), REGISTRATION) from error
        if not isinstance(found, dict):
            raise _damaged(self.path, "it is no JSON object", REGISTRATION)
        return found


def studies_folder() -> Path:
    """The folder of all studies, in the state folder."""
    return state_folder() / "studies"


def _check_texts(cells: tuple[Cell, ...]) -> None:
    """Raises InvalidInput for texts that can be read once alone, as every run reads them again."""
    for path in {cell.spec.data_file for cell in cells if cell.spec.data_file}:
        if is_read_once(path):
            raise InvalidInput(
                f"{path} is a pipe, and every run of a study reads its texts", hint="write the texts into a file first"
            )


def _names(root: Path) -> list[Path]:
    """The folders of studies, the latest first; one that is still being written has a hidden name."""
    if not root.is_dir():
        return []
    found = [path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")]
    return sorted(found, key=lambda path: path.name, reverse=True)


def _damaged(path: Path, why: str, name: str = STUDY) -> DataError:
    return DataError(
        f"{path / name} cannot be read: {why}",
        hint="its runs are not lost: `cwtool results` lists them; move the folder away, and ask for the study again",
    )
