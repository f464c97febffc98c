"""The card of a weight: its ranks, what damaging it does, its bits, what its channels carry, and the life of its channel."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from rich.console import Group, RenderableType
from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container, VerticalScroll
from textual.widgets import Footer, Static

from cwa_engine.base.errors import CwaError
from cwa_engine.figures.figure import Figure
from cwa_engine.figures.registry import figures_of
from cwa_engine.records.run_id import short_id
from cwa_engine.rows import to_plain
from cwa_engine.spec import CARD_METRICS, RunSpec
from cwa_engine.weight_rows import WeightCard
from cwa_tui.screens.base import StoreScreen
from cwa_tui.tables import weight_card as tables
from cwa_tui.tables.export import export_folder, write_export
from cwa_tui.text.visible import words
from cwa_tui.widgets.banner import Banner
from cwa_tui.widgets.figure_chart import FigureChart
from cwa_tui.widgets.pane_tabs import PaneTabs
from cwa_tui.widgets.quiet_static import QuietStatic
from cwa_tui.widgets.stages import StageLine

if TYPE_CHECKING:
    from cwa_tui.store.preferences import PreferenceFile
    from cwa_tui.store.session import Session

PANES = {
    "ranks": "ranks",
    "damage": "damage",
    "bits": "bits",
    "channels": "channels, tokens",
    "life": "life of the channel",
}
CHARTS = {"damage": "dose_response", "bits": "bit_map", "life": "channel_life"}  # pane -> the figure in it


class WeightCardScreen(StoreScreen):
    """The weight is examined as soon as the screen opens; that goes on when the screen is left, and c cancels it."""

    AUTO_FOCUS = "#ranks-text"
    DEFAULT_CSS = """
    WeightCardScreen {
        #card-head { height: auto; max-height: 6; padding: 0 1; }
        #card-stages { height: auto; padding: 0 1; }
        #card-tabs { height: 1; link-style: none; link-color: $foreground; link-style-hover: bold; }
        #card-body, .card-pane { height: 1fr; }
        .card-pane { display: none; }
        .card-pane.-active { display: block; }
        .card-text { height: 1fr; padding: 0 1; border-top: solid $surface-lighten-2; scrollbar-size-vertical: 1; }
        .card-text:focus { border-top: heavy $accent; }
        .card-text Static { height: auto; }
        .card-pane FigureChart { height: 2fr; padding: 0 1; border-top: solid $surface-lighten-2; }
        .card-pane FigureChart:focus { border-top: heavy $accent; }
    }
    WeightCardScreen.-short #card-head { max-height: 3; }
    WeightCardScreen.-wide {
        .card-pane.-active { layout: horizontal; }
        .card-text { width: 1fr; height: 100%; }
        .card-pane FigureChart { width: 1fr; height: 100%; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "app.pop_screen", "Back"),
        *(Binding(str(key), f"pane('{pane}')", show=False) for key, pane in enumerate(PANES, 1)),
        Binding("left_square_bracket", "other(-1)", "Pane before", key_display="[", show=False),
        Binding("right_square_bracket", "other(1)", "Next pane", key_display="]", show=False),
        Binding("x", "export", "Export"),
        Binding("y", "copy_command", "Copy command"),
    ]
    changing_keys = (*StoreScreen.changing_keys, "export")

    def __init__(self, session: Session, preferences: PreferenceFile, run_id: str, spec: RunSpec, target: str) -> None:
        """`spec` is that of the run in which the weight was found."""
        super().__init__(session, preferences)
        self.run_id, self.target = run_id, target
        more = tuple(metric for metric in spec.metrics if metric not in CARD_METRICS)
        self.spec = spec.model_copy(update={"metrics": (*CARD_METRICS, *more), "dose": ()})
        self._job = ""  # run id of the job that examines the weight
        self._trouble = ""
        self._shown: WeightCard | None = None

    def compose(self) -> ComposeResult:
        yield Banner(id="banner")
        yield QuietStatic(id="card-head")
        yield StageLine(id="card-stages")
        yield PaneTabs(PANES, id="card-tabs")
        with Container(id="card-body"):
            for pane in PANES:
                with Container(id=pane, classes="card-pane"):
                    if pane in CHARTS:
                        yield FigureChart(f"{pane}-chart")
                    with VerticalScroll(id=f"{pane}-text", classes="card-text", can_focus=True):
                        yield Static()
        yield Footer(compact=True)

    def on_mount(self) -> None:
        self._show_pane("ranks")
        self.run_worker(self._examine(), group="examine")

    def on_unmount(self) -> None:
        self.session.unwatch(self)

    async def _examine(self) -> None:
        try:
            self._job = await self.session.examine(self.run_id, self.spec, self.target, self.command)
        except CwaError as error:
            self._trouble = error.message + (f"\n{error.hint}" if error.hint else "")
            self.explain(error)
        else:
            self.session.watch(self, [self._job])
        self.redraw()

    @property
    def command(self) -> str:
        """The command that examines the weight."""
        from cwa_engine.command_line import weight_command_of

        return weight_command_of(self.spec, self.target)

    @property
    def run_in_view(self) -> str | None:
        """The job that examines the weight."""
        return self._job or None

    @property
    def card(self) -> WeightCard | None:
        return self.store.followed_run(self._job).card if self._job else None

    # drawing

    def draw(self) -> None:
        self.query_one(Banner).show_connection(self.store.connection)
        run = self.store.followed_run(self._job) if self._job else None
        stages = self.query_one(StageLine)
        if run is not None:
            stages.show_stages(run.stages, run.status.state, self.store.now(), in_short=self.has_class("-short"))
        stages.display = self.card is None and bool(run and run.stages)
        card = self.card
        if card is None:
            self.query_one("#card-head", QuietStatic).say(self._waiting())
        elif card is not self._shown:
            self._shown = card
            self._draw_card(card)

    def _waiting(self) -> Text:
        said = words(self.target, "bold")
        if self._trouble:
            return said.append_text(words(f"\n{self._trouble}", "bold"))
        status, job = self.store.followed_run(self._job).status, self.store.job(self._job)
        if status.error:
            hint = f"\n{status.error.hint}" if status.error.hint else ""
            return said.append_text(words(f"\nit could not be examined: {status.error.message}{hint}", "bold"))
        if status.state == "cancelled":
            return said.append("\nthe examination was cancelled")
        waits = getattr(job, "waits_for", "") if job else ""
        if status.state == "running":
            return said.append("\nbeing examined; c cancels it, and it goes on when you leave")
        return said.append_text(words(f"\nwaits for its turn{f': {waits}' if waits else ''}"))

    def _draw_card(self, card: WeightCard) -> None:
        self.query_one("#card-head", QuietStatic).say(tables.headline(card))
        figures = {figure.name: figure for figure in figures_of(card, "weight")}
        for pane in PANES:
            self.query_one(f"#{pane}-text Static", Static).update(Group(*_with_gaps(_parts(card, pane, figures))))
            if pane in CHARTS:
                self.query_one(f"#{pane}-chart", FigureChart).show_figure(figures.get(CHARTS[pane]), _NOTHING[pane])

    # keys

    def action_pane(self, pane: str) -> None:
        """Show a pane and move the focus there."""
        self._show_pane(pane)
        self.call_after_refresh(self.query_one(f"#{pane}-text").focus)

    def action_other(self, step: int) -> None:
        names = list(PANES)
        self.action_pane(names[(names.index(self.query_one(PaneTabs).active) + step) % len(names)])

    def _show_pane(self, pane: str) -> None:
        self.query_one(PaneTabs).active = pane
        for name in PANES:
            self.query_one(f"#{name}").set_class(name == pane, "-active")

    def action_copy_command(self) -> None:
        self.navigation.copy_text(self.command)

    def action_export(self) -> None:
        """Write the card to a JSON file."""
        if (card := self.card) is not None:
            self.run_worker(self._exported(card), group="export")

    async def _exported(self, card: WeightCard) -> None:
        text = json.dumps(to_plain(card), indent=1) + "\n"
        name = f"{short_id(self.run_id)}-{self.target}.json"
        try:
            path = await asyncio.to_thread(lambda: write_export(export_folder(), name, text))
        except CwaError as error:
            self.explain(error)
        else:
            self.tell(f"the card is in {path}")

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action == "export":
            return True if self.card else None
        return super().check_action(action, parameters)


