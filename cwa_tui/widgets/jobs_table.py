"""The job list: latest first, with live progress. The row under the cursor is the selected run."""

from __future__ import annotations

from dataclasses import dataclass

from textual import on
from textual.message import Message
from textual.widgets import DataTable

from cwa_daemon.protocol import JobView
from cwa_tui import format as fmt
from cwa_tui.columns import Column
from cwa_tui.state import ConnectionState, JobList
from cwa_tui.widgets.live_table import LiveTable, TableRow

PROGRESS_CELLS = 20

_NOTHING = {
    ConnectionState.CONNECTING: "connecting to the daemon ...",
    ConnectionState.CONNECTED: "no jobs yet: press n to start a run",
    ConnectionState.LOST: "no jobs are known",
}


class JobsTable(LiveTable):
    """Posts `Selected` when the user moves to another run, `Opened` at enter."""

    COLUMNS = (
        Column("run_id", "run id", 30, most=44, cut="middle"),
        Column("model", "model", 20, most=36, cut="start", optional=3),
        Column("state", "state", 11),
        Column("progress", "progress", PROGRESS_CELLS, most=60),
        Column("took", "took", 7, right=True),
        Column("age", "age", 6, right=True, optional=2),
    )

    @dataclass
    class Selected(Message):
        run_id: str

    @dataclass
    class Opened(Message):
        run_id: str

    _cursor_run: str | None = None  # the selected run that the cursor was put on last

    def show_jobs(self, job_list: JobList, connection: ConnectionState, now: float) -> None:
        """Show the jobs, with the cursor on the selected one."""
        self.show([_row(job, now) for job in job_list.jobs], nothing=_NOTHING[connection])
        # once for each selection: the cursor may be a key press ahead of the store, and must not jump back
        selected = job_list.selected
        if selected and selected != self._cursor_run and self.move_cursor_to(selected):
            self._cursor_run = selected

    @on(DataTable.RowHighlighted)
    def _select(self, event: DataTable.RowHighlighted) -> None:
        event.stop()
        if event.row_key.value:
            self._cursor_run = event.row_key.value
            self.post_message(self.Selected(event.row_key.value))

    @on(DataTable.RowSelected)
    def _open(self, event: DataTable.RowSelected) -> None:
        event.stop()
        if event.row_key.value:
            self.post_message(self.Opened(event.row_key.value))


def job_progress(job: JobView) -> str:
    """The progress of a job, or its error, in a few words."""
    if error := job.error or job.copy_error:
        return str(error["message"])
    if job.progress:
        at = job.progress
        return fmt.progress(at.stage, at.done, at.total, PROGRESS_CELLS, at.unit)
    if job.state == "running":
        return "starting"
    if job.state == "queued":
        return "waiting"
    return "model loaded" if job.kind == "load" and job.state == "done" else ""


def _row(job: JobView, now: float) -> TableRow:
    cells = {
        "run_id": job.run_id,
        "model": job.model,
        "state": job.state,
        "progress": job_progress(job),
        "took": fmt.clock((job.finished or now) - job.started) if job.started else "",
        "age": fmt.age(job.created, now),
    }
    return TableRow(job.run_id, cells, styles={"state": fmt.STATE_STYLES.get(job.state, "")})
