"""One run: its verdict, its stages, the weights it ranked, the damage they do, and its log."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container
from textual.widget import Widget
from textual.widgets import Footer

from cwa_tui.screens.base import StoreScreen
from cwa_tui.widgets.banner import Banner
from cwa_tui.widgets.damage_table import DamageTable
from cwa_tui.widgets.pane_tabs import PANES, PaneTabs
from cwa_tui.widgets.row_table import RowTable
from cwa_tui.widgets.run_line import RunLine
from cwa_tui.widgets.run_log import RunLog
from cwa_tui.widgets.topk_table import TopkTable

if TYPE_CHECKING:
    from cwa_tui.preferences import PreferenceFile
    from cwa_tui.session import Session


class RunScreen(StoreScreen):
    """Escape goes back; enter on a weight opens it."""

    AUTO_FOCUS = "#topk"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "app.pop_screen", "Back"),
        Binding("m", "next_metric", "Metric"),
        *(Binding(str(key), f"pane('{pane}')", show=False) for key, pane in enumerate(PANES, 1)),
    ]
    changing_keys = (*StoreScreen.changing_keys, "next_metric")

    def __init__(self, session: Session, preferences: PreferenceFile, run_id: str) -> None:
        super().__init__(session, preferences)
        self.run_id = run_id
        self._metric: str | None = None  # whose ranking is shown

    def compose(self) -> ComposeResult:
        yield Banner(id="banner")
        yield RunLine(id="run-line")
        yield PaneTabs(id="tabs")
        with Container(id="run-body"):
            yield TopkTable("topk")
            yield DamageTable("damage")
            yield RunLog("run-log")
        yield Footer()

    def on_mount(self) -> None:
        self._show_pane("topk")
        self.session.watch(self, [self.run_id])

    def on_unmount(self) -> None:
        self.session.unwatch(self)

    @property
    def run_in_view(self) -> str | None:
        return self.run_id

    def draw(self) -> None:
        selected = self.store.run(self.run_id)
        metrics = selected.metrics
        if self._metric not in metrics:
            self._metric = metrics[0] if metrics else None
        whole = self.store.ranking(self.run_id, self._metric) if self._metric else None
        if selected.report and self._metric and whole is None:
            self.session.want_ranking(self.run_id, self._metric)
        self.query_one(Banner).show_connection(self.store.connection)
        self.query_one(RunLine).show_run(selected, self.store.now())
        self.query_one(TopkTable).show_ranking(selected, self._metric, whole)
        self.query_one(DamageTable).show_damage(selected)
        self.query_one(RunLog).show_run(selected.run)

    @on(RowTable.Opened, "#topk")
    def _open_weight(self, message: RowTable.Opened) -> None:
        if self._metric:
            self.navigation.open_weight(self.run_id, self._metric, int(message.key))

    def _show_pane(self, pane: str) -> None:
        self.query_one(PaneTabs).active = pane
        for name in PANES:
            self.query_one(f"#{name}").set_class(name == pane, "-active")

    def action_pane(self, pane: str) -> None:
        """Show a pane and move the focus there. A narrow layout shows one pane at a time."""
        self._show_pane(pane)
        target: Widget = self.query_one(f"#{pane}")
        self.call_after_refresh(target.focus)

    def action_next_metric(self) -> None:
        if metrics := self.store.run(self.run_id).metrics:
            place = metrics.index(self._metric) if self._metric in metrics else 0
            self._metric = metrics[(place + 1) % len(metrics)]
            self.redraw()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action == "next_metric":
            return len(self.store.run(self.run_id).metrics) > 1
        return super().check_action(action, parameters)
