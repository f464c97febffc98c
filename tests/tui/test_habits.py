"""Palette, help, jump labels, messages and copying, driven by keys."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from textual.command import CommandPalette
from textual.events import AppBlur
from textual.pilot import Pilot
from textual.widgets import OptionList

from cwa_engine.base.errors import RunFailed
from cwa_tui.app import CwtoolApp
from cwa_tui.screens.base import StoreScreen
from cwa_tui.screens.help import HelpScreen
from cwa_tui.screens.home import HomeScreen
from cwa_tui.screens.jump import JumpScreen
from cwa_tui.screens.messages import MessagesScreen
from cwa_tui.screens.run import RunScreen
from cwa_tui.store.preferences import PreferenceFile
from cwa_tui.terminal.themes import LIGHT, TERMINAL
from cwa_tui.text.glossary import meaning_of
from cwa_tui.widgets.row_table import RowTable
from tests.tui.fake_client import FakeDaemon, app_on, screen_lines, steady, until, warm, whole_run

RUN = "20261123-180000-gpt2-k7q2"


def daemon_with_a_run() -> FakeDaemon:
    daemon = FakeDaemon()
    daemon.models = [warm()]
    whole_run(daemon, RUN)
    return daemon


def shows(app: CwtoolApp, text: str) -> Callable[[], bool]:
    return lambda: any(re.search(text, line) for line in screen_lines(app))


async def ready(pilot: Pilot[None]) -> CwtoolApp:
    app = pilot.app
    assert isinstance(app, CwtoolApp)
    await until(shows(app, "k7q2"))
    return app


async def choose(pilot: Pilot[None], words: str, offer: str) -> None:
    """Take an offer of the palette, found by some words."""
    await pilot.press("ctrl+p")
    app = pilot.app
    await until(lambda: isinstance(app.screen, CommandPalette))
    await pilot.press(*("space" if letter == " " else letter for letter in words))
    listed = app.screen.query_one(OptionList)
    await until(lambda: listed.option_count and offer in str(listed.get_option_at_index(0).prompt))
    await pilot.press("enter")
    await until(lambda: not isinstance(app.screen, CommandPalette))


async def test_the_palette_opens_a_run() -> None:
    async with app_on(daemon_with_a_run()).run_test(size=(80, 24)) as pilot:
        app = await ready(pilot)
        await choose(pilot, "open k7q2", "gpt2-k7q2")
        await until(lambda: isinstance(app.screen, RunScreen) and app.screen.run_id == RUN)


async def test_the_palette_does_what_a_key_does() -> None:
    async with app_on(daemon_with_a_run()).run_test(size=(80, 24)) as pilot:
        app = await ready(pilot)
        await choose(pilot, "unload", "unload")
        await until(shows(app, "unload this model"))


async def test_a_theme_that_is_chosen_is_there_after_a_restart(tmp_path: Path) -> None:
    file = tmp_path / "tui.json"
    async with app_on(daemon_with_a_run(), PreferenceFile(file)).run_test(size=(80, 24)) as pilot:
        app = await ready(pilot)
        await choose(pilot, f"theme {LIGHT}", LIGHT)
        await until(lambda: app.theme == LIGHT)
    assert json.loads(file.read_text())["theme"] == LIGHT
    async with app_on(daemon_with_a_run(), PreferenceFile(file)).run_test(size=(80, 24)) as pilot:
        app = await ready(pilot)
        assert app.theme == LIGHT


async def test_a_terminal_without_colours_does_not_change_what_is_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = PreferenceFile(tmp_path / "tui.json")
    file.change(theme=LIGHT)
    monkeypatch.setenv("NO_COLOR", "1")
    async with app_on(daemon_with_a_run(), file).run_test(size=(80, 24)) as pilot:
        app = await ready(pilot)
        assert app.theme == TERMINAL
        styles = [style for strip in app.screen._compositor.render_strips() for _, style, _ in strip if style]
        assert all(not style.color or style.color.is_default for style in styles)
        assert all(not style.bgcolor or style.bgcolor.is_default for style in styles)
        assert any(style.reverse for style in styles)  # the cursor
    assert PreferenceFile(tmp_path / "tui.json").now.theme == LIGHT


async def test_in_ascii_all_is_drawn_and_nothing_moves() -> None:
    lines = {}
    for ascii in (False, True):
        app = app_on(daemon_with_a_run(), ascii=ascii)
        async with app.run_test(size=(80, 24)) as pilot:
            await ready(pilot)
            await pilot.pause()
            lines[ascii] = screen_lines(app)
    assert all(line.isascii() for line in lines[True])
    assert [len(line) for line in lines[True]] == [80] * 24
    assert [line.find("k7q2") for line in lines[True]] == [line.find("k7q2") for line in lines[False]]


@pytest.mark.parametrize("opened", [False, True], ids=["dashboard", "run"])
async def test_help_is_about_the_screen_below(opened: bool) -> None:
    async with app_on(daemon_with_a_run()).run_test(size=(100, 120)) as pilot:
        app = await ready(pilot)
        if opened:
            await pilot.press("enter")
            await until(lambda: isinstance(app.screen, RunScreen))
        below = app.screen
        await pilot.press("question_mark")
        await until(lambda: isinstance(app.screen, HelpScreen))
        await pilot.pause()
        said = "\n".join(screen_lines(app))
        described = {binding.description for _, binding in below._bindings} - {"", "Help"}
        assert described and all(word.lower() in said.lower() for word in described)
        assert ("score " in said) is opened
        await pilot.press("escape")
        assert app.screen is below


async def test_every_column_is_explained_or_says_it_all() -> None:
    plain = {"name"}
    async with app_on(daemon_with_a_run()).run_test(size=(160, 48)) as pilot:
        app = await ready(pilot)
        tables = list(app.screen.query(RowTable))
        await pilot.press("enter")
        await until(lambda: isinstance(app.screen, RunScreen))
        tables += app.screen.query(RowTable)
        columns = {column.key for table in tables for column in table.all_columns}
        assert {key for key in columns if not meaning_of(key)} <= plain


async def test_a_label_takes_the_focus_where_it_says() -> None:
    async with app_on(daemon_with_a_run()).run_test(size=(160, 48)) as pilot:
        app = await ready(pilot)
        screen = app.screen
        here = screen.focused
        await pilot.press("ctrl+o")
        await until(lambda: isinstance(app.screen, JumpScreen))
        assert isinstance(app.screen, JumpScreen)
        targets = app.screen.targets
        letter = next(letter for letter, target in targets.items() if target is not here)
        await pilot.press(letter)
        await until(lambda: app.screen is screen and screen.focused is targets[letter])


async def test_a_message_is_one_line_at_the_bottom_and_can_be_read_again() -> None:
    async with app_on(daemon_with_a_run()).run_test(size=(80, 24), notifications=True) as pilot:
        app = await ready(pilot)
        before = await steady(app)
        app.notify("the first one, " * 20, markup=False)
        app.notify("the latest one", markup=False)
        await until(shows(app, "the latest one"))
        now = screen_lines(app)
        assert now[:23] == before[:23]
        assert "the latest one" in now[23]
        app.action_messages()
        await until(lambda: isinstance(app.screen, MessagesScreen))
        await until(shows(app, "the first one"))


async def test_an_error_is_read_whole() -> None:
    hint = "look at the worker's log, then submit it again with a smaller batch"
    async with app_on(daemon_with_a_run()).run_test(size=(80, 24), notifications=True) as pilot:
        app = await ready(pilot)
        assert isinstance(app.screen, StoreScreen)
        app.screen.explain(RunFailed("the worker of this run has ended by signal 9", hint=hint))
        await until(shows(app, "signal 9"))
        assert "smaller batch" in "\n".join(screen_lines(app)[-4:])


async def test_the_end_of_a_run_that_was_watched_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    daemon = daemon_with_a_run()
    run_id = daemon.run("20261123-190000-gpt2-ab12")
    async with app_on(daemon).run_test(size=(80, 24), notifications=True) as pilot:
        app = await ready(pilot)
        rung: list[bool] = []
        monkeypatch.setattr(app, "bell", lambda: rung.append(True))
        app.preferences.change(bell=True)
        app.open_run(run_id)
        await until(lambda: run_id in app.session.watched)
        await until(lambda: app.session.store.job(run_id))
        await pilot.press("escape")
        daemon.end(run_id)
        await until(shows(app, "✓ done: ab12 "))
        assert rung == [True]


async def test_a_row_is_copied_into_a_file_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CWTOOL_HOME", str(tmp_path))
    monkeypatch.delenv("TMUX", raising=False)
    async with app_on(daemon_with_a_run()).run_test(size=(80, 24), notifications=True) as pilot:
        app = await ready(pilot)
        await pilot.press("y")
        await until(shows(app, "copied to the clipboard and"))
        assert f"{tmp_path}/copied.txt" in "".join(line.strip() for line in screen_lines(app)[-4:])
        assert "k7q2" in app.clipboard
        assert (tmp_path / "copied.txt").read_text() == app.clipboard


async def test_the_run_that_was_on_screen_is_there_after_a_restart(tmp_path: Path) -> None:
    file = tmp_path / "tui.json"
    async with app_on(daemon_with_a_run(), PreferenceFile(file)).run_test(size=(80, 24)) as pilot:
        app = await ready(pilot)
        await pilot.press("enter")
        await until(lambda: isinstance(app.screen, RunScreen))
    async with app_on(daemon_with_a_run(), PreferenceFile(file)).run_test(size=(80, 24)) as pilot:
        again = pilot.app
        await until(lambda: isinstance(again.screen, RunScreen) and again.screen.run_id == RUN)
        await pilot.press("escape")
        await until(lambda: isinstance(again.screen, HomeScreen))
    assert PreferenceFile(file).now.last_screen == ()


async def test_what_is_typed_stays_when_the_terminal_loses_the_focus() -> None:
    async with app_on(daemon_with_a_run()).run_test(size=(80, 24)) as pilot:
        app = await ready(pilot)
        await pilot.press("slash", *"gp")
        app.post_message(AppBlur())
        await until(lambda: app.focused is None)
        await pilot.press(*"t2")
        assert app.screen.query_one("#jobs", RowTable).filter_text == "gpt2"
