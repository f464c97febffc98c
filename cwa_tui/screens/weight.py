"""One weight: where it sits, its value among its like, its ranks, what it does alone, and what is around it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from rich.console import Group, RenderableType
from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container, VerticalScroll
from textual.widgets import Footer, Static

from cwa_engine.base.errors import CwaError, InvalidInput
from cwa_engine.command_line import command_of
from cwa_engine.rows import TopWeight, WeightFacts
from cwa_engine.spec import RunSpec
from cwa_tui.screens.base import StoreScreen
from cwa_tui.store.measured_alone import measured_alone
from cwa_tui.store.state import SelectedRun
from cwa_tui.tables.ranking import RankingRows
from cwa_tui.text import format as fmt
from cwa_tui.text.visible import words
from cwa_tui.widgets import weight_views as views
from cwa_tui.widgets.banner import Banner
from cwa_tui.widgets.weight_views import Ranked

if TYPE_CHECKING:
    from cwa_tui.store.preferences import PreferenceFile
    from cwa_tui.store.session import Session

_NOT_ALONE = "not damaged alone in this run: --individually measures each weight of the critical sets"

LEAST_BARS, MOST_BARS = 6, 20  # lines of the histogram
OTHER_LINES = 22  # on its side of a wide terminal


class WeightScreen(StoreScreen):
    """The model is looked at as soon as the screen opens where it is warm; else `i` loads it. Arrows go to other ranks."""

    AUTO_FOCUS = "#weight-left"
    DEFAULT_CSS = """
    WeightScreen {
        #weight-body { height: 1fr; }
        #weight-left, #weight-right { padding: 0 1; scrollbar-size-vertical: 1; }
        Static { height: auto; }
        #weight-place, #weight-ranks, #weight-alone, #weight-command { margin-bottom: 1; }
    }
    WeightScreen.-wide {
        #weight-body { layout: horizontal; }
        #weight-left, #weight-right { width: 1fr; height: 1fr; border: round $surface-lighten-2; }
        #weight-left:focus, #weight-right:focus { border: heavy $accent; }
    }
    WeightScreen.-narrow {
        #weight-body { overflow-y: auto; scrollbar-size-vertical: 1; }
        #weight-left, #weight-right { height: auto; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "app.pop_screen", "Back"),
        Binding("left_square_bracket", "other(-1)", "Better rank", key_display="["),
        Binding("right_square_bracket", "other(1)", "Next rank", key_display="]"),
        Binding("i", "inspect", "Load and look"),
        Binding("e", "examine", "Examine"),
        Binding("A", "prompt", "Prompt without it"),
        Binding("y", "copy_command", "Copy command"),
        Binding("Y", "copy_target", "Copy name", show=False),
        Binding("down,j", "scroll(1)", show=False),
        Binding("up,k", "scroll(-1)", show=False),
    ]
    changing_keys = (*StoreScreen.changing_keys, "inspect")

    def __init__(self, session: Session, preferences: PreferenceFile, run_id: str, metric: str, place: int) -> None:
        """`place` is that of the weight in its ranking, from 1 on."""
        super().__init__(session, preferences)
        self.run_id, self.metric, self.place = run_id, metric, place
        self._look: str | None = None  # run id of the job that looks at the weight
        self._asked = False  # whether it was asked for, by the screen or by the user
        self._seen: tuple[object, ...] = ()  # what is on screen
        self._weight: TopWeight | None = None
        self._found: dict[str, Ranked] = {}  # by metric

    def compose(self) -> ComposeResult:
        yield Banner(id="banner")
        with Container(id="weight-body"):
            with VerticalScroll(id="weight-left"):
                yield Static(id="weight-place")
                yield Static(id="weight-value")
            with VerticalScroll(id="weight-right"):
                yield Static(id="weight-ranks")
                yield Static(id="weight-alone")
                yield Static(id="weight-command")
                yield Static(id="weight-lines")
        yield Footer(compact=True)

    def on_mount(self) -> None:
        self.session.watch(self, [self.run_id])

    def on_unmount(self) -> None:
        self._stop_looking()
        self.session.unwatch(self)

    @property
    def run_in_view(self) -> str | None:
        return self.run_id

    @property
    def weight(self) -> TopWeight | None:
        """The weight in view; None until its ranking is here."""
        if self._weight is None:
            ranked = self._ranking
            self._weight = ranked[self.place - 1] if ranked and self.place <= len(ranked) else None
        return self._weight

    @property
    def _ranking(self) -> Sequence[TopWeight] | None:
        """The whole ranking, or of a run that goes on its head. Of a run that is done it is asked for."""
        ranking = self.store.ranking(self.run_id, self.metric)
        if ranking is not None:
            return ranking
        if self.store.report(self.run_id) is not None:
            self.session.want_ranking(self.run_id, self.metric)
        head = self.store.followed_run(self.run_id).rankings.get(self.metric)
        return head.weights if head else None

    @property
    def facts(self) -> WeightFacts | None:
        return self.store.followed_run(self._look).facts if self._look else None

    # drawing

    def draw(self) -> None:
        self.query_one(Banner).show_connection(self.store.connection)
        selected, weight = self.store.run(self.run_id), self.weight
        if weight is None:
            self._say("place", Text("the ranking is on its way"))
            return
        self.title = weight.target
        if not self._asked and self._is_warm(selected):
            self.action_inspect()
        facts, width = self.facts, max(40, self.query_one("#weight-right").size.width - 2)
        ranked, why = self._ranked(selected, weight), self._why_no_facts()
        seen = (weight, facts, selected.report is None, ranked, why, width)
        if seen != self._seen:
            self._seen = seen
            self._draw_weight(selected, weight, facts, ranked, width)

    def _draw_weight(
        self, selected: SelectedRun, weight: TopWeight, facts: WeightFacts | None, ranked: list[Ranked], width: int
    ) -> None:
        self._say("place", views.place(weight, facts))
        self._say("value", self._value(weight, facts, width))
        self._say("ranks", views.ranks(ranked))
        rows = measured_alone(selected.report, weight.target) if selected.report else []
        nothing = _NOT_ALONE if selected.report else "what it does alone is known when the run is done"
        self._say("alone", views.alone(rows, nothing))
        self._say("command", Group(Text("damage it alone (y copies):", "dim"), words(self._command(selected, weight))))
        lines = facts.lines if facts else ()
        self._say("lines", Group(*(part for each in lines for part in (views.line(each, weight.target, width), ""))))

    def _value(self, weight: TopWeight, facts: WeightFacts | None, width: int) -> RenderableType:
        said: list[RenderableType] = [views.value(weight, facts)]
        if changed := views.changed_since(weight, facts):
            said.append(words(changed, "bold"))
        if facts is None:
            return Group(*said, words(self._why_no_facts(), "dim"))
        spread = facts.distribution
        tall = self.query_one("#weight-left").size.height if self.has_class("-wide") else 0
        height = max(LEAST_BARS, min(MOST_BARS, tall - OTHER_LINES))
        like = (
            "values of its tensor" if facts.structure == "weight" else f"norms of the {facts.structure}s of its tensor"
        )
        head = Text(f"{spread.count:,} {like}", "dim")
        return Group(
            *said, Text(""), head, views.histogram(spread, facts.value, width, height), views.quantiles(spread)
        )

    def _why_no_facts(self) -> str:
        """What the look at the model waits for, or why there is none."""
        if self._look is None:
            if self._asked:
                return "the daemon is asked ..."
            return "the model is not warm: i loads it and looks at its weights"
        status, job = self.store.followed_run(self._look).status, self.store.job(self._look)
        if status.error:
            hint = f"\n{status.error.hint}" if status.error.hint else ""
            return f"the model cannot be looked at: {status.error.message}{hint}"
        if status.progress:
            at = status.progress
            return f"loading: {fmt.counted(at.done, at.total, at.unit)}"
        if status.state == "running":
            return "the model is looked at ..." if status.stage == "inspect" else "the model is loaded ..."
        waits = getattr(job, "waits_for", "") if job else ""
        return f"waits for its turn: {waits}" if waits else "waits for its turn on the device"

    def _say(self, name: str, what: RenderableType) -> None:
        self.query_one(f"#weight-{name}", Static).update(what)

    def _ranked(self, selected: SelectedRun, weight: TopWeight) -> list[Ranked]:
        """The weight in every ranking of the run, as far as these are here."""
        found = []
        for metric in selected.metrics:
            ranking = self.store.ranking(self.run_id, metric)
            head = selected.run.rankings.get(metric)
            if metric in self._found:
                found.append(self._found[metric])
            elif ranking is not None:  # remembered, as the store may forget it for another
                found.append(Ranked(metric, len(ranking), _weight_in(ranking, weight)))
                self._found[metric] = found[-1]
            elif selected.report and metric in selected.report.metrics:
                self.session.want_ranking(self.run_id, metric)
                found.append(Ranked(metric, None))
            elif head is not None:
                same = next((w for w in head.weights if w.target == weight.target), None)
                found.append(Ranked(metric, len(head.weights), same))
        return found

    # the model

    def _spec(self, selected: SelectedRun) -> RunSpec | None:
        if selected.report:
            return selected.report.spec
        try:
            return RunSpec.model_validate(selected.job.spec) if selected.job else None
        except ValueError:  # of a daemon of another version
            return None

    def _is_warm(self, selected: SelectedRun) -> bool:
        job = selected.job
        return job is not None and any(
            model.name == job.model and job.spec.get("dtype") in ("auto", model.dtype)
            for model in self.store.warm_models
        )

    def action_inspect(self) -> None:
        """Have the worker look at the weight, loading the model where it is not warm."""
        selected, weight = self.store.run(self.run_id), self.weight
        spec = self._spec_of_model(selected)
        if weight is None or spec is None or self._asked:
            return
        self._asked = True
        place = self.place

        async def asked() -> None:
            try:
                look = await self.session.client.inspect(spec, weight.target)
            except CwaError as error:
                self._asked = False
                self.explain(error)
                return
            if place == self.place and self.is_attached:
                self._look = look
                self.session.watch(self, [self.run_id, look])
                self.redraw()

        self.run_worker(asked(), group="look", exclusive=True)

    def _spec_of_model(self, selected: SelectedRun) -> RunSpec | None:
        """The run's spec with the revision that it was run with."""
        spec = self._spec(selected)
        if spec and selected.report and selected.report.model.revision:
            return spec.model_copy(update={"revision": selected.report.model.revision})
        return spec

    def action_examine(self) -> None:
        """Open the card of the weight, which takes as long as some damage does."""
        weight, spec = self.weight, self._spec_of_model(self.store.run(self.run_id))
        if weight is not None and spec is not None:
            self.navigation.open_card(self.run_id, spec, weight.target)

    def _stop_looking(self) -> None:
        """Cancel a look that nobody waits for any more."""
        look, self._look, self._asked = self._look, None, False
        if look and not self.store.followed_run(look).status.ended and self.store.followed_run(look).facts is None:
            self.app.run_worker(self._cancelled(look), group="look")

    async def _cancelled(self, look: str) -> None:
        try:
            await self.session.cancel(look)
        except CwaError:  # it has ended meanwhile, or the daemon is gone
            return

    def on_resize(self) -> None:
        if self.is_mounted:
            self.call_after_refresh(self.redraw)

    # keys

    def action_other(self, step: int) -> None:
        """Go to the weight of another rank."""
        count = len(self._ranking or ())
        if 1 <= self.place + step <= count:
            self._stop_looking()
            self.place += step
            self._weight = None
            self._found.clear()
            self.session.watch(self, [self.run_id])
            self.redraw()

    def action_prompt(self) -> None:
        """Prompts for the model with this weight and without it."""
        if weight := self.weight:
            self.navigation.open_prompt(self.run_id, self.metric, weight.target)

    def _command(self, selected: SelectedRun, weight: TopWeight) -> str:
        spec = self._spec(selected)
        return command_of(alone_spec(spec, weight.target)) if spec else ""

    def action_copy_command(self) -> None:
        if weight := self.weight:
            self.navigation.copy_text(self._command(self.store.run(self.run_id), weight))

    def action_copy_target(self) -> None:
        if weight := self.weight:
            self.navigation.copy_text(weight.target)

    def action_scroll(self, lines: int) -> None:
        """Scroll the side that has the focus; on a narrow terminal both are one."""
        body = self.query_one("#weight-body")
        side = self.focused if self.has_class("-wide") and isinstance(self.focused, VerticalScroll) else body
        side.scroll_relative(y=lines, animate=False)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action == "inspect":
            return None if self._asked else True
        return super().check_action(action, parameters)


def alone_spec(spec: RunSpec, target: str) -> RunSpec:
    """The spec of a run that damages this one, and asks nothing that needs a ranking."""
    fields = spec.model_dump()
    ranking = ("metrics", "topk", "structure", "scope", "matrices", "probes", "candidates", "critical_set", "iterate")
    for name in (*ranking, "stability", "fidelity", "individually", "output"):
        del fields[name]
    controls = tuple(name for name in spec.controls if name not in ("bottom", "top_magnitude"))
    try:
        return RunSpec(**{**fields, "metrics": (), "topk": (1,), "weights": (target,), "controls": controls})
    except (InvalidInput, ValueError):
        return RunSpec(model=spec.model, metrics=(), topk=(1,), weights=(target,))


def _weight_in(ranking: RankingRows, weight: TopWeight) -> TopWeight | None:
    """The same weight in another ranking."""
    for at in range(len(ranking)):
        if ranking.value(at, "flat_index") == weight.flat_index and ranking.value(at, "target") == weight.target:
            return ranking[at]
    return None
