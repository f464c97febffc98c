"""The form for a new run, filled in by keys."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from textual.app import App
from textual.events import Key, Paste
from textual.pilot import Pilot
from textual.widget import Widget
from textual.widgets import Input, Static

import cwa_tui.app
from cwa_daemon.protocol import DeviceMemory, JobOptions
from cwa_engine.base.errors import CwaError, DaemonUnreachable, DataError, InvalidInput
from cwa_engine.hub.sources import HubAccess
from cwa_engine.rows import Plan, PlanRow
from cwa_engine.spec import RunSpec
from cwa_tui.app import CwtoolApp
from cwa_tui.form.draft import Draft
from cwa_tui.screens.form_doors import FormDoors
from cwa_tui.screens.new_run import NewRunScreen
from cwa_tui.screens.pick_model import PickModelScreen
from cwa_tui.widgets.form_choice import ChoiceField
from cwa_tui.widgets.form_field import FormField, field_id
from cwa_tui.widgets.form_plan import Say
from cwa_tui.widgets.form_section import FormSection, SectionTitle
from cwa_tui.widgets.form_suggestions import Suggestions
from cwa_tui.widgets.quiet_static import QuietStatic
from tests.stand_in_hub import stand_in_hub
from tests.tui.fake_client import FakeDaemon, app_on, until, warm

PLAN = Plan(
    model="gpt2",
    parameters=124_000_000,
    device="cpu",
    free_bytes=12_000_000_000,
    reclaimable_bytes=0,
    sequences=66,
    longest=512,
    metrics=("grad_x_weight",),
    rows=(
        PlanRow("float32", "resident", 500_000_000, 700_000_000, 1_200_000_000, 1, True, True),
        PlanRow("float32", "sweep", 500_000_000, 300_000_000, 800_000_000, 1, True, True),
    ),
    command="cwtool run --model gpt2",
    why="all gradients fit at once: 1.2 GB of 12.0 GB",
)


@dataclass
class Desk:
    """Who the form speaks to. `refuse` is raised by the next submit; a plan is given once `may_plan` is set."""

    submitted: list[tuple[RunSpec, str, JobOptions]] = field(default_factory=list)
    kept: list[Draft] = field(default_factory=list)
    copied: list[str] = field(default_factory=list)
    plans_asked: list[RunSpec] = field(default_factory=list)
    plans_dropped: int = 0
    may_plan: asyncio.Event = field(default_factory=asyncio.Event)
    refuse: Exception | None = None

    async def submit(self, spec: RunSpec, command: str, options: JobOptions) -> str:
        refuse, self.refuse = self.refuse, None
        if refuse:
            raise refuse
        self.submitted.append((spec, command, options))
        return "the-new-run"

    async def plan(self, spec: RunSpec, say: Say) -> Plan:
        self.plans_asked.append(spec)
        say("waits for k7q2 to be done")
        try:
            await self.may_plan.wait()
        except asyncio.CancelledError:
            self.plans_dropped += 1
            raise
        return PLAN

    def doors(self, **others: Any) -> FormDoors:
        access = HubAccess("", "/no/cache", True, "https://hub.example", "", True)
        doors = FormDoors(
            self.submit,
            self.plan,
            self.kept.append,
            self.copied.append,
            warm=lambda: [warm("my/model")],
            devices=lambda: [DeviceMemory(device="cpu", total_bytes=25_000_000_000, used_bytes=10_000_000_000)],
            runs=lambda: ["20261123-190000-gpt2-k7q2"],
            on_disk=lambda access: {"gpt2": 548_000_000, "gpt2-medium": 1_500_000_000},
            access=access,
            plan_after_s=None,
        )
        return replace(doors, **others)


class FormApp(App[None]):
    """Nothing but the form."""

    CSS_PATH = Path(cwa_tui.app.__file__).with_name("app.tcss")
    HORIZONTAL_BREAKPOINTS = CwtoolApp.HORIZONTAL_BREAKPOINTS
    VERTICAL_BREAKPOINTS = CwtoolApp.VERTICAL_BREAKPOINTS

    def __init__(self, form: NewRunScreen) -> None:
        super().__init__()
        self._form = form
        self.answers: list[str | None] = []

    def on_mount(self) -> None:
        self.push_screen(self._form, self.answers.append)


class Form:
    """What a user sees of the form and does in it."""

    def __init__(self, pilot: Pilot[None], screen: NewRunScreen, answers: list[str | None]) -> None:
        self.pilot, self.screen, self.answers = pilot, screen, answers
        self.press = pilot.press

    @property
    def focused(self) -> str:
        """The field or button that has the focus, or else the kind of widget."""
        found = self.pilot.app.focused
        return (found.id or type(found).__name__).removeprefix("edit-") if found else ""

    def row(self, name: str) -> FormField:
        return self.screen.query_one(f"#{field_id(name)}", FormField)

    def note(self, name: str) -> str:
        notes = [note for note in self.row(name).query(QuietStatic) if note.display]
        return str(notes[0].content) if notes else ""

    def text(self, id: str) -> str:
        found = self.screen.query_one(f"#{id}", Static)
        return str(found.content) if found.display else ""

    @property
    def titles(self) -> list[str]:
        return [str(title.content) for title in self.screen.query(SectionTitle)]

    async def type(self, name: str, text: str) -> None:
        """Replace what stands in a field, by pasting: keys take their time."""
        line = self.row(name).query_one(Input)
        await self.go(name)
        line.value = ""
        line.post_message(Paste(text))
        await until(lambda: line.value == text and self.screen.draft.values.get(name, "") == text)

    async def go(self, name: str) -> None:
        """Give a field the focus."""
        control = self.row(name).control
        control.focus()
        await until(lambda: self.pilot.app.focused is control)

    async def pick(self) -> None:
        """Take the first name that is shown below the field, when it is there."""
        await until(lambda: any(isinstance(each, Suggestions) for each in self.screen.focus_chain))
        await self.move("down")
        await until(lambda: isinstance(self.pilot.app.focused, Suggestions))
        await self.press("enter")

    async def move(self, key: str) -> None:
        """Press a key that moves the focus, or the cursor in a list."""
        before = self._place
        await self.press(key)
        await until(lambda: self._place != before)

    @property
    def _place(self) -> tuple[object, int]:
        found = self.pilot.app.focused
        return found, found.cursor if isinstance(found, ChoiceField) else 0

    def section(self, title: str) -> FormSection:
        return next(section for section in self.screen.query(FormSection) if section.section.title == title)

    async def go_to_title(self, title: str) -> None:
        target = self.section(title).query_one(SectionTitle)
        target.focus()
        await until(lambda: self.pilot.app.focused is target)

    async def unfold(self, title: str) -> None:
        await self.go_to_title(title)
        await self.press("enter")
        await until(lambda: self.section(title).fields)


@asynccontextmanager
async def form_of(
    doors: FormDoors, draft: Draft | None = None, size: tuple[int, int] = (80, 24)
) -> AsyncIterator[Form]:
    screen = NewRunScreen(doors, draft or Draft())
    app = FormApp(screen)
    async with app.run_test(size=size) as pilot:
        await until(lambda: app.screen is screen and app.focused and screen._looked_on_disk.is_set())
        yield Form(pilot, screen, app.answers)


@pytest.fixture
def desk() -> Desk:
    return Desk()


@pytest.fixture
async def form(desk: Desk) -> AsyncIterator[Form]:
    async with form_of(desk.doors()) as form:
        yield form


# starting


async def test_a_new_run_is_the_one_that_was_typed(form: Form, desk: Desk, tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.touch()
    await form.press(*"gpt2")
    await form.type("topk", "1, 10")
    await form.type("data_file", str(texts))
    await form.type("eval_limit", "4")
    await form.unfold("Queue and memory")
    await form.type("keep_alive", "2h")
    await form.press("ctrl+j")
    await until(lambda: form.answers)
    assert form.answers == ["the-new-run"]
    ((spec, command, options),) = desk.submitted
    assert spec == RunSpec(model="gpt2", topk=(1, 10), data_file=texts, eval_limit=4)
    assert options == JobOptions(keep_alive="2h")
    assert command.startswith("cwtool run --model gpt2 --metric grad_x_weight --topk 1 10")
    assert command.endswith("--keep-alive 2h")


async def test_enter_starts_nothing_but_on_the_start_button(form: Form, desk: Desk) -> None:
    await form.type("model", "gpt2")
    await form.go("topk")
    await form.move("enter")
    assert form.focused == "data-file"
    await form.go("metrics")
    await form.move("enter")
    assert form.row("metrics").query_one(ChoiceField).chosen == ("grad_x_weight",)
    assert form.focused == "topk"
    assert desk.submitted == []
    form.screen.query_one("#start").focus()
    await until(lambda: form.focused == "start")
    await form.press("enter")
    await until(lambda: desk.submitted)


async def test_a_second_press_does_not_start_the_run_twice(desk: Desk) -> None:
    may_answer = asyncio.Event()

    async def slow(spec: RunSpec, command: str, options: JobOptions) -> str:
        await may_answer.wait()
        return await desk.submit(spec, command, options)

    async with form_of(desk.doors(submit=slow), Draft({"model": "gpt2"})) as form:
        await form.press("ctrl+j", "ctrl+j")
        may_answer.set()
        await until(lambda: form.answers)
        assert len(desk.submitted) == 1


async def test_ctrl_j_starts_from_any_field(form: Form, desk: Desk) -> None:
    await form.type("model", "gpt2")
    await form.go("perturbations")
    await form.press("ctrl+j")
    await until(lambda: desk.submitted)


# moving


async def test_up_and_down_move_between_fields_and_leave_lists_at_their_ends(form: Form) -> None:
    visited = []
    for _ in range(8):
        visited.append(form.focused)
        while form.focused == visited[-1]:  # a list has several lines
            await form.move("down")
    assert visited == ["model", "dtype", "device", "metrics", "topk", "data-file", "eval-limit", "perturbations"]
    assert form.focused == "SectionTitle"
    await form.move("up")
    assert form.focused == "perturbations"


async def test_tab_and_shift_tab_move_too(form: Form) -> None:
    await form.move("tab")
    await form.move("tab")
    assert form.focused == "device"
    await form.move("shift+tab")
    assert form.focused == "dtype"


async def test_page_keys_move_between_groups_and_buttons(form: Form) -> None:
    await form.move("pagedown")
    assert form.focused == "SectionTitle"
    for _ in range(6):
        await form.move("pagedown")
    assert form.focused == "start"
    for _ in range(7):
        await form.move("pageup")
    assert form.focused == "model"


def seen(view: Widget, widget: Widget) -> bool:
    return view.region.contains_region(widget.region)


@pytest.mark.parametrize("size", [(80, 24), (160, 48)])
async def test_the_field_with_the_focus_is_always_seen(desk: Desk, size: tuple[int, int]) -> None:
    async with form_of(desk.doors(), size=size) as form:
        for title in ("What is ranked", "Revision, speed and files"):
            await form.unfold(title)
        await form.go("model")
        view = form.screen.query_one("#form-fields")
        while form.focused != "close":
            await form.move("tab")
            focused = form.pilot.app.focused
            if focused and view in focused.ancestors:
                await until(partial(seen, view, focused))


async def test_what_is_typed_ahead_lands_in_the_field_it_was_meant_for(form: Form) -> None:
    for key in ("g", "tab", "tab", "c", "tab", "tab", "7", "down", "t", "down", "5"):
        form.pilot.app.post_message(Key(key, key if len(key) == 1 else None))
    typed = {"model": "g", "device": "c", "topk": "7", "data_file": "t", "eval_limit": "5"}
    await until(lambda: form.screen.draft.values == typed)


# choices and ticks


async def test_left_and_right_choose_one_of_few(form: Form) -> None:
    await form.go("dtype")
    await form.press("right", "right")
    await until(lambda: form.screen.draft.values.get("dtype") == "bfloat16")
    await form.press("left", "left")
    await until(lambda: "dtype" not in form.screen.draft.values)


async def test_space_ticks_and_the_foot_says_what_the_choice_means(form: Form) -> None:
    await form.go("metrics")
    for _ in range(4):
        await form.move("right")
    assert form.text("form-help").startswith("magnitude: |w|\n--metric")
    await form.press("space")
    await until(lambda: form.screen.draft.values.get("metrics") == ("grad_x_weight", "magnitude"))


async def test_a_click_chooses(form: Form) -> None:
    metrics = form.row("metrics").query_one(ChoiceField)
    await form.pilot.click(metrics, offset=(22, 0))  # the second name of the first line
    await until(lambda: form.screen.draft.values.get("metrics") == ("grad_x_weight", "grad_squared"))


# groups


async def test_groups_are_folded_and_count_what_was_changed_in_them(desk: Desk) -> None:
    draft = Draft({"model": "gpt2", "probes": "4", "matrices": False, "seq_len": "x"})
    async with form_of(desk.doors(), draft) as form:
        assert form.titles[0] == "[+] What is ranked   2 changed"
        assert form.titles[1] == "[+] Texts   1 changed   ✗ 1 wrong"
        assert form.titles[2] == "[+] Damage and controls"
        assert not form.screen.query(f"#{field_id('probes')}")
        await form.unfold("What is ranked")
        assert form.row("probes").query_one(Input).value == "4"
        await form.go_to_title("What is ranked")
        await form.press("left")
        await until(lambda: not form.row("probes").display)
        await form.press("right")
        await until(lambda: form.row("probes").display)


# what is wrong


async def test_a_mistake_is_said_at_its_field_as_one_types(form: Form) -> None:
    await form.type("model", "gpt2")
    await form.type("topk", "0")
    assert form.note("topk") == "✗ --topk 0 is too small - give at least 1"
    assert "does not make a run yet" in form.text("form-command")
    await form.type("topk", "5")
    assert form.note("topk") == ""
    assert form.text("form-command").startswith("$ cwtool run --model gpt2")


async def test_a_start_with_a_mistake_goes_to_its_field_and_unfolds_its_group(form: Form, desk: Desk) -> None:
    await form.type("model", "gpt2")
    await form.unfold("Damage and controls")
    await form.type("seed", "-1")
    await form.go_to_title("Damage and controls")
    await form.press("left", "ctrl+j")
    await until(lambda: form.focused == "seed")
    assert form.row("seed").display
    assert "seed: --seed -1 is too small" in form.text("form-problem")
    assert desk.submitted == []


async def test_an_empty_form_complains_of_the_model_only_when_it_is_started(form: Form) -> None:
    assert form.note("model") == ""
    await form.press("ctrl+j")
    await until(lambda: form.note("model").startswith("✗ no model is given"))


@pytest.mark.parametrize(
    ("error", "field"),
    [
        (DataError("--data-file has no texts", hint="give another"), "data_file"),
        (InvalidInput("after: no run is called x, see --after"), "after"),
    ],
)
async def test_what_the_daemon_refuses_is_said_at_the_field_it_names(
    form: Form, desk: Desk, error: CwaError, field: str
) -> None:
    desk.refuse = error
    await form.type("model", "gpt2")
    await form.press("ctrl+j")
    await until(lambda: form.screen.query(f"#{field_id(field)}") and error.message in form.note(field))
    assert form.answers == []
    await form.press("ctrl+j")
    await until(lambda: len(desk.submitted) == 1)


@pytest.mark.parametrize("error", [DaemonUnreachable("no daemon is running", hint="press D"), RuntimeError("a bug")])
async def test_other_failures_are_said_below_and_nothing_is_lost(form: Form, desk: Desk, error: Exception) -> None:
    desk.refuse = error
    await form.type("model", "gpt2")
    await form.press("ctrl+j")
    await until(lambda: str(error) in form.text("form-problem"))
    assert form.screen.draft.values == {"model": "gpt2"}


# models


async def test_a_mistyped_model_is_refused_and_a_near_name_can_be_picked(form: Form, desk: Desk) -> None:
    await form.type("model", "gtp2")
    await form.press("ctrl+j")
    await until(lambda: form.note("model").startswith("✗ gtp2 is not on disk"))
    assert form.answers == []
    assert desk.submitted == []
    await form.move("down")
    assert form.focused == "Suggestions"
    await form.press("enter")
    await until(lambda: form.screen.draft.values["model"] == "gpt2" and form.focused == "model")
    assert "MIT, on disk, 548.0 MB; fits: about 497.8 MB of weights, 15.5 GB free on cpu" in form.note("model")
    await form.press("ctrl+j")
    await until(lambda: desk.submitted)


async def test_a_known_name_has_no_suggestions_in_the_way(form: Form) -> None:
    await form.type("model", "gpt2")
    await form.move("down")
    assert form.focused == "dtype"


async def test_enter_on_the_model_opens_the_list_and_its_choice_is_taken(form: Form) -> None:
    await form.press("enter")
    await until(lambda: isinstance(form.pilot.app.screen, PickModelScreen))
    await form.press(*"medium")
    await form.press("enter")
    await until(lambda: form.screen.draft.values.get("model") == "gpt2-medium")


@pytest.mark.parametrize(("name", "starts"), [("lab/present", True), ("lab/absent", False), ("lab/overloaded", False)])
async def test_a_model_that_is_not_here_is_asked_for_at_the_hub(
    desk: Desk, tmp_path: Path, name: str, starts: bool
) -> None:
    folder = tmp_path / "served"
    folder.mkdir()
    with stand_in_hub(tmp_path, folder) as env:
        access = HubAccess("", str(tmp_path), False, env["HF_ENDPOINT"], "", False)
        async with form_of(desk.doors(access=access), Draft({"model": name})) as form:
            await form.press("ctrl+j")
            await until(lambda: form.answers or form.note("model").startswith("✗"))
            assert [spec.model for spec, _, _ in desk.submitted] == ([name] if starts else [])


async def test_a_file_may_be_picked_from_its_folder(form: Form, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").touch()
    await form.type("data_file", f"{tmp_path}/te")  # codespell:ignore te
    assert form.note("data_file").startswith("✗ there is no file")
    await form.pick()
    await until(lambda: form.screen.draft.values["data_file"] == f"{tmp_path}/texts.txt")
    assert form.note("data_file") == ""


async def test_a_run_to_wait_for_may_be_picked(form: Form) -> None:
    await form.unfold("Queue and memory")
    await form.type("after", "k7")
    await form.pick()
    await until(lambda: form.screen.draft.values["after"] == "20261123-190000-gpt2-k7q2")


# plan and command


async def test_ctrl_r_asks_for_the_plan_and_says_what_it_waits_for(form: Form, desk: Desk) -> None:
    await form.type("model", "gpt2")
    await form.press("ctrl+r")
    await until(lambda: form.text("form-plan") == "plan  waits for k7q2 to be done")
    desk.may_plan.set()
    await until(
        lambda: "✓ fits: float32, gradients of all weights, about 1.2 GB of 12.0 GB free" in form.text("form-plan")
    )
    assert PLAN.why in form.text("form-plan")


async def test_the_plan_shows_the_way_of_scoring_that_is_asked_for(desk: Desk) -> None:
    desk.may_plan.set()
    async with form_of(desk.doors(), Draft({"model": "gpt2", "gradients": "sweep", "batch_size": "3"})) as form:
        await form.press("ctrl+r")
        await until(lambda: "gradients of one block, about 800.0 MB" in form.text("form-plan"))
        assert "batch 3" in form.text("form-plan")


async def test_a_model_that_is_here_is_planned_by_itself_after_a_pause(desk: Desk) -> None:
    async with form_of(desk.doors(plan_after_s=0.01)) as form:
        await form.type("model", "nobody/knows")
        await form.type("model", "gpt2")
        await until(lambda: desk.plans_asked)
        assert [spec.model for spec in desk.plans_asked] == ["gpt2"]


async def test_an_outdated_plan_is_dropped_and_one_that_is_there_says_so(desk: Desk) -> None:
    async with form_of(desk.doors(), Draft({"model": "gpt2"})) as form:
        await form.press("ctrl+r")
        await until(lambda: desk.plans_asked)
        await form.type("eval_limit", "4")
        await until(lambda: desk.plans_dropped == 1)
        desk.may_plan.set()
        await form.press("ctrl+r")
        await until(lambda: "✓ fits" in form.text("form-plan"))
        await form.type("eval_limit", "5")
        assert form.text("form-plan").startswith("plan  of what was typed before:")
        await form.type("eval_limit", "4")
        assert form.text("form-plan").startswith("plan  ✓ fits")


async def test_a_plan_goes_on_while_options_change_that_it_does_not_depend_on(desk: Desk) -> None:
    async with form_of(desk.doors(), Draft({"model": "gpt2"})) as form:
        await form.press("ctrl+r")
        await until(lambda: desk.plans_asked)
        await form.go("dtype")
        await form.press("right")
        await until(lambda: form.screen.draft.values.get("dtype") == "float32")
        desk.may_plan.set()
        await until(lambda: "✓ fits" in form.text("form-plan"))
        assert (len(desk.plans_asked), desk.plans_dropped) == (1, 0)


async def test_no_plan_is_asked_for_a_model_that_does_not_exist(form: Form, desk: Desk) -> None:
    await form.type("model", "gtp2")
    await form.press("ctrl+r")
    await until(lambda: form.note("model").startswith("✗ gtp2 is not on disk"))
    assert desk.plans_asked == []


async def test_a_plan_that_fails_says_why(desk: Desk) -> None:
    async def refuse(spec: RunSpec, say: Say) -> Plan:
        raise DaemonUnreachable("no daemon is running", hint="press D to start it")

    async with form_of(desk.doors(plan=refuse), Draft({"model": "gpt2"})) as form:
        await form.press("ctrl+r")
        await until(lambda: form.text("form-plan") == "plan  ✗ no daemon is running\npress D to start it")


async def test_the_command_line_is_copied_whole_though_it_is_shown_in_lines(desk: Desk) -> None:
    draft = Draft(
        {"model": "gpt2", "topk": "1 2 3 4 5 6 7 8 9 10 100 1000", "eval_limit": "32", "kl": True, "seed": "7"}
    )
    async with form_of(desk.doors(host="lab"), draft) as form:
        await form.press("ctrl+y")
        await until(lambda: desk.copied)
        (command,) = desk.copied
        assert command.startswith("cwtool --host lab run --model gpt2")
        assert "\n" not in command
        shown = form.text("form-command").splitlines()
        assert len(shown) > 1
        assert all(len(line) <= 78 and line.endswith("\\") for line in shown[:-1])
        assert "".join(shown).removeprefix("$ ").replace("\\    ", "") == command


# keeping


async def test_a_form_that_is_closed_is_kept(form: Form, desk: Desk) -> None:
    await form.type("model", "gpt2-me")
    await form.type("eval_limit", "7")
    await form.press("escape")
    await until(lambda: form.answers == [None])
    assert desk.kept == [Draft({"model": "gpt2-me", "eval_limit": "7"})]


async def test_ctrl_l_empties_the_form_and_once_more_brings_it_back(form: Form) -> None:
    await form.type("model", "gpt2")
    await form.go("metrics")
    await form.press("right", "space")
    await until(lambda: "metrics" in form.screen.draft.values)
    await form.press("ctrl+l")
    await until(lambda: form.screen.draft == Draft())
    assert form.row("model").query_one(Input).value == ""
    assert form.row("metrics").query_one(ChoiceField).chosen == ("grad_x_weight",)
    await form.press("ctrl+l")
    await until(lambda: form.screen.draft.values.get("model") == "gpt2")
    assert form.row("metrics").query_one(ChoiceField).chosen == ("grad_x_weight", "grad_squared")


async def test_a_placeholder_says_that_it_is_a_default(form: Form) -> None:
    shown = {line.id: line.placeholder for line in form.screen.query(Input)}
    assert shown["edit-topk"] == "default: 100"
    assert all(text.startswith("default: ") for name, text in shown.items() if name != "edit-model")


async def test_a_wide_terminal_has_the_plan_and_the_command_beside_the_fields(desk: Desk) -> None:
    async with form_of(desk.doors(), Draft({"model": "gpt2"}), size=(160, 48)) as form:
        fields, side = form.screen.query_one("#form-fields").region, form.screen.query_one("#form-side").region
        assert side.x >= fields.right
        assert fields.height > 30
    async with form_of(desk.doors(), Draft({"model": "gpt2"})) as form:
        fields, side = form.screen.query_one("#form-fields").region, form.screen.query_one("#form-side").region
        assert side.y >= fields.bottom
        assert fields.height >= 12


# in the app


async def test_the_app_keeps_the_draft_over_a_restart(tmp_path: Path) -> None:
    daemon = FakeDaemon()
    first = app_on(daemon)
    async with first.run_test(size=(80, 24)) as pilot:
        await open_form(pilot)
        await pilot.press(*"gpt2-x", "escape")
        await until(lambda: first.preferences.now.draft == {"model": "gpt2-x"})
    again = CwtoolApp(daemon.connect, preferences=type(first.preferences)(first.preferences._path))
    async with again.run_test(size=(80, 24)) as pilot:
        await open_form(pilot)
        assert pilot.app.screen.query_one("#edit-model", Input).value == "gpt2-x"


async def open_form(pilot: Pilot[None], key: str = "n") -> NewRunScreen:
    app = pilot.app
    await until(lambda: app.screen.id != "_default" and app.screen.is_mounted and app.focused)
    await pilot.press(key)
    await until(lambda: isinstance(app.screen, NewRunScreen) and app.focused)
    assert isinstance(app.screen, NewRunScreen)
    return app.screen
