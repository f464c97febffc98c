"""The list of models: filtered as one types, chosen by enter or a click."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from textual.app import App
from textual.pilot import Pilot
from textual.widgets import OptionList, Static

import cwa_tui.app
from cwa_daemon.protocol import DeviceMemory
from cwa_engine.hub.sources import HubAccess
from cwa_tui.form.model_choice import KnownModels, Room, model_choices
from cwa_tui.screens.pick_model import PickModelScreen
from tests.tui.fake_client import until, warm

ACCESS = HubAccess("", "/no/cache", False, "https://hub.example", "", False)
MODELS = KnownModels(model_choices([warm("my/model")], {"gpt2": 548_000_000}), ACCESS)
ROOM = Room.on("cpu", "auto", [DeviceMemory(device="cpu", total_bytes=25_000_000_000, used_bytes=5_000_000_000)], [])


class PickApp(App[None]):
    CSS_PATH = Path(cwa_tui.app.__file__).with_name("app.tcss")

    def __init__(self, typed: str) -> None:
        super().__init__()
        self._typed = typed
        self.answers: list[str | None] = []

    def on_mount(self) -> None:
        self.push_screen(PickModelScreen(MODELS, ROOM, self._typed), self.answers.append)


@asynccontextmanager
async def the_list(typed: str = "", size: tuple[int, int] = (80, 24)) -> AsyncIterator[tuple[Pilot[None], PickApp]]:
    app = PickApp(typed)
    async with app.run_test(size=size) as pilot:
        await until(lambda: isinstance(app.screen, PickModelScreen) and app.focused and app.screen.query(OptionList))
        yield pilot, app


def lines(app: PickApp) -> list[str]:
    models = app.screen.query_one(OptionList)
    return [str(models.get_option_at_index(place).prompt).rstrip() for place in range(models.option_count)]


def facts(app: PickApp) -> str:
    return str(app.screen.query_one("#model-facts", Static).content)


async def test_the_list_has_every_model_with_the_nearest_first() -> None:
    async with the_list() as (_, app):
        await until(lambda: len(lines(app)) == len(MODELS.choices))
        assert lines(app)[0].split() == ["my/model", "135", "M", "warm", "-", "fits"]
        assert lines(app)[1].split() == ["gpt2", "124", "M", "on", "disk", "MIT", "fits"]
        assert any("Llama 3.1 *  too large" in line for line in lines(app))
        assert all(len(line) <= 76 for line in lines(app))


async def test_typing_filters_and_enter_takes_the_highlighted_one() -> None:
    async with the_list() as (pilot, app):
        await pilot.press(*"pythia")
        await until(lambda: lines(app) and all("pythia" in line for line in lines(app)))
        await pilot.press("down", "down", "up")
        await until(lambda: "EleutherAI/pythia-31m, 30 M weights" in facts(app))
        assert "fits: about 122.0 MB of weights, 20.0 GB free on cpu" in facts(app)
        await pilot.press("enter")
        await until(lambda: app.answers == ["EleutherAI/pythia-31m"])


async def test_a_mistyped_name_shows_those_that_look_like_it() -> None:
    async with the_list("gtp2-medum") as (pilot, app):
        await until(lambda: any(line.startswith("gpt2-medium") for line in lines(app)))
        await pilot.press("enter")
        await until(lambda: app.answers and app.answers[0] and app.answers[0].startswith("gpt2"))


async def test_a_name_that_nothing_resembles_is_taken_as_it_is() -> None:
    async with the_list("/models/mine") as (pilot, app):
        await until(lambda: "takes it as a name of the Hub or a path" in facts(app))
        await pilot.press("enter")
        await until(lambda: app.answers == ["/models/mine"])


@pytest.mark.parametrize(
    ("keys", "place"), [(["ctrl+end"], -1), (["ctrl+end", "ctrl+home"], 0), (["pagedown", "pageup"], 0)]
)
async def test_keys_move_through_the_list(keys: list[str], place: int) -> None:
    async with the_list() as (pilot, app):
        await pilot.press(*keys)
        models = app.screen.query_one(OptionList)
        await until(lambda: models.highlighted == place % len(MODELS.choices))


async def test_escape_takes_nothing() -> None:
    async with the_list() as (pilot, app):
        await pilot.press("escape")
        await until(lambda: app.answers == [None])


async def test_a_click_takes_a_model() -> None:
    async with the_list() as (pilot, app):
        await pilot.click(OptionList, offset=(3, 1))
        await until(lambda: app.answers == ["gpt2"])


async def test_a_wide_list_has_the_size_on_disk() -> None:
    async with the_list(size=(160, 48)) as (_, app):
        await until(lambda: "548.0 MB" in lines(app)[1])
