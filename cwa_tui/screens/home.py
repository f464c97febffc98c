"""The dashboard: devices over time, what runs and waits, warm models, and all runs."""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from typing import ClassVar

from pydantic import ValidationError
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container
from textual.events import Resize
from textual.widgets import Footer

from cwa_daemon.protocol import JobQuery, JobView, WarmModel
from cwa_engine.base.errors import CwaError
from cwa_engine.command_line import command_of
from cwa_engine.spec import RunSpec
from cwa_tui.screens.base import StoreScreen
from cwa_tui.screens.confirm import ConfirmScreen
from cwa_tui.store.followed_run import FollowedRun
from cwa_tui.store.job_facts import newest
from cwa_tui.store.state import ConnectionState
from cwa_tui.tables.filters import Sorting
from cwa_tui.text import format as fmt
from cwa_tui.widgets.active_jobs import ActiveJobs
from cwa_tui.widgets.banner import Banner
from cwa_tui.widgets.device_history import DeviceHistory, device_lines_wanted
from cwa_tui.widgets.job_preview import JobPreview
from cwa_tui.widgets.jobs_table import SORTS, JobsTable
from cwa_tui.widgets.memory_bars import MemoryBars
from cwa_tui.widgets.models_table import ModelsTable, model_key
from cwa_tui.widgets.row_table import RowTable
from cwa_tui.widgets.status_line import StatusLine

RUNS, OTHERS = ("run",), ("load", "plan", "pull", "inspect", "weight", "prompt")
MOST_FOLLOWED = 4  # jobs that run, whose events are told as they come


