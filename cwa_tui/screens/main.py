"""The main screen: jobs above, the selected run below; in a wide terminal everything at once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container, Vertical
from textual.screen import Screen
from textual.widget import Widget
from textual.widgets import Footer
from textual.worker import Worker, WorkerState

from cwa_daemon.protocol import WarmModel
from cwa_engine.base.errors import CwaError
from cwa_tui import format as fmt
from cwa_tui.draft import Draft
from cwa_tui.screens.confirm import ConfirmScreen
from cwa_tui.screens.help import HelpScreen
from cwa_tui.screens.new_run import NewRunScreen
from cwa_tui.session import Session
from cwa_tui.state import Link
from cwa_tui.widgets.banner import Banner
from cwa_tui.widgets.damage_table import DamageTable
from cwa_tui.widgets.jobs_table import JobsTable
from cwa_tui.widgets.memory_gauges import MemoryGauges
from cwa_tui.widgets.models_table import ModelsTable, model_key
from cwa_tui.widgets.pane_tabs import PANES, PaneTabs
from cwa_tui.widgets.run_line import RunLine
from cwa_tui.widgets.run_log import RunLog
from cwa_tui.widgets.status_line import StatusLine
from cwa_tui.widgets.topk_table import TopkTable, metrics_of


class MainScreen(Screen[None]):
    """Draws the session's store, and passes on what the user asks for."""

    AUTO_FOCUS = "#jobs"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("n", "new_run", "New run"),
        Binding("c", "cancel_run", "Cancel"),
        Binding("r", "retry", "Retry"),
        Binding("u", "unload", "Unload"),
        Binding("m", "next_metric", "Metric"),
        Binding("question_mark", "help", "Help", key_display="?"),
        Binding("q", "app.quit", "Quit"),
        Binding("1", "jobs", show=False),
        Binding("escape", "jobs", show=False),
        *(Binding(str(key), f"pane('{pane}')", show=False) for key, pane in enumerate(PANES, 2)),
    ]

    def __init__(self, session: Session, clock: Callable[[], float]) -> None:
        super().__init__()
        self._session = session
        self._store = session.store
        self._clock = clock
        self._drawn = -1  # version of the store that is on screen
        self._followed: str | None = None
        self._keys: list[bool | None] = []  # which keys can be used, as the footer shows them
        self._draft = Draft()

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
        self._choose("topk")
        self._draw()
        self.set_interval(self._session.pace.redraw_s, self._draw)
        self.run_worker(self._session.keep_up(self._lost), group="poll", exclusive=True, exit_on_error=False)

    # what is on screen

    def _draw(self) -> None:
        store, now = self._store, self._clock()
        if store.link is Link.CONNECTED and store.selected and store.selected != self._followed:
            self._followed = store.selected
            self.run_worker(self._session.follow(store.selected), group="follow", exclusive=True, exit_on_error=False)
        if store.version == self._drawn:
            return
        self._drawn = store.version
        self.query_one(StatusLine).show_status(store)
        self.query_one(Banner).show_link(store)
        self.query_one(JobsTable).show_jobs(store, now)
        self.query_one(ModelsTable).show_models(store, now)
        self.query_one(MemoryGauges).show_memory(store)
        self._draw_run(now)
        keys = [self.check_action(action, ()) for action in ("cancel_run", "retry", "unload", "next_metric")]
        if keys != self._keys:  # or the footer would be built anew each second
            self._keys = keys
            self.refresh_bindings()

    def _draw_run(self, now: float) -> None:
        run, job = self._store.run, self._store.job
        self.query_one(RunLine).show_run(run, job, now)
        self.query_one(TopkTable).show_run(run, job)
        self.query_one(DamageTable).show_run(run, job)
        self.query_one(RunLog).show_run(run)

    def _lost(self) -> None:
        """Whoever followed is cut off; with the next connection it is followed again, from where it was."""
        self.workers.cancel_group(self, "follow")
        self._followed = None

    @on(JobsTable.Selected)
    def _select(self, message: JobsTable.Selected) -> None:
        self._store.select(message.run_id)
        self._draw()

    @on(JobsTable.Opened)
    def _open(self) -> None:
        self.action_pane("topk")

    # moving about

    def action_jobs(self) -> None:
        self.query_one(JobsTable).focus()

    def action_pane(self, pane: str) -> None:
        """Show a pane, where not all are seen, and go there."""
        self._choose(pane)
        target: Widget = self.query_one("#models-table" if pane == "models" else f"#{pane}")
        self.call_after_refresh(target.focus)

    def _choose(self, pane: str) -> None:
        self.query_one(PaneTabs).active = pane
        for name in PANES:
            self.query_one(f"#{name}").set_class(name == pane, "-active")
        self.query_one(RunLine).set_class(pane != "models", "-active")

    def action_next_metric(self) -> None:
        self.query_one(TopkTable).next_metric(self._store.run, self._store.job)
        self._draw_run(self._clock())

    def action_help(self) -> None:
        self.app.push_screen(HelpScreen())

    # asking the daemon

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """None greys a key out: nothing selected that it could act on."""
        job = self._store.job
        match action:
            case "cancel_run":
                return True if job and not job.ended else None
            case "retry":
                return True if job and job.ended else None
            case "unload":
                return True if self._model() else None
            case "next_metric":
                return len(metrics_of(self._store.run, job)) > 1
        return True

    def action_new_run(self) -> None:
        def keep(draft: Draft) -> None:
            self._draft = draft

        warm = [model.name for model in self._store.status.models] if self._store.status else []
        form = NewRunScreen(self._session.submit, keep, self._draft, warm)
        self.app.push_screen(form, lambda run_id: self._say(f"{run_id} is queued") if run_id else None)

    def action_cancel_run(self) -> None:
        if (job := self._store.job) is None:
            return
        run_id, said = job.run_id, "is asked to end; that happens between two batches"
        question = ConfirmScreen("cancel this run?", f"{run_id}\n{job.model} · {job.state}", "cancel it", "keep it")
        self._ask_first(question, lambda: self._session.cancel(run_id), f"{run_id} {said}")

    def action_retry(self) -> None:
        if job := self._store.job:
            self._ask(lambda: self._session.retry(job.run_id), f"{job.run_id} runs again as a new job")

    def action_unload(self) -> None:
        if (model := self._model()) is None:
            return
        about = f"{model.name} · {model.dtype} on {model.device} · frees {fmt.size(model.size_bytes)}"
        question = ConfirmScreen("unload this model?", about, "unload it", "keep it")
        self._ask_first(question, lambda: self._session.unload(model.name), f"{model.name} is unloaded")

    def _model(self) -> WarmModel | None:
        """The warm model under the cursor of their table."""
        key = self.query_one(ModelsTable).cursor_key
        models = self._store.status.models if self._store.status else []
        return next((model for model in models if model_key(model) == key), None) or next(iter(models), None)

    def _ask_first(self, question: ConfirmScreen, request: Callable[[], Awaitable[object]], done: str) -> None:
        self.app.push_screen(question, lambda yes: self._ask(request, done) if yes else None)

    def _ask(self, request: Callable[[], Awaitable[object]], done: str) -> None:
        async def ask() -> None:
            await request()
            self._say(done)

        self.run_worker(ask(), group="requests", exit_on_error=False)

    def _say(self, text: str) -> None:
        self.notify(text, markup=False)

    @on(Worker.StateChanged)
    def _explain(self, event: Worker.StateChanged) -> None:
        """An error of anything that was asked for is said, with what to do about it."""
        error = event.worker.error
        if event.state is WorkerState.ERROR and error:
            hint = f"\n{error.hint}" if isinstance(error, CwaError) and error.hint else ""
            said = str(error) if isinstance(error, CwaError) else f"{type(error).__name__}: {error}"
            self.notify(f"{said}{hint}", severity="error", timeout=10, markup=False)

    async def on_unmount(self) -> None:
        await self._session.close()
