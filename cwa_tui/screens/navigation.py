"""How one screen opens another: the app does it, so that screens do not know each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from cwa_daemon.protocol import JobView
from cwa_engine.figures.figure import Source
from cwa_engine.spec import RunSpec


class Navigation(Protocol):
    """What screens ask of the app."""

    def open_run(self, run_id: str) -> None: ...

    def open_weight(self, run_id: str, metric: str, place: int) -> None:
        """The weight at this place of a ranking, from 1 on: its rank, where all were ranked together."""

    def open_card(self, run_id: str, spec: RunSpec, target: str) -> None:
        """All that can be found out about one weight of a run."""

    def open_prompt(self, run_id: str, metric: str | None, target: str | None = None) -> None:
        """Prompts for the model of a run, intact and damaged: in the first weights of a ranking, or in one weight."""

    def open_comparison(self, run_ids: Sequence[str]) -> None: ...

    def open_figures(self, of: Source, ids: Sequence[str]) -> None:
        """The figures of a run, a study, or of runs that are compared."""

    def open_studies(self) -> None: ...

    def open_study(self, study_id: str) -> None: ...

    def open_study_form(self) -> None: ...

    def open_form(self, like: JobView | None) -> None:
        """The form for a new run: with the draft, or filled in as a job was."""

    def open_help(self) -> None: ...

    def copy_text(self, text: str) -> None:
        """Copy to the clipboard and into a named file, and tell where it is."""
