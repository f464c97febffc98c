"""The dashboard: devices, warm models, what waits and runs, and recent runs."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container, Vertical
from textual.widgets import Footer

from cwa_daemon.protocol import WarmModel
from cwa_tui import format as fmt
from cwa_tui.screens.base import StoreScreen
from cwa_tui.screens.confirm import ConfirmScreen
from cwa_tui.widgets.banner import Banner
from cwa_tui.widgets.jobs_table import JobsTable
from cwa_tui.widgets.memory_gauges import MemoryGauges
from cwa_tui.widgets.models_table import ModelsTable, model_key
from cwa_tui.widgets.row_table import RowTable
from cwa_tui.widgets.status_line import StatusLine


class HomeScreen(StoreScreen):
    """Enter opens a run; two to four that are marked with space are compared by `=`."""

    AUTO_FOCUS = "#jobs"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("u", "unload", "Unload"),
        Binding("equals_sign", "compare", "Compare", key_display="="),
    ]
    changing_keys = (*StoreScreen.changing_keys, "unload", "compare")

    def compose(self) -> ComposeResult:
        yield StatusLine(id="status")
        yield Banner(id="banner")
        with Container(id="body"):
            yield JobsTable("jobs", title="jobs")
            with Vertical(id="models", classes="pane") as models:
                models.border_title = "warm models"
                yield ModelsTable("models-table")
                yield MemoryGauges(id="memory")
        yield Footer()

    def draw(self) -> None:
        store, now = self.store, self.store.now()
        self.query_one(StatusLine).show_status(store.daemon)
        self.query_one(Banner).show_connection(store.connection)
        self.query_one(JobsTable).show_jobs(store.job_list, store.connection.state, now)
        self.query_one(ModelsTable).show_models(store.daemon, now)
        self.query_one(MemoryGauges).show_memory(store.daemon)

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
                return True if self.store.warm_models else None
            case "compare":
                return True if self.is_mounted and len(self.query_one(JobsTable).marks) > 1 else None
        return super().check_action(action, parameters)

    @on(RowTable.Highlighted, "#jobs")
    def _select(self, message: RowTable.Highlighted) -> None:
        self.session.select(message.key)
        self.redraw()

    @on(RowTable.Opened, "#jobs")
    def _open(self, message: RowTable.Opened) -> None:
        self.navigation.open_run(message.key)

    @on(RowTable.Marked, "#jobs")
    def _marked(self) -> None:
        self._draw_keys()

    @on(RowTable.Arranged, "#jobs")
    def _arrange(self, message: RowTable.Arranged) -> None:
        self.session.ask(replace(self.store.query, text=message.text))

    def action_compare(self) -> None:
        self.navigation.open_comparison(self.query_one(JobsTable).marks)

    def action_unload(self) -> None:
        if (model := self.chosen_model) is None:
            return
        about = f"{model.name} · {model.dtype} on {model.device} · frees {fmt.size(model.size_bytes)}"
        question = ConfirmScreen("unload this model?", about, "unload it", "keep it")
        self.confirm(question, lambda: self.session.unload(model.name), f"{model.name} is unloaded")