_NOTHING = {
    "damage": "no dose was measured",
    "bits": "no bit was flipped",
    "life": "the weight has to do with no channel of the residual stream",
}


def _parts(card: WeightCard, pane: str, figures: dict[str, Figure]) -> list[RenderableType]:
    """What a pane says in words and tables."""
    parts: list[RenderableType] = []
    match pane:
        case "ranks":
            parts = [tables.ranks_table(card.ranks)] if card.ranks else []
            parts += [words(f"not known: {reason}", "yellow") for reason in card.unknown]
        case "damage":
            parts = [tables.damage_table(card)]
            parts += [tables.neighbours_table(card.neighbours)] if card.neighbours else []
        case "bits":
            parts = [tables.bits_table(card)] if card.bits else []
        case "channels":
            parts = [tables.activity_table(card.activity)] if card.activity else []
            parts += [tables.tokens_table(card)] if card.raised or card.lowered else []
        case "life":
            parts = [tables.life_table(card)] if card.life else []
    if figure := figures.get(CHARTS.get(pane, "")):
        parts.append(words(figure.caption, "dim"))
    return parts or [words(_NOTHING.get(pane, "nothing is known of this"))]


def _with_gaps(parts: Sequence[RenderableType]) -> list[RenderableType]:
    return [each for part in parts for each in (part, "")][:-1]
