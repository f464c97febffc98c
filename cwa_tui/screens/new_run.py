"""The form for a new run. Whatever is wrong with it is said in the form, and nothing typed is lost."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.suggester import SuggestFromList
from textual.widget import Widget
from textual.widgets import Button, Input, Label, Static

from cwa_engine.errors import CwaError
from cwa_engine.sensitivity.metrics import METRICS
from cwa_engine.spec import RunSpec, command_of
from cwa_tui.draft import Draft, about_model, model_names
from cwa_tui.widgets.tick import Tick

Submit = Callable[[RunSpec, str], Awaitable[str]]


class NewRunScreen(ModalScreen[str | None]):
    """Ends with the new run's id, or None. `keep` is given the draft as it stands whenever the form closes."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "close", "close"),
        # with priority, or what is typed ahead over a slow line would land in the field before
        Binding("tab", "app.focus_next", show=False, priority=True),
        Binding("shift+tab", "app.focus_previous", show=False, priority=True),
        Binding("up", "app.focus_previous", show=False),
        Binding("down", "app.focus_next", show=False),
    ]
    AUTO_FOCUS = "#model"

    def __init__(self, submit: Submit, keep: Callable[[Draft], None], draft: Draft, warm: Sequence[str]) -> None:
        super().__init__()
        self._submit, self._keep, self._first, self._warm = submit, keep, draft, list(warm)

    def compose(self) -> ComposeResult:
        first = self._first
        suggester = SuggestFromList(model_names(self._warm), case_sensitive=False)
        with Vertical(classes="dialog form") as dialog:
            dialog.border_title = "new run"
            dialog.border_subtitle = "tab next field · enter starts · escape closes"
            yield _line("model", Input(first.model, "smollm2-135m", id="model", suggester=suggester, compact=True))
            yield Static(id="about-model", markup=False)
            yield _line("top-k", Input(first.topk, "10, 100", id="topk", compact=True))
            yield _line("texts", Input(first.data_file, "a file; empty: built-in", id="data-file", compact=True))
            yield _line("first texts", Input(first.eval_limit, "all", id="eval-limit", compact=True))
            with Horizontal(classes="line"):
                yield Label("metrics")
                with VerticalScroll(id="metrics", can_focus=False):
                    for name in METRICS:
                        yield Tick(f"{name}  {METRICS[name].formula}", name in first.metrics, id=f"metric-{name}")
            with Horizontal(classes="line"):
                yield Label("")
                yield Tick("fast perturbation", first.fast_perturbation, id="fast")
                yield Tick("no perturbation", first.no_perturbation, id="none")
            yield Static(id="problem", markup=False)
            with Horizontal(classes="buttons"):
                yield Button("start", id="start", compact=True)
                yield Button("close", id="close", compact=True)

    def on_mount(self) -> None:
        self._describe_model()
        self.query_one("#problem").display = False

    @property
    def draft(self) -> Draft:
        """The form as it stands."""
        return Draft(
            model=self.query_one("#model", Input).value,
            metrics=tuple(name for name in METRICS if self.query_one(f"#metric-{name}", Tick).value),
            topk=self.query_one("#topk", Input).value,
            data_file=self.query_one("#data-file", Input).value,
            eval_limit=self.query_one("#eval-limit", Input).value,
            fast_perturbation=self.query_one("#fast", Tick).value,
            no_perturbation=self.query_one("#none", Tick).value,
        )

    @on(Input.Changed, "#model")
    def _describe_model(self) -> None:
        typed = self.query_one("#model", Input).value
        self.query_one("#about-model", Static).update(about_model(typed, self._warm))

    @on(Input.Changed)
    @on(Tick.Changed)
    def _forget_problem(self) -> None:
        self.query_one("#problem").display = False

    @on(Input.Submitted)
    @on(Button.Pressed, "#start")
    @work(exclusive=True, exit_on_error=False)
    async def _start(self) -> None:
        self._keep(self.draft)
        try:
            spec = self.draft.spec()
            run_id = await self._submit(spec, command_of(spec))
        except CwaError as error:
            self._explain(error)
        else:
            self.dismiss(run_id)

    def _explain(self, error: CwaError) -> None:
        problem = self.query_one("#problem", Static)
        problem.update(f"Error: {error.message}" + (f"\nHint:  {error.hint}" if error.hint else ""))
        problem.display = True

    @on(Button.Pressed, "#close")
    def action_close(self) -> None:
        self._keep(self.draft)
        self.dismiss(None)


def _line(label: str, field: Widget) -> Horizontal:
    return Horizontal(Label(label), field, classes="line")
