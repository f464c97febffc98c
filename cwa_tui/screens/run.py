"""One run: its verdict, its stages, the weights it ranked, the damage they do, where they are, and its log."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container, Vertical
from textual.widget import Widget
from textual.widgets import Footer

from cwa_engine.records.places import Places
from cwa_tui.screens.base import StoreScreen
from cwa_tui.store.state import SelectedRun
from cwa_tui.tables.critical_places import MANY_DRAWN, drawn_layers, places_of
from cwa_tui.tables.ranking import RankingRows
from cwa_tui.widgets.answers_pane import AnswersPane
from cwa_tui.widgets.banner import Banner
from cwa_tui.widgets.damage_chart import DamageChart
from cwa_tui.widgets.damage_curve import DamageCurve, damage_curve
from cwa_tui.widgets.damage_table import DamageTable, measured_points
from cwa_tui.widgets.pane_tabs import PaneTabs
from cwa_tui.widgets.profile_pane import ProfilePane
from cwa_tui.widgets.row_table import RowTable
from cwa_tui.widgets.run_headline import RunHeadline
from cwa_tui.widgets.run_log import RunLog
from cwa_tui.widgets.stages import StageLine
from cwa_tui.widgets.topk_table import TopkTable

if TYPE_CHECKING:
    from cwa_tui.store.preferences import PreferenceFile
    from cwa_tui.store.session import Session

PANES = {  # id -> what it is called
    "topk": "top weights",
    "damage-pane": "damage",
    "profile": "profile",
    "run-log": "log",
    "answers": "answers",
}
_FOCUS = {"damage-pane": "damage"}  # pane -> the widget in it that takes keys, where that is not itself


class RunScreen(StoreScreen):
    """Escape goes back; enter on a weight opens it. A narrow terminal shows one pane at a time."""

    AUTO_FOCUS = "#topk"
    DEFAULT_CSS = """
    RunScreen {
        #run-headline { height: auto; max-height: 6; padding: 0 1; }
        #stages { height: auto; max-height: 3; padding: 0 1; display: none; }
        #run-body { height: 1fr; }
        #profile, #answers, #damage-pane, #run-log { background: $background; scrollbar-size-vertical: 1; }
        #profile, #answers { padding: 0 1; }
        #answers-text { height: auto; }
    }
    RunScreen.-short #run-headline { max-height: 4; }
    RunScreen.-wide {
        #run-body { layout: horizontal; }
        #run-left { width: 1fr; }
        #run-right { width: 48%; }
        #profile, #answers { border: round $surface-lighten-2; }
        #profile:focus, #answers:focus { border: heavy $accent; }
        #topk, #profile { height: 1fr; }
        #damage-pane { height: 2fr; }
        #run-log, #answers { height: 1fr; display: none; }
        #run-log.-chosen, #answers.-chosen { display: block; }
        #run-right.-answers #damage-pane { display: none; }
    }
    RunScreen.-narrow {
        #run-left, #run-right, #topk, #profile, #damage-pane, #run-log, #answers { display: none; height: 1fr; }
        #profile, #answers { border-top: solid $surface-lighten-2; }
        #profile:focus, #answers:focus { border-top: heavy $accent; }
        .-active { display: block; }
        #run-left.-active, #run-right.-active, #topk.-active, #profile.-active { display: block; }
        #damage-pane.-active, #run-log.-active, #answers.-active { display: block; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "app.pop_screen", "Back"),
        Binding("m", "next_metric", "Metric"),
        Binding("p", "next_perturbation", "Next perturbation", show=False),
        Binding("F", "figures", "Figures"),
        Binding("A", "prompt", "Prompt, intact and damaged", show=False),
        *(Binding(str(key), f"pane('{pane}')", show=False) for key, pane in enumerate(PANES, 1)),
    ]
    changing_keys = (*StoreScreen.changing_keys, "next_metric", "next_perturbation", "figures", "prompt")

    def __init__(self, session: Session, preferences: PreferenceFile, run_id: str) -> None:
        super().__init__(session, preferences)
        self.run_id = run_id
        self._metric: str | None = None  # whose ranking is shown
        self._perturbation: str | None = None  # of the chart
        self._charted: tuple[object, ...] = ()  # what the curve is made of
        self._curve = DamageCurve(())
        self._placed: tuple[object, ...] = ()  # what the places are made of
        self._places: Places | None = None
        self._drawn_layers: Mapping[int | None, int] = {}

    def compose(self) -> ComposeResult:
        yield Banner(id="banner")
        yield RunHeadline(id="run-headline")
        yield StageLine(id="stages")
        yield PaneTabs(PANES, id="tabs")
        with Container(id="run-body"):
            with Vertical(id="run-left"):
                yield TopkTable("topk")
                yield ProfilePane("profile")
            with Vertical(id="run-right"):
                with Vertical(id="damage-pane"):
                    yield DamageTable("damage")
                    yield DamageChart("damage-chart")
                yield RunLog("run-log")
                yield AnswersPane("answers")
        yield Footer(compact=True)

    def on_mount(self) -> None:
        self._show_pane("run-log")  # beside which a wide terminal shows all others
        self._show_pane("topk")
        self.session.watch(self, [self.run_id])

    def on_unmount(self) -> None:
        self.session.unwatch(self)

    @property
    def run_in_view(self) -> str | None:
        return self.run_id

    # drawing

    def draw(self) -> None:
        self._draw_run()
        self._share_room()

    def _draw_run(self) -> None:
        selected, store = self.store.run(self.run_id), self.store
        self._metric = _one_of(self._metric, selected.metrics)
        whole = store.ranking(self.run_id, self._metric) if self._metric else None
        if selected.report and self._metric in selected.report.metrics and whole is None:
            self.session.want_ranking(self.run_id, self._metric)
        self.query_one(Banner).show_connection(store.connection)
        short, stages = self.has_class("-short"), selected.run.stages
        self.query_one(RunHeadline).show_run(selected, self._metric, self._took(selected), 2 if short else 5)
        self.query_one(StageLine).show_stages(stages, selected.run.status.state, store.now(), in_short=short)
        table = self.query_one(TopkTable)
        table.show_ranking(selected, self._metric, whole)
        self.query_one(RunLog).show_run(selected.run)
        self._draw_damage(selected)
        self._draw_profile(selected, table.ranking)
        why = store.why_no_report(self.run_id)
        self.query_one(AnswersPane).show_report(selected.report, f"{why.message}\n{why.hint}" if why else _NO_ANSWERS)

    def _took(self, selected: SelectedRun) -> float | None:
        """Seconds that workers were at it."""
        job = selected.job
        return job.took_s(self.store.now()) if job and job.started else None

    def _draw_damage(self, selected: SelectedRun) -> None:
        table = self.query_one(DamageTable)
        points = measured_points(selected)
        metric = _one_of(self._metric, list(dict.fromkeys(point.metric for point in points)))
        table.show_damage(selected, metric)
        kinds = list(dict.fromkeys(point.perturbation for point in points if point.metric == metric))
        self._perturbation = _one_of(self._perturbation, kinds)
        seen = (points, metric, self._perturbation)
        if seen != self._charted:
            self._charted, self._curve = seen, damage_curve(points, metric or "", self._perturbation or "")
        self.query_one(DamageChart).show_curve(self._curve, _NO_CHART, table.with_draws)

    def _draw_profile(self, selected: SelectedRun, ranking: RankingRows | None) -> None:
        report = selected.report
        if (ranking, report) != self._placed:
            self._placed = (ranking, report)
            self._places, self._drawn_layers = places_of(ranking) if ranking is not None else None, {}
            if self._places and ranking is not None and report and self._metric and report.spec.scope == "global":
                if report.spec.largest_k <= MANY_DRAWN:
                    self._drawn_layers = drawn_layers(report.controls, self._metric, ranking)
                layers = [layer for layer in self._drawn_layers if layer is not None]
                self._places = replace(self._places, depth=max(layers, default=-1) + 1)
        places = self._places
        count = f"of {places.total:,} weights by {self._metric}" if places else ""
        nothing = "where the critical weights are is shown once there are some"
        self.query_one(ProfilePane).show_places(
            f"layers and components {count}".strip(), places, self._drawn_layers, nothing
        )

    def on_resize(self) -> None:
        if self.is_mounted:
            self._share_room()

    def _share_room(self) -> None:
        """Give tables the lines they need, up to a part of what there is; charts and bars take the rest."""
        table, damage = self.query_one(TopkTable), self.query_one(DamageTable)
        wide, tall = self.has_class("-wide"), self.query_one("#run-body").size.height
        table.styles.height = min(table.wanted_height, tall * 3 // 5) if wide else "1fr"
        damage.styles.height = min(damage.wanted_height, tall // 3 if wide else tall // 2)

    # keys

    @on(RowTable.Opened, "#topk")
    def _open_weight(self, message: RowTable.Opened) -> None:
        if self._metric:
            self.navigation.open_weight(self.run_id, self._metric, int(message.key))

    @on(DamageTable.DrawsChanged)
    def _draws_changed(self) -> None:
        self.redraw()

    def _show_pane(self, pane: str) -> None:
        self.query_one(PaneTabs).active = pane
        for name in PANES:
            self.query_one(f"#{name}").set_class(name == pane, "-active")
        for side in ("run-left", "run-right"):
            self.query_one(f"#{side}").set_class(bool(self.query_one(f"#{side}").query(f"#{pane}")), "-active")
        if pane in ("run-log", "answers"):  # a wide terminal shows one of them
            for name in ("run-log", "answers"):
                self.query_one(f"#{name}").set_class(name == pane, "-chosen")
        self.query_one("#run-right").set_class(pane == "answers", "-answers")  # they need all of it

    def action_pane(self, pane: str) -> None:
        """Show a pane and move the focus there."""
        self._show_pane(pane)
        target: Widget = self.query_one(f"#{_FOCUS.get(pane, pane)}")
        self.call_after_refresh(target.focus)

    def action_next_metric(self) -> None:
        self._metric = _after(self._metric, self.store.run(self.run_id).metrics)
        self.redraw()

    def action_prompt(self) -> None:
        self.navigation.open_prompt(self.run_id, self._metric)

    def action_next_perturbation(self) -> None:
        points = measured_points(self.store.run(self.run_id))
        self._perturbation = _after(self._perturbation, list(dict.fromkeys(point.perturbation for point in points)))
        self.redraw()

    def action_figures(self) -> None:
        self.navigation.open_figures("run", [self.run_id])

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        match action:
            case "prompt":
                return True if self._metric and self.store.report(self.run_id) else None
            case "next_metric":
                return len(self.store.run(self.run_id).metrics) > 1
            case "next_perturbation":
                asked = self.store.run(self.run_id).asked
                return True if asked and len(asked.perturbations) > 1 else None
            case "figures":
                return True if self.store.report(self.run_id) else None
        return super().check_action(action, parameters)


_NO_CHART = "the chart is drawn when damage is measured"
_NO_ANSWERS = "verdicts and answers are here when the run is done"


def _one_of(now: str | None, known: list[str]) -> str | None:
    """What is chosen while it is there, else the first."""
    return now if now in known else next(iter(known), None)


def _after(now: str | None, known: list[str]) -> str | None:
    place = known.index(now) + 1 if now in known else 0
    return known[place % len(known)] if known else None
