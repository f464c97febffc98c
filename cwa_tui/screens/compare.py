"""Two to four runs beside each other: the answer in words, shared weights, ranks, damage, and where the weights are."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container, Vertical, VerticalScroll
from textual.widget import Widget
from textual.widgets import Footer

from cwa_engine.records.compared import Comparison, RankPair
from cwa_engine.records.comparison import compare, rank_pairs
from cwa_engine.records.profiles import COMPONENT
from cwa_engine.records.run_id import short_id
from cwa_engine.records.run_report import RunReport
from cwa_tui.screens.base import StoreScreen
from cwa_tui.store.whole_report import whole_report
from cwa_tui.tables import comparison as view
from cwa_tui.text.visible import words
from cwa_tui.widgets.banner import Banner
from cwa_tui.widgets.comparison_charts import MARKERS, CurvesChart, RankScatter
from cwa_tui.widgets.comparison_tables import ViewRows
from cwa_tui.widgets.pane_tabs import PaneTabs
from cwa_tui.widgets.quiet_static import QuietStatic

if TYPE_CHECKING:
    from cwa_tui.store.preferences import PreferenceFile
    from cwa_tui.store.session import Session

PANES = {"answer": "answer", "shared": "shared weights", "ranks": "ranks", "curves": "damage", "parts": "components"}


class CompareScreen(StoreScreen):
    """m, p and o choose the ranking, the perturbation and the pair whose ranks are shown. A narrow terminal shows one pane.

    f subtracts damage that was not measured alike, with the reasons beside each difference.
    """

    DEFAULT_CSS = """
    CompareScreen {
        #compare-head { height: auto; max-height: 3; padding: 0 1; }
        #compare-tabs { height: 1; }
        #compare-body { height: 1fr; }
        #answer { padding: 0 1; scrollbar-size-vertical: 1; }
        #answer-text { height: auto; }
        #curve-table { height: 1fr; max-height: 40%; }
        #overlap, #profile-table { height: 1fr; }
    }
    CompareScreen.-narrow {
        #answer, #shared, #ranks, #curves, #parts { display: none; height: 1fr; border-top: solid $surface-lighten-2; }
        #curves, #parts, #shared { border-top: none; }
        #answer.-active, #shared.-active, #ranks.-active, #curves.-active, #parts.-active { display: block; }
        #answer:focus, #ranks:focus-within { border-top: heavy $accent; }
    }
    CompareScreen.-wide {
        #compare-body { layout: grid; grid-size: 2 3; grid-rows: 1fr 1fr 1fr; grid-gutter: 0 1; }
        #answer { border: round $surface-lighten-2; row-span: 1; height: 100%; }
        #answer:focus { border: heavy $accent; }
        #ranks { border: round $surface-lighten-2; row-span: 1; }
        #ranks:focus-within { border: heavy $accent; }
        #curves { row-span: 2; }
        #shared, #ranks, #curves, #parts { height: 100%; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "app.pop_screen", "Back"),
        Binding("m", "next('metric')", "Metric"),
        Binding("p", "next('perturbation')", "Change", show=False),
        Binding("o", "next('pair')", "Other pair"),
        Binding("f", "force", "Force"),
        Binding("F", "figures", "Figures"),
        *(Binding(str(key), f"pane('{pane}')", show=False) for key, pane in enumerate(PANES, 1)),
    ]
    changing_keys = (*StoreScreen.changing_keys, "next", "force", "figures")

    def __init__(self, session: Session, preferences: PreferenceFile, run_ids: Sequence[str]) -> None:
        super().__init__(session, preferences)
        self.run_ids = tuple(run_ids)
        self._reports: list[RunReport] = []
        self._found: Comparison | None = None
        self._trouble = ""
        self._force = False
        self._chosen: dict[str, str] = {}  # metric, perturbation and pair in view
        self._shown: tuple[str, ...] = ()  # the choices that are on screen
        self._ranks: dict[tuple[str, str], Sequence[RankPair]] = {}  # by metric and pair

    def compose(self) -> ComposeResult:
        yield Banner(id="banner")
        yield QuietStatic(id="compare-head")
        yield PaneTabs(PANES, id="compare-tabs")
        with Container(id="compare-body"):
            with VerticalScroll(id="answer", can_focus=True):
                yield QuietStatic(id="answer-text")
            with Vertical(id="curves"):
                yield ViewRows("curve-table")
                yield CurvesChart("curve-chart", left=16)
            with Vertical(id="shared"):
                yield ViewRows("overlap")
            with Vertical(id="ranks"):
                yield RankScatter("rank-scatter", left=8)
            with Vertical(id="parts"):
                yield ViewRows("profile-table")
        yield Footer(compact=True)

    def on_mount(self) -> None:
        self.query_one("#answer").border_title = "answer"
        self.query_one("#ranks").border_title = "ranks"
        self.action_pane("answer")
        self.run_worker(self._load(), group="compare", exclusive=True)

    # what is compared

    async def _load(self) -> None:
        """Fetch the reports and compare them, beside the screen."""
        try:
            client = self.session.client
            self._reports = self._reports or [await whole_report(client, run_id) for run_id in self.run_ids]
            self._found = await asyncio.to_thread(compare, *self._reports, force=self._force)
        except Exception as error:
            self._trouble = f"these runs cannot be compared: {error}"
            self.explain(error)
        self._shown = ()
        if self.is_current:
            self.redraw()

    def _choices(self, what: str) -> list[str]:
        """What there is to choose from, in order."""
        found = self._found
        if found is None:
            return []
        match what:
            case "metric":
                return view.metrics_of(found)
            case "perturbation":
                return view.perturbations_of(found, self._choice("metric"))
        return [f"{pair.first} {pair.second}" for pair in found.pairs]

    def _choice(self, what: str) -> str:
        """What is chosen while it is there, else the first."""
        known = self._choices(what)
        return self._chosen.get(what, "") if self._chosen.get(what) in known else next(iter(known), "")

    # drawing

    def draw(self) -> None:
        self.query_one(Banner).show_connection(self.store.connection)
        found = self._found
        if found is None:
            waiting = "reading " + ", ".join(short_id(run) for run in self.run_ids)
            self.query_one("#compare-head", QuietStatic).say(words(self._trouble or waiting, "bold"))
            return
        metric = self._choice("metric")
        shown = metric, self._choice("perturbation"), self._choice("pair")
        if shown == self._shown:
            return
        self._shown = shown
        self.query_one("#compare-head", QuietStatic).say(self._head(found, metric))
        self.query_one("#answer-text", QuietStatic).say(_answer(found))
        nothing = "no two of the runs have this ranking, or it cannot be compared weight by weight: see the answer"
        overlaps = view.overlaps_table(found, metric)
        self.query_one("#overlap", ViewRows).show_tables([overlaps] if overlaps.rows else [], nothing)
        self._draw_ranks(found, metric)
        self._draw_curves(found, metric, self._choice("perturbation"))
        profiles = list(view.profile_tables(found, metric))
        self.query_one("#profile-table", ViewRows).show_tables(profiles, "nothing was ranked")
        if profiles:
            said = view.distance_lines(found, metric, COMPONENT, view.largest_k(found, metric, COMPONENT))
            self.query_one("#profile-table").border_subtitle = "; ".join(said[:1])

    def _head(self, found: Comparison, metric: str) -> Text:
        """The runs with their markers, and in what they differ."""
        said = Text()
        for marker, run in zip(MARKERS, found.runs, strict=False):
            said.append(f"{marker} {run.label} ", "bold").append_text(words(f"{run.model}   "))
        chosen = [view.ranking_name(metric), self._choice("perturbation")]
        said.append_text(words("· " + " · ".join(filter(None, chosen))))
        return said.append("\n").append_text(words(found.differing, "dim"))

    def _draw_ranks(self, found: Comparison, metric: str) -> None:
        chosen = self._choice("pair")
        pair = next(pair for pair in found.pairs if f"{pair.first} {pair.second}" == chosen)
        first, second = (next(r for r in self._reports if r.run_id == run) for run in (pair.first, pair.second))
        why = pair.other_rankings or pair.other_weights
        k = max(
            (
                row.k
                for row in found.overlaps
                if (row.metric, row.first, row.second) == (metric, pair.first, pair.second)
            ),
            default=0,
        )
        if not why and not k:
            why = f"not both of the runs ranked by {metric}"
        if not why and (metric, chosen) not in self._ranks:
            self._ranks[metric, chosen] = rank_pairs(first, second, metric, k)
        names = found.label(pair.first), found.label(pair.second)
        self.query_one("#ranks").border_title = f"ranks in {names[0]} and {names[1]}"
        said = f"the ranks of {names[0]} and {names[1]} cannot be compared: {why}" if why else ""
        self.query_one(RankScatter).show_ranks(self._ranks.get((metric, chosen), ()), *names, k, said)

    def _draw_curves(self, found: Comparison, metric: str, perturbation: str) -> None:
        shown = view.damage_table if len(found.runs) == 2 else view.levels_table
        tables = [shown(found, metric, perturbation)] if perturbation else []
        self.query_one("#curve-table", ViewRows).show_tables(tables, "no damage was measured")
        damaged = {level.run for level in found.damage if level.metric == metric}
        unlike = [pair for pair in found.pairs if pair.unlike(perturbation) and {pair.first, pair.second} <= damaged]
        warning = ", ".join(f"{found.label(pair.first)} and {found.label(pair.second)}" for pair in unlike)
        said = f"NOT MEASURED ALIKE: {warning}; do not read these curves against each other" if warning else ""
        self.query_one(CurvesChart).show_curves(found, metric, perturbation, said)

    # keys

    def action_pane(self, pane: str) -> None:
        """Show a pane and move the focus there."""
        self.query_one(PaneTabs).active = pane
        for name in PANES:
            self.query_one(f"#{name}").set_class(name == pane, "-active")
        self.call_after_refresh(self._focus_on, pane)

    def _focus_on(self, pane: str) -> None:
        """Focus the pane, or the first thing in it that takes keys."""
        whole: Widget = self.query_one(f"#{pane}")
        inside = (widget for widget in whole.query("*") if widget.focusable)
        target = whole if whole.can_focus else next(inside, None)
        if target is not None:
            target.focus()

    def action_next(self, what: str) -> None:
        known = self._choices(what)
        if known:
            self._chosen[what] = known[(known.index(self._choice(what)) + 1) % len(known)]
            self.redraw()

    def action_figures(self) -> None:
        self.navigation.open_figures("comparison", self.run_ids)

    def action_force(self) -> None:
        """Subtract damage that was not measured alike too, or leave it out again."""
        self._force = not self._force
        self.run_worker(self._load(), group="compare", exclusive=True)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action == "force":
            refused = self._found is None or any(
                pair.damage.reasons or pair.other_settings for pair in self._found.pairs
            )
            return bool(self._reports) and refused
        if action == "figures":
            return True if self._found else None
        if action == "next":
            return not parameters or len(self._choices(str(parameters[0]))) > 1
        return super().check_action(action, parameters)


def _answer(found: Comparison) -> Text:
    """The sentences, and everything that is not the same in all runs."""
    said = words(found.differing, "bold")
    for sentence in found.sentences:
        said.append("\n· ").append_text(words(sentence))
    if found.differences:
        said.append("\n\nwhat differs", "bold")
    for entry in found.differences:
        said.append(f"\n{entry.part} {entry.what}: ").append_text(words(" | ".join(entry.values), "dim"))
    return said
