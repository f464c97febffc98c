"""The main screen: jobs, the selected run, warm models. It chooses what its widgets show."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container, Vertical
from textual.widget import Widget
from textual.widgets import Footer

from cwa_daemon.protocol import WarmModel
from cwa_tui.screens.help import HelpScreen
from cwa_tui.screens.requests import RequestScreen
from cwa_tui.session import Session
from cwa_tui.widgets.banner import Banner
from cwa_tui.widgets.damage_table import DamageTable
from cwa_tui.widgets.jobs_table import JobsTable
from cwa_tui.widgets.memory_gauges import MemoryGauges
from cwa_tui.widgets.models_table import ModelsTable, model_key
from cwa_tui.widgets.pane_tabs import PANES, PaneTabs
from cwa_tui.widgets.run_line import RunLine
from cwa_tui.widgets.run_log import RunLog
from cwa_tui.widgets.status_line import StatusLine
from cwa_tui.widgets.topk_table import TopkTable


class MainScreen(RequestScreen):
    """Draws the slices of the session's store."""

    AUTO_FOCUS = "#jobs"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("m", "next_metric", "Metric"),
        Binding("question_mark", "help", "Help", key_display="?"),
        Binding("q", "app.quit", "Quit"),
        Binding("1", "jobs", show=False),
        Binding("escape", "jobs", show=False),
        *(Binding(str(key), f"pane('{pane}')", show=False) for key, pane in enumerate(PANES, 2)),
    ]

    def __init__(self, session: Session, clock: Callable[[], float]) -> None:
        super().__init__(session)
        self._clock = clock
        self._drawn = -1  # version of the store that is on screen
        self._metric: str | None = None  # whose ranking is shown
        self._keys: list[bool | None] = []  # which keys can be used, as the footer shows them

    def compose(self) -> ComposeResult:
        yield StatusLine(id="status")
        yield Banner(id="banner")
        with Container(id="body"):
            yield JobsTable("jobs", title="jobs")
            yield PaneTabs(id="tabs")
            with Vertical(id="models", classes="pane") as models:
                models.border_title = "warm models"
                yield ModelsTable("models-table")
                yield MemoryGauges(id="memory")
            yield RunLine(id="run-line")
            yield TopkTable("topk")
            yield DamageTable("damage")
            yield RunLog("run-log")
        yield Footer()

    def on_mount(self) -> None:
        self._show_pane("topk")
        self._draw()
        self.set_interval(self._session.pace.redraw_s, self._draw)
        self.run_worker(self._session.keep_up(self.explain), group="session")

    async def on_unmount(self) -> None:
        await self._session.close()

    # what is on screen

    def _draw(self) -> None:
        """Show the store if it changed since the last time."""
        if self._store.version != self._drawn:
            self._drawn = self._store.version
            self._draw_daemon()
            self._draw_run()
            self._draw_keys()

    def _draw_daemon(self) -> None:
        store, now = self._store, self._clock()
        self.query_one(StatusLine).show_status(store.daemon)
        self.query_one(Banner).show_connection(store.connection)
        self.query_one(JobsTable).show_jobs(store.job_list, store.connection.state, now)
        self.query_one(ModelsTable).show_models(store.daemon, now)
        self.query_one(MemoryGauges).show_memory(store.daemon)

    def _draw_run(self) -> None:
        selected = self._store.selected_run
        metrics = selected.metrics if selected else []
        if self._metric not in metrics:
            self._metric = metrics[0] if metrics else None
        self.query_one(RunLine).show_run(selected, self._clock())
        self.query_one(TopkTable).show_ranking(selected, self._metric)
        self.query_one(DamageTable).show_damage(selected)
        self.query_one(RunLog).show_run(selected.run if selected else None)

    def _draw_keys(self) -> None:
        keys = [self.check_action(action, ()) for action in ("cancel_run", "retry", "unload", "next_metric")]
        if keys != self._keys:  # the footer would be rebuilt each second otherwise
            self._keys = keys
            self.refresh_bindings()

    def _show_pane(self, pane: str) -> None:
        self.query_one(PaneTabs).active = pane
        for name in PANES:
            self.query_one(f"#{name}").set_class(name == pane, "-active")
        self.query_one(RunLine).set_class(pane != "models", "-active")

    # what the user chooses

    @on(JobsTable.Selected)
    def _select(self, message: JobsTable.Selected) -> None:
        self._session.select(message.run_id)
        self._draw()

    @on(JobsTable.Opened)
    def _open(self) -> None:
        self.action_pane("topk")

    def action_jobs(self) -> None:
        self.query_one(JobsTable).focus()

    def action_pane(self, pane: str) -> None:
        """Show a pane and move the focus there. A narrow layout shows one pane at a time."""
        self._show_pane(pane)
        target: Widget = self.query_one("#models-table" if pane == "models" else f"#{pane}")
        self.call_after_refresh(target.focus)

    def action_next_metric(self) -> None:
        selected = self._store.selected_run
        if selected and (metrics := selected.metrics):
            place = metrics.index(self._metric) if self._metric in metrics else 0
            self._metric = metrics[(place + 1) % len(metrics)]
            self._draw_run()

    def action_help(self) -> None:
        self.app.push_screen(HelpScreen())

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action == "next_metric":
            selected = self._store.selected_run
            return selected is not None and len(selected.metrics) > 1
        return super().check_action(action, parameters)

    @property
    def chosen_model(self) -> WarmModel | None:
        """The warm model under the cursor of their table."""
        key, models = self.query_one(ModelsTable).cursor_key, self._store.warm_models
        return next((model for model in models if model_key(model) == key), None) or super().chosen_model
