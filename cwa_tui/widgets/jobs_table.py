"""The job list: latest first, with live progress. The row under the cursor is the selected run."""

from __future__ import annotations

from cwa_daemon.protocol import JobView
from cwa_tui import format as fmt
from cwa_tui.columns import Column
from cwa_tui.rows import TableRow
from cwa_tui.state import ConnectionState, JobList
from cwa_tui.widgets.row_table import RowTable

PROGRESS_CELLS = 20

_NOTHING = {
    ConnectionState.CONNECTING: "connecting to the daemon ...",
    ConnectionState.CONNECTED: "no jobs yet: press n to start a run",
    ConnectionState.LOST: "no jobs are known",
}


class JobsTable(RowTable):
    """One job a row; up to four can be marked, to be compared."""

    MARKS = 4

    COLUMNS = (
        Column("run_id", "run id", 30, most=44, cut="middle"),
        Column("model", "model", 20, most=36, cut="start", optional=3),
        Column("state", "state", 11),
        Column("progress", "progress", PROGRESS_CELLS, most=60),
        Column("took", "took", 7, right=True),
        Column("age", "age", 6, right=True, optional=2),
    )

    _cursor_run: str | None = None  # the selected run that the cursor was put on last

    def show_jobs(self, job_list: JobList, connection: ConnectionState, now: float) -> None:
        """Show the jobs, with the cursor on the selected one."""
        self.show([_row(job, now) for job in job_list.jobs], nothing=_NOTHING[connection])
        # once for each selection: the cursor may be a key press ahead of the store, and must not jump back
        selected = job_list.selected
        if selected and selected != self._cursor_run and self.move_cursor_to(selected):
            self._cursor_run = selected


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
        "state": fmt.signed(job.state),
        "progress": job_progress(job),
        "took": fmt.clock((job.finished or now) - job.started) if job.started else "",
        "age": fmt.age(job.created, now),
    }
    return TableRow(job.run_id, cells, styles={"state": fmt.STATE_STYLES.get(job.state, "")})
