"""The form for a new run, filled in by keys."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cwa_tui.screens.main import MainScreen
from textual.events import Key, Paste
from textual.pilot import Pilot
from textual.widgets import Input, Static

from cwa_engine.base.errors import DataError
from cwa_engine.spec import RunSpec
from cwa_tui.screens.new_run import NewRunScreen
from cwa_tui.widgets.jobs_table import JobsTable
from tests.tui.fake_client import FakeDaemon, app_on, until, warm


@pytest.fixture
def daemon() -> FakeDaemon:
    daemon = FakeDaemon()
    daemon.models = [warm("my/model")]
    return daemon


@pytest.fixture
async def pilot(daemon: FakeDaemon) -> AsyncIterator[Pilot[None]]:
    """The app with the form open."""
    async with app_on(daemon).run_test(size=(80, 24)) as pilot:
        await until(lambda: daemon.connections and isinstance(pilot.app.screen, MainScreen))
        await open_form(pilot)
        yield pilot


async def open_form(pilot: Pilot[None]) -> None:
    await pilot.press("n")
    await until(lambda: isinstance(pilot.app.screen, NewRunScreen) and pilot.app.focused)


async def type_text(pilot: Pilot[None], field: str, text: str) -> None:
    """Replace what stands in a field, by pasting: keys take their time."""
    target = pilot.app.screen.query_one(field, Input)
    target.focus()
    await pilot.press("ctrl+u")
    target.post_message(Paste(text))
    await until(lambda: target.value == text)


def problem(pilot: Pilot[None]) -> str:
    found = pilot.app.screen.query_one("#problem", Static)
    return str(found.content) if found.display else ""


async def test_a_new_run_is_the_one_that_was_typed_and_is_selected(pilot: Pilot[None], daemon: FakeDaemon) -> None:
    daemon.add("an-old-one")
    await pilot.press(*"smollm2", "minus", *"135m")
    await type_text(pilot, "#topk", "1, 10")
    await type_text(pilot, "#data-file", "/data/texts.txt")
    await type_text(pilot, "#eval-limit", "4")
    pilot.app.screen.query_one("#fast-perturbation").focus()
    await pilot.press("space")
    pilot.app.screen.query_one("#metrics-magnitude").focus()
    await pilot.press("space")
    pilot.app.screen.query_one("#start").focus()
    await pilot.press("enter")
    await until(lambda: isinstance(pilot.app.screen, MainScreen))
    (spec, command) = daemon.submitted[0]
    assert spec == RunSpec(
        model="smollm2-135m",
        metrics=("grad_x_weight", "magnitude"),
        topk=(1, 10),
        data_file=Path("/data/texts.txt"),
        eval_limit=4,
        fast_perturbation=True,
    )
    assert command.startswith("cwtool run --model smollm2-135m --metric grad_x_weight magnitude --topk 1 10")
    jobs = pilot.app.screen.query_one(JobsTable)
    await until(lambda: jobs.row_count == 2 and jobs.cursor_key == "20261123-190500-smollm2-135m-new1")


async def test_enter_in_a_field_starts_the_run(pilot: Pilot[None], daemon: FakeDaemon) -> None:
    await type_text(pilot, "#model", "gpt2")
    await pilot.press("enter")
    await until(lambda: isinstance(pilot.app.screen, MainScreen))
    assert [spec for spec, _ in daemon.submitted] == [RunSpec(model="gpt2")]


async def test_what_cannot_be_meant_is_explained_in_the_form_and_nothing_is_lost(
    pilot: Pilot[None], daemon: FakeDaemon
) -> None:
    await type_text(pilot, "#model", "gpt2")
    await type_text(pilot, "#topk", "0")
    await pilot.press("enter")
    await until(lambda: problem(pilot) == "Error: --topk 0 is too small\nHint:  give at least 1")
    assert pilot.app.screen.query_one("#model", Input).value == "gpt2"
    assert daemon.submitted == []
    await type_text(pilot, "#topk", "5")
    assert problem(pilot) == ""
    await pilot.press("enter")
    await until(lambda: daemon.submitted)


async def test_what_the_submit_refuses_is_explained_in_the_form(pilot: Pilot[None], daemon: FakeDaemon) -> None:
    daemon.refuse = DataError("/no/texts.txt does not exist", hint="give a .txt or .jsonl file")
    await type_text(pilot, "#model", "gpt2")
    await type_text(pilot, "#data-file", "/no/texts.txt")
    await pilot.press("enter")
    await until(lambda: "/no/texts.txt does not exist" in problem(pilot))
    assert "give a .txt or .jsonl file" in problem(pilot)
    await pilot.press("enter")
    await until(lambda: len(daemon.submitted) == 1)


async def test_a_lost_daemon_is_explained_in_the_form(pilot: Pilot[None], daemon: FakeDaemon) -> None:
    daemon.lose()
    await type_text(pilot, "#model", "gpt2")
    await pilot.press("enter")
    await until(lambda: "no daemon is running" in problem(pilot))
    assert pilot.app.screen.query_one("#model", Input).value == "gpt2"


async def test_a_closed_form_opens_again_as_it_was(pilot: Pilot[None]) -> None:
    await type_text(pilot, "#model", "gpt2-me")
    await type_text(pilot, "#eval-limit", "7")
    await pilot.press("escape")
    await until(lambda: isinstance(pilot.app.screen, MainScreen))
    await open_form(pilot)
    assert pilot.app.screen.query_one("#model", Input).value == "gpt2-me"
    assert pilot.app.screen.query_one("#eval-limit", Input).value == "7"


async def test_the_model_field_completes_names_and_says_what_the_guide_knows(pilot: Pilot[None]) -> None:
    about = pilot.app.screen.query_one("#about-model", Static)
    await type_text(pilot, "#model", "smol")
    field = pilot.app.screen.query_one("#model", Input)
    await until(lambda: field._suggestion == "smollm2-135m")
    await pilot.press("right")
    assert field.value == "smollm2-135m"
    await until(lambda: "Apache-2.0" in str(about.content))
    await type_text(pilot, "#model", "my")
    await until(lambda: field._suggestion == "my/model")


async def test_the_whole_form_is_seen_at_80x24_even_with_an_error(pilot: Pilot[None]) -> None:
    await type_text(pilot, "#topk", "x")
    await pilot.press("enter")
    await until(lambda: problem(pilot) and pilot.app.screen.query_one("#problem").region)
    for name in (
        "#model",
        "#metrics",
        "#topk",
        "#data-file",
        "#eval-limit",
        "#fast-perturbation",
        "#problem",
        "#start",
    ):
        widget = pilot.app.screen.query_one(name)
        assert pilot.app.screen.region.contains_region(widget.region)


async def test_what_is_typed_ahead_lands_in_the_field_it_was_meant_for(pilot: Pilot[None]) -> None:
    for key in ("g", "tab", "7", "tab", "t"):
        pilot.app.post_message(Key(key, key if len(key) == 1 else None))
    fields = [pilot.app.screen.query_one(name, Input) for name in ("#model", "#topk", "#data-file")]
    await until(lambda: [field.value for field in fields] == ["g", "7", "t"])


async def test_arrows_move_between_fields(pilot: Pilot[None]) -> None:
    assert pilot.app.focused is pilot.app.screen.query_one("#model")
    await pilot.press("down")
    assert pilot.app.focused is pilot.app.screen.query_one("#topk")
    await pilot.press("up")
    assert pilot.app.focused is pilot.app.screen.query_one("#model")