class HomeScreen(StoreScreen):
    """Enter opens a run; two to four that are marked with space are compared by `=`."""

    AUTO_FOCUS = "#jobs"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("u", "unload", "Unload"),
        Binding("equals_sign", "compare", "Compare", key_display="="),
        Binding("S", "studies", "Studies", show=False),
        Binding("t", "other_jobs", "Loads and plans", show=False),
        Binding("1", "focus('#jobs')", "Runs", show=False),
        Binding("2", "focus('#models-table')", "Warm models", show=False),
    ]
    changing_keys = (*StoreScreen.changing_keys, "unload", "compare")

    _has_few_runs = False  # so that the list leaves room

    def compose(self) -> ComposeResult:
        yield StatusLine(id="status")
        yield Banner(id="banner")
        yield DeviceHistory(id="devices")
        with Container(id="middle"):
            yield ActiveJobs(id="active")
            with Container(id="models"):
                yield ModelsTable("models-table")
                yield MemoryBars(id="memory")
        with Container(id="bottom"):
            yield JobsTable("jobs", title="runs")
            yield JobPreview(id="preview")
        yield Footer(compact=True)

    def on_mount(self) -> None:
        for name, title in (
            ("#devices", "devices"),
            ("#active", "now"),
            ("#models", "\\[2] warm models"),
            ("#preview", "selected"),
        ):
            self.query_one(name).border_title = title
        self._ask_for(self.preferences.table("jobs").sorting)
        self.watch(self.query_one(JobsTable), "scroll_y", self._ask_for_what_is_in_sight, init=False)

    def on_screen_resume(self) -> None:
        self.preferences.change(last_screen=())

    def on_resize(self, event: Resize) -> None:
        self.call_after_refresh(self.redraw)

    # drawing

    @property
    def _is_wide(self) -> bool:
        return self.has_class("-wide")

    @property
    def _is_lost(self) -> bool:
        return self.store.connection.state is ConnectionState.LOST

    def draw(self) -> None:
        store, lost = self.store, self._is_lost
        answered_at = store.answered_at if lost else None
        self.query_one(StatusLine).show_status(store.daemon, answered_at)
        self.query_one(Banner).show_connection(store.connection, answered_at)
        self.set_class(lost, "-lost")
        self._draw_devices(lost)
        self._draw_models(lost)
        self._draw_active(lost)
        self._fit_middle()
        self._draw_jobs(lost)

    def _draw_devices(self, lost: bool) -> None:
        devices = self.query_one(DeviceHistory)
        samples = self.store.history
        count = len(samples[-1].devices) if samples else 1
        if self.store.query.kinds == RUNS and not self.store.query.text:  # what is filtered moves no pane
            self._has_few_runs = self.store.job_list.total < self.size.height // 6
        wanted = device_lines_wanted(count, self.size.height, self._has_few_runs)
        devices.styles.height = wanted + devices.gutter.height
        devices.show_history(list(samples), lost)

    def _draw_active(self, lost: bool) -> None:
        store, now = self.store, self.store.now()
        jobs = [newest(job, self._followed(job)) for job in store.active.jobs]
        running = [job for job in jobs if job.state == "running"]
        followed = [job.run_id for job in running][:MOST_FOLLOWED]
        selected = store.job_list.selected
        self.session.watch(self, [*followed, selected] if selected and self._is_wide else followed)
        runs = {job.run_id: store.followed_run(job.run_id) for job in running[:MOST_FOLLOWED]}
        height = max(5, self._models_lines) if self._is_wide else max(3, self.size.height // 6)
        more = max(0, store.active.total - len(jobs))
        self.query_one(ActiveJobs).show_active(jobs, more, runs, now, height, lost)

    def _draw_models(self, lost: bool) -> None:
        store, table = self.store, self.query_one(ModelsTable)
        table.most_rows = max(2, self.size.height // 8)
        table.show_models(store.daemon, store.now())
        self.query_one(MemoryBars).show_memory(store.daemon, self.has_class("-short"), lost)

    def _fit_middle(self) -> None:
        """Side by side, both are as high as the one that has more to say."""
        lines = max(self.query_one(ActiveJobs).line_count, self._models_lines)
        self.query_one("#middle").styles.height = lines + 2 if self._is_wide else "auto"

    @property
    def _models_lines(self) -> int:
        return self.query_one(ModelsTable).line_count + self.query_one(MemoryBars).line_count

    def _draw_jobs(self, lost: bool) -> None:
        store, now, table = self.store, self.store.now(), self.query_one(JobsTable)
        listed = replace(store.job_list, jobs=tuple(newest(job, self._followed(job)) for job in store.job_list.jobs))
        selected = table.show_jobs(listed, store.connection.state, now)
        if selected is not None and selected != store.job_list.selected:
            self.session.select(selected)
        table.retitle(self._title_of_list())
        job = store.job(selected) if selected else None
        job = newest(job, self._followed(job)) if job else None
        run = store.followed_run(job.run_id) if job else None
        self.query_one(JobPreview).show_job(job, run, now, lost, _command(job) if job and self._is_wide else "")

    def _title_of_list(self) -> str:
        """`[1] runs 1-7 of 154 · t: loads and plans · S: studies`."""
        kinds, others = ("runs", "loads and plans") if self.store.query.kinds == RUNS else ("loads and plans", "runs")
        first, last = self.query_one(JobsTable).places_in_sight
        total = self.store.job_list.total
        part = f" {first + 1:,}-{last:,} of {total:,}" if total else ""
        return f"\\[1] {kinds}{part} · t: {others} · S: studies"

    def _followed(self, job: JobView) -> FollowedRun | None:
        return self.store.followed_run(job.run_id) if job.state == "running" else None

    # which jobs are listed

    def _ask_for(self, sorting: Sorting | None, text: str | None = None, kinds: tuple[str, ...] | None = None) -> None:
        """Have the first jobs in an order; what is not given stays as it is."""
        query = self.store.query
        order, descending = "created", True
        if sorting and sorting.column in SORTS:
            order = SORTS[sorting.column]
            descending = sorting.descending is not (sorting.column == "age")  # the older, the earlier created
        wanted = replace(
            query,
            offset=0,
            sort=order,
            descending=descending,
            text=query.text if text is None else text,
            kinds=query.kinds if kinds is None else kinds,
        )
        self.session.ask(wanted)

    def _ask_for_what_is_in_sight(self) -> None:
        first, last = self.query_one(JobsTable).places_in_sight
        self.session.ask(with_places(self.store.query, first, last, self.store.job_list.total))
        self.redraw()

    @on(RowTable.Arranged, "#jobs")
    def _arrange(self, message: RowTable.Arranged) -> None:
        self._ask_for(message.sorting, message.text)

    def action_other_jobs(self) -> None:
        """Show jobs that only load or plan instead of runs, or runs again."""
        self._ask_for(self.query_one(JobsTable).look.sorting, kinds=OTHERS if self.store.query.kinds == RUNS else RUNS)
        self.query_one(JobsTable).focus()

    # what keys are about

    @property
    def run_in_view(self) -> str | None:
        return self.store.job_list.selected

    @property
    def chosen_model(self) -> WarmModel | None:
        """The warm model under the cursor of their table, else the first."""
        key, models = self.query_one(ModelsTable).cursor_key, self.store.warm_models
        return next((model for model in models if model_key(model) == key), None) or next(iter(models), None)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        match action:
            case "unload":
                return True if self.store.warm_models and not self._is_lost else None
            case "compare":
                return True if self.is_mounted and len(self.query_one(JobsTable).marks) > 1 else None
        return super().check_action(action, parameters)

    @on(RowTable.Highlighted, "#jobs")
    def _select(self, message: RowTable.Highlighted) -> None:
        table = self.query_one(JobsTable)
        if (run_id := table.cursor_job) is not None:  # else its page is on the way
            table.chosen(run_id)
            self.session.select(run_id)
        self.redraw()

    @on(RowTable.Opened, "#jobs")
    def _open(self, message: RowTable.Opened) -> None:
        if (run_id := self.query_one(JobsTable).cursor_job) is not None:
            self.navigation.open_run(run_id)

    @on(RowTable.Marked, "#jobs")
    def _marked(self) -> None:
        self._draw_keys()

    def action_studies(self) -> None:
        self.navigation.open_studies()

    def action_compare(self) -> None:
        self.navigation.open_comparison(self.query_one(JobsTable).marks)

    def action_unload(self) -> None:
        if (model := self.chosen_model) is None:
            return
        about = f"{model.name} · {model.dtype} on {model.device} · frees {fmt.size(model.size_bytes)}"
        question = ConfirmScreen("unload this model?", about, "unload it", "keep it")
        self.confirm(question, lambda: self.session.unload(model.name), f"{model.name} is unloaded")


@functools.lru_cache(maxsize=64)
def _command_of(spec: str) -> str:
    try:
        return command_of(RunSpec(**json.loads(spec)))
    except (ValidationError, CwaError):  # by another version
        return ""


def _command(job: JobView) -> str:
    """The command line of a run; empty for other jobs, and for a spec that this version does not know."""
    return _command_of(json.dumps(job.spec, sort_keys=True)) if job.kind == "run" else ""


def with_places(query: JobQuery, first: int, last: int, total: int) -> JobQuery:
    """The query for a part of the jobs that has the places from `first` to `last` in it; the same where it has them."""
    if query.offset <= first and min(last, total) <= query.offset + query.limit:
        return query
    return replace(query, offset=max(0, first - (query.limit - (last - first)) // 2))
