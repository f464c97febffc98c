"""Studies as the screens know them: how far each is, and what it comes to. No Textual in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cwa_engine.records.run_summary import RunSummary

if TYPE_CHECKING:
    from cwa_engine.studies.answer import Answer
    from cwa_engine.studies.progress import CellProgress
    from cwa_engine.studies.study import Study
    from cwa_tui.tables.study import Stage


@dataclass(frozen=True, slots=True)
class KnownStudy:
    """One study. `summaries` are those of its done runs that were read, by run id."""

    id: str
    study: Study
    created: float  # seconds since the epoch
    journal: int = 0  # when its journal was written last
    progress: tuple[CellProgress, ...] = ()  # a run whose files cannot be read counts as failed
    summaries: Mapping[str, RunSummary] = field(default_factory=dict)
    answer: Answer | None = None  # of `answered_runs`, which may be fewer than are done by now
    answered_runs: frozenset[str] = frozenset()
    why_no_answer: str = ""
    is_registered: bool = False  # before its first run
    on: str = ""  # the runner that runs it, as "ray"; empty for the daemon
    stages: Mapping[str, Stage | None] = field(default_factory=dict)  # of runs on such a runner, by run id

    @property
    def complete(self) -> bool:
        """Whether all cells have ended, in whatever way."""
        return all(entry.ended for entry in self.progress)

    @property
    def is_final(self) -> bool:
        """Whether the answer is that of all runs there will be."""
        return self.complete and self.answered_runs == self.done_runs

    def count(self, *states: str) -> int:
        return sum(entry.state in states for entry in self.progress)

    @property
    def state(self) -> str:
        """The state of a job that stands for all cells: what goes on, else the worst end."""
        states = {entry.state for entry in self.progress}
        for state in ("running", "queued", "waiting", "failed", "cancelled"):
            if state in states:
                return state
        return "done"

    @property
    def done_runs(self) -> frozenset[str]:
        return frozenset(entry.run_id for entry in self.progress if entry.state == "done")
