"""The folder of a study: `studies/<id>/` in the state folder. torch-free."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from cwa_engine.base.plain import JsonMap
from cwa_engine.studies.study import Cell, Study


class StudyFolder:
    """A study that was asked for: its id, what it is, when, and what was submitted so far."""

    path: Path
    id: str  # `20261126-103205-scaling-k7q2`; its end is enough wherever a study is named
    study: Study
    created: float  # seconds since the epoch

    @classmethod
    def create(cls, study: Study, root: Path | None = None) -> StudyFolder:
        """Write the folder of a new study. `root` is the folder of studies, if not that in the state folder."""
        raise NotImplementedError

    @classmethod
    def open(cls, id_or_end: str, root: Path | None = None) -> StudyFolder:
        """The study of that id, or whose id begins or ends so; "latest" is the latest. Raises NotFound and DataError."""
        raise NotImplementedError

    @classmethod
    def all(cls, root: Path | None = None) -> list[StudyFolder]:
        """All studies that can be read, the latest first."""
        raise NotImplementedError

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        raise NotImplementedError

    @property
    def registration(self) -> JsonMap | None:
        """What registration.json says; None for a study that was not registered before its first run."""
        raise NotImplementedError
