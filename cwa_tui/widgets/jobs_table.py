"""The job list: as many as there are, of which the store holds a part. The row under the cursor is the selected job."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cwa_daemon.protocol import JobView
from cwa_engine.records.run_id import short_id
from cwa_tui.store.job_facts import asked_for, ratios, result, sentence, state_and_result
from cwa_tui.store.state import ConnectionState, JobList
from cwa_tui.tables.columns import Column
from cwa_tui.tables.filters import Sorting
from cwa_tui.tables.rows import RowSource, TableRow
from cwa_tui.text import format as fmt
from cwa_tui.widgets.row_table import RowTable

_OUTCOME_CELLS = 26
_NOT_HERE = "place:"  # begins the key of a row that the store does not hold; its place follows

# A narrow table has state and result in one column, a wide one each of its own.
NARROW = (
    Column("id", "id", 4),
    Column("model", "model", 11, most=15, cut="start"),
    Column("asked", "asked for", 18, most=24),
    Column("outcome", "state", _OUTCOME_CELLS, most=48),
    Column("age", "age", 6, right=True),
    Column("took", "took", 7, right=True, optional=1),
)
WIDE = (
    Column("id", "id", 4),
    Column("model", "model", 14, most=24, cut="start"),
    Column("asked", "asked for", 18, most=20),
    Column("state", "state", 13),
    Column("result", "result", 23, most=48),
    Column("took", "took", 7, right=True, optional=1),
    Column("age", "age", 6, right=True),
    Column("verdict", "verdict", 80, most=160, optional=2),
    Column("device", "device", 6, optional=3),
    Column("run_id", "run id", 40, most=60, cut="middle", optional=4),
)
_TAGS = Column("tags", "tags", 10, most=30, optional=1)  # of a wide table, where a job has any
LEAST_WIDE = 96  # cells
SORTS = {  # column -> what the daemon sorts by
    "id": "created", "run_id": "created", "age": "created", "model": "model", "state": "state", "outcome": "state",
    "result": "ratio", "verdict": "ratio", "took": "took",
}  # fmt: skip

_NOTHING = {
    ConnectionState.CONNECTING: "connecting to the daemon ...",
    ConnectionState.CONNECTED: "no runs yet: press n to start one",
    ConnectionState.LOST: "no runs are known",
}


@dataclass(frozen=True)
class JobRows:
    """The rows of a query: `jobs` from place `offset` on are here, the others are asked for when they come into sight.

    The daemon filters and sorts.
    """

    jobs: tuple[JobView, ...]
    offset: int
    total: int
    now: float
    columns: tuple[Column, ...]

    def __len__(self) -> int:
        return self.total

    def job_at(self, place: int) -> JobView | None:
        """The job in a row, None where it is not here."""
        within = place - self.offset
        return self.jobs[within] if 0 <= within < len(self.jobs) else None

    def row(self, place: int) -> TableRow:
        job = self.job_at(place)
        return TableRow(f"{_NOT_HERE}{place}", {"id": "..."}) if job is None else job_row(job, self.now)

    def place_of(self, key: str) -> int | None:
        """The place of a job by its run id, or by its short id if it is here."""
        if key.startswith(_NOT_HERE):
            return int(key.removeprefix(_NOT_HERE))
        found = (place for place, job in enumerate(self.jobs, self.offset) if key in (job.run_id, short_id(job.run_id)))
        return next(found, None)

    def arranged(self, sorting: Sorting | None, text: str) -> RowSource:
        return self


class JobsTable(RowTable):
    """One job a row; up to four can be marked, to be compared."""

    MARKS = 4
    COLUMNS = NARROW

    _shown: tuple[JobRows, ConnectionState] | None = None
    _shown_run: str | None = None  # the selected job, once the cursor is on it

    def show_jobs(self, job_list: JobList, connection: ConnectionState, now: float) -> str | None:
        """Show the jobs, with the cursor on the selected one. Gives the run id that is to be selected now.

        That is another one where the selected job is not listed any more: then it is that under the cursor.
        """
        wide = (*WIDE[:5], _TAGS, *WIDE[5:]) if any(job.tags for job in job_list.jobs) else WIDE
        columns = wide if self.scrollable_content_region.width >= LEAST_WIDE else NARROW
        rows = JobRows(job_list.jobs, job_list.offset, job_list.total, _coarse(now, job_list), columns)
        if (rows, connection) != self._shown:
            self._shown = rows, connection
            self.show(rows, nothing=_NOTHING[connection])
        selected = job_list.selected
        if selected != self._shown_run:  # once for each selection: the cursor may be ahead of the store
            if selected is not None and self.move_cursor_to(selected):
                self._shown_run = selected
            return selected
        under_cursor = self.cursor_job
        if under_cursor and under_cursor != selected and self.source.place_of(selected or "") is None:
            self._shown_run = under_cursor
        return self._shown_run

    def sort_by(self, column: str) -> None:
        if column in SORTS:
            super().sort_by(column)
        else:
            sortable = [c.label for c in self.all_columns if c.key in SORTS]
            self.notify(f"the list is sorted by {', '.join(sortable[:-1])} or {sortable[-1]}", severity="warning")

    def jump_to(self, text: str) -> None:
        """A job that is not here is jumped to by showing it alone: its place in the list is not known."""
        if text.isdigit() or self.source.place_of(text) is not None:
            super().jump_to(text)
        else:
            self.filter_by(text)

    @property
    def cursor_job(self) -> str | None:
        """Run id of the job under the cursor, None while it is not here."""
        key = self.cursor_key
        return None if key is None or key.startswith(_NOT_HERE) else key

    def chosen(self, run_id: str) -> None:
        """The user has moved the cursor to this job."""
        self._shown_run = run_id

    @property
    def places_in_sight(self) -> tuple[int, int]:
        """The first place on screen, and the one after the last."""
        first = self.top
        room = max(0, self.scrollable_content_region.height - 1 - self.has_foot)
        return first, min(first + room, len(self.source))

    @property
    def has_foot(self) -> bool:
        """Only for what is typed, filtered or marked: the title says how many there are."""
        return self.is_prompting or bool(self.filter_text or self.marks)

    @property
    def foot(self) -> str:
        if self.is_prompting:
            return super().foot
        marked = [f"{len(self.marks)} marked"] if self.marks else []
        return " · ".join([*([f"/{self.filter_text}"] if self.filter_text else []), *marked])


def _coarse(now: float, job_list: JobList) -> float:
    """The moment that ages are counted to: to ten seconds where no job runs or is young, so that nothing is drawn for them."""
    ticks = any(job.state == "running" or now - job.created < 60 for job in job_list.jobs)
    return now if ticks else now - now % 10


def job_row(job: JobView, now: float) -> TableRow:
    took = job.took_s(now)
    cells = {
        "id": short_id(job.run_id),
        "run_id": job.run_id,
        "model": job.model,
        "asked": asked_for(job),
        "state": fmt.signed(job.state),
        "result": result(job),
        "outcome": state_and_result(job, _OUTCOME_CELLS),
        "took": fmt.clock(took) if took else "",
        "age": fmt.age(job.created, now),
        "verdict": sentence(job),
        "device": job.device,
        "tags": " ".join(job.tags),
    }
    style = fmt.STATE_STYLES.get(job.state, "")
    return TableRow(job.run_id, cells, styles={"state": style, "outcome": style}, values=_values(job, took))


def _values(job: JobView, took_s: float) -> Mapping[str, Any]:
    """What is exported, with exact numbers."""
    return {
        "id": job.run_id,
        "state": job.state,
        "result": ratios(job) or result(job),
        "took": took_s,
        "age": job.created,
    }
