"""Prompts for the model of a run: both texts beside each other, coloured by KL, and what each token was predicted by."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any, ClassVar

from rich.console import Group, RenderableType
from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container, VerticalScroll
from textual.widgets import Footer, Input, Static

from cwa_engine.base.errors import CwaError
from cwa_engine.prompt_rows import PromptAnswer
from cwa_engine.prompt_spec import PromptSpec, parse_prompt
from cwa_engine.spec import RunSpec
from cwa_tui.screens.base import StoreScreen
from cwa_tui.tables import prompt_answer as view
from cwa_tui.text import format as fmt
from cwa_tui.text.visible import words
from cwa_tui.widgets.banner import Banner
from cwa_tui.widgets.comparison_tables import ViewRows

if TYPE_CHECKING:
    from cwa_tui.store.preferences import PreferenceFile
    from cwa_tui.store.session import Session

SIZES = (1, 10, 100)  # of the critical set, beside the run's own
FIRST_SIZE = 10
# What a prompt takes from the run: the model, where it is, and how weights are changed.
_OF_RUN = ("model", "dtype", "device", "offload", "bos", "noise_scale", "scale_factor", "bits", "seed")
_NOTHING_YET = "type a prompt, and enter: the intact and the damaged model go on with it"
_GROWING_LINES = 30


class PromptScreen(StoreScreen):
    """Enter asks; the model is loaded if it is not warm. What was asked before is cancelled."""

    AUTO_FOCUS = "#prompt-line"
    DEFAULT_CSS = """
    PromptScreen {
        #prompt-what { height: 1; padding: 0 1; text-wrap: nowrap; text-overflow: ellipsis; }
        #prompt-line { height: 1; border: none; padding: 0 1; background: $surface; }
        #prompt-line:focus { background: $panel; }
        #prompt-body { height: 1fr; }
        #prompt-texts { padding: 0 1; scrollbar-size-vertical: 1; }
        #prompt-answer { height: auto; }
    }
    PromptScreen.-wide {
        #prompt-body { layout: horizontal; }
        #prompt-texts { width: 3fr; height: 1fr; border: round $surface-lighten-2; }
        #prompt-texts:focus { border: heavy $accent; }
        #prompt-tokens { width: 2fr; height: 1fr; }
    }
    PromptScreen.-narrow {
        #prompt-texts { height: 3fr; border-top: solid $surface-lighten-2; }
        #prompt-texts:focus { border-top: heavy $accent; }
        #prompt-tokens { height: 2fr; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "app.pop_screen", "Back"),
        Binding("f2", "weights", "Weights on/off"),
        Binding("f3", "size", "How many"),
        Binding("f4", "copy_command", "Copy command"),
    ]
    changing_keys = (*StoreScreen.changing_keys, "size")

    def __init__(
        self, session: Session, preferences: PreferenceFile, run_id: str, metric: str | None, target: str | None = None
    ) -> None:
        """With `target` that weight is damaged, else the first weights of the ranking by `metric`."""
        super().__init__(session, preferences)
        self.run_id, self.metric, self.target = run_id, metric, target
        self.damages = True
        self.count = FIRST_SIZE
        self._job: str | None = None  # run id of the job that answers
        self._asked: PromptSpec | None = None
        self._seen: tuple[object, ...] = ()  # what is on screen

    def compose(self) -> ComposeResult:
        yield Banner(id="banner")
        yield Static(id="prompt-what", markup=False)
        yield Input(placeholder="prompt", id="prompt-line", compact=True)
        with Container(id="prompt-body"):
            with VerticalScroll(id="prompt-texts"):
                yield Static(id="prompt-answer")
            yield ViewRows("prompt-tokens")
        yield Footer(compact=True)

    def on_mount(self) -> None:
        self.title = "prompt"
        self.session.watch(self, [self.run_id])

    def on_unmount(self) -> None:
        self._stop_answering()
        self.session.unwatch(self)

    @property
    def run_in_view(self) -> str | None:
        return self.run_id

    @property
    def weights(self) -> tuple[str, ...] | None:
        """The weights that are damaged; None until the ranking is here."""
        if not self.damages:
            return ()
        if self.target is not None:
            return (self.target,)
        ranking = self.store.ranking(self.run_id, self.metric) if self.metric else None
        if ranking is None:
            if self.metric and self.store.report(self.run_id) is not None:
                self.session.want_ranking(self.run_id, self.metric)
            return None
        return tuple(ranking[place].target for place in range(min(self.count, len(ranking))))

    @property
    def answer(self) -> PromptAnswer | None:
        return self.store.followed_run(self._job).answer if self._job else None

    # drawing

    def draw(self) -> None:
        self.query_one(Banner).show_connection(self.store.connection)
        weights, job = self.weights, self.store.followed_run(self._job) if self._job else None
        seen = (weights, self._job, job and (job.texts, job.answer, job.status), self._waits_for())
        if seen == self._seen:
            return
        self._seen = seen
        self.query_one("#prompt-what", Static).update(words(self._what(weights)))
        self.query_one("#prompt-answer", Static).update(self._said())
        answer = self.answer
        tables = [view.token_table(answer)] if answer else []
        self.query_one(ViewRows).show_tables(
            tables, "tokens with KL and both predictions are here when both have answered"
        )

    def _what(self, weights: tuple[str, ...] | None) -> str:
        spec = self._spec_of_run
        model = spec.model if spec else self.run_id
        if weights is None:
            return f"{model} · the ranking is on its way"
        if not weights:
            return f"{model} · no weights are damaged"
        how = self._perturbation(spec)
        if self.target is not None:
            return f"{model} · {how} {self.target}"
        return f"{model} · {how} the first {len(weights):,} by {self.metric}: {weights[0]}{' ...' * (len(weights) > 1)}"

    def _said(self) -> RenderableType:
        if self._job is None:
            return Text(_NOTHING_YET if self._asked is None else "the daemon is asked ...", "dim")
        job = self.store.followed_run(self._job)
        if job.answer:
            return self._answered(job.answer)
        if job.status.error:
            hint = f"\n{job.status.error.hint}" if job.status.error.hint else ""
            return words(f"{job.status.error.message}{hint}")
        if job.texts:
            return view.texts_so_far(job.texts.intact, job.texts.damaged, _GROWING_LINES)
        return words(self._waits_for(), "dim")

    def _answered(self, answer: PromptAnswer) -> RenderableType:
        signs = self.app.no_color
        parts: list[RenderableType] = [view.Passage(view.prompt_text(answer), signs), view.both_texts(answer, signs)]
        if answer.damaged_end is not None:
            parts += [Text(), *(words(sentence) for sentence in view.sentences(answer)), view.legend(signs)]
        return Group(*parts)

    def _waits_for(self) -> str:
        """What a prompt waits for."""
        if self._job is None:
            return ""
        status, job = self.store.followed_run(self._job).status, self.store.job(self._job)
        if status.progress and status.stage != "prompt":
            return (
                f"the model is loaded: {fmt.counted(status.progress.done, status.progress.total, status.progress.unit)}"
            )
        if status.state == "running":
            return "the model reads the prompt ..." if status.stage == "prompt" else "the model is loaded ..."
        waits = getattr(job, "waits_for", "") if job else ""
        return f"waits for its turn: {waits}" if waits else "waits for its turn on the device"

    def on_resize(self) -> None:
        if self.is_mounted:
            self.call_after_refresh(self.redraw)

    # asking

    @property
    def _spec_of_run(self) -> RunSpec | None:
        report = self.store.report(self.run_id)
        return report.spec if report else None

    @staticmethod
    def _perturbation(spec: RunSpec | None) -> str:
        """The run's own, or zero where it has none."""
        return spec.perturbations[0] if spec and spec.perturbations else "zero"

    def _prompt_spec(self, prompt: str) -> PromptSpec | None:
        """The spec of a prompt; None while the run's files or its ranking are not here. Raises InvalidInput."""
        report, weights = self.store.report(self.run_id), self.weights
        if report is None or weights is None:
            return None
        spec = report.spec
        fields: dict[str, Any] = {name: getattr(spec, name) for name in _OF_RUN}
        fields |= {"revision": report.model.revision or spec.revision, "weights": weights, "prompt": prompt}
        fields |= {"perturbations": (self._perturbation(spec),), "bit": spec.bit if isinstance(spec.bit, int) else None}
        return parse_prompt(fields)

    @on(Input.Submitted, "#prompt-line")
    def _submitted(self, message: Input.Submitted) -> None:
        self._ask_for(message.value)

    def _ask_for(self, prompt: str) -> None:
        try:
            spec = self._prompt_spec(prompt)
        except CwaError as error:
            self.explain(error)
            return
        if spec is None:
            self.tell("the run's files are on their way")
            return
        self._stop_answering()
        self._asked = spec

        async def asked() -> None:
            try:
                job = await self.session.client.prompt(spec)
            except CwaError as error:
                self._asked = None
                self.explain(error)
                self.redraw()
                return
            if self.is_attached and self._asked is spec:
                self._job = job
                self.session.watch(self, [self.run_id, job])
                self.redraw()

        self.run_worker(asked(), group="prompt", exclusive=True)
        self.redraw()

    def _stop_answering(self) -> None:
        """Cancel an answer that nobody waits for any more."""
        job, self._job, self._asked = self._job, None, None
        if job and not self.store.followed_run(job).status.ended:
            self.app.run_worker(self._cancelled(job), group="prompt-end")

    async def _cancelled(self, job: str) -> None:
        try:
            await self.session.cancel(job)
        except CwaError:  # it has ended meanwhile, or the daemon is gone
            return

    # keys

    def action_weights(self) -> None:
        """Answer by the intact model alone, or by both again; what was asked last is asked again."""
        self.damages = not self.damages
        self._again()

    def action_size(self) -> None:
        """Damage more of the ranking: 1, 10, 100 and the sizes of the run, as far as it goes."""
        spec = self._spec_of_run
        ranking = self.store.ranking(self.run_id, self.metric) if self.metric else None
        sizes = sorted({*SIZES, *(spec.topk if spec else ())})
        sizes = [size for size in sizes if ranking is None or size <= len(ranking)] or [1]
        self.count = next((size for size in sizes if size > self.count), sizes[0])
        self._again()

    def _again(self) -> None:
        if self._asked is not None:
            self._ask_for(self._asked.prompt)
        else:
            self.redraw()

    def action_copy_command(self) -> None:
        """Copy the command line of what is asked here."""
        text = self._asked.prompt if self._asked else self.query_one(Input).value
        spec = self._spec_of_run
        by_metric = ["--metric", self.metric] if self.metric else []
        named, weights = [spec.model if spec else self.run_id], []
        if self.damages and self.target is not None:
            weights = ["--weights", self.target]
        elif self.damages:
            named = ["--run", self.run_id, *by_metric, "-k", str(self.count)]
        said = [*named, *weights, "--", text] if text.startswith("-") else [*named, text, *weights]
        self.navigation.copy_text(shlex.join(["cwtool", "prompt", *said]))

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action == "size":
            return None if self.target is not None or not self.damages else True
        return super().check_action(action, parameters)
