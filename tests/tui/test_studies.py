"""Studies on screen: the list, one study as it fills, and what their keys do."""

from __future__ import annotations

import csv
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from textual.pilot import Pilot
from textual.widgets import Input

from cwa_engine.base.errors import RunFailed
from cwa_engine.records.run_id import short_id
from cwa_engine.spec import RunSpec
from cwa_engine.studies import registry
from cwa_engine.studies.folder import StudyFolder
from cwa_engine.studies.identity import identity_of
from cwa_engine.studies.study import Study, cells_of
from cwa_tui.app import CwtoolApp
from cwa_tui.screens.compare import CompareScreen
from cwa_tui.screens.new_study import NewStudyScreen
from cwa_tui.screens.pick_model import PickModelScreen
from cwa_tui.screens.run import RunScreen
from cwa_tui.screens.studies import StudiesScreen
from cwa_tui.screens.study import StudyScreen
from cwa_tui.widgets.form_choice import ChoiceField
from cwa_tui.widgets.row_table import RowTable
from tests.tui import fake_client
from tests.tui.a_study import MODELS, QUESTION, ends, study
from tests.tui.fake_client import FakeDaemon, app_on, screen_text, warm
from tests.tui.finished_run import finished

# The first of these tests waits for what is imported and hashed once, which takes long on a busy machine.
until = partial(fake_client.until, patience_s=30.0)
SIZES = ((80, 24), (160, 48))


@pytest.fixture(scope="module", autouse=True)
def a_run_is_made() -> None:
    """Before any app runs, which would stand still meanwhile; the hash of the code is kept, too."""
    finished(FakeDaemon())
    identity_of(cells_of(study())[0].spec)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state folder of the test's own, and a question of its own."""
    monkeypatch.setitem(registry.STUDY_QUESTIONS, "sizes", QUESTION)
    monkeypatch.setenv("CWTOOL_HOME", str(tmp_path))
    return tmp_path


@asynccontextmanager
async def on_screen(
    daemon: FakeDaemon, size: tuple[int, int] = (80, 24), ascii: bool = False
) -> AsyncIterator[tuple[CwtoolApp, Pilot[None]]]:
    """The app with the list of studies."""
    app = app_on(daemon, ascii=ascii)
    async with app.run_test(size=size, notifications=True) as pilot:
        await until(lambda: "connecting" not in screen_text(app))
        await pilot.press("S")
        await until(lambda: isinstance(app.screen, StudiesScreen))
        yield app, pilot


async def started(app: CwtoolApp, daemon: FakeDaemon, asked: Study) -> list[str]:
    """The run ids of a study's cells, once all are queued and known."""
    study_id = await app.session.start_study(asked)
    cells = len(asked.grid["model"])
    await until(lambda: len(daemon.submitted) >= cells)
    await until(lambda: (found := app.session.store.study(study_id)) and found.count("queued") == cells)
    known = app.session.store.study(study_id)
    assert known
    return [entry.run_id for entry in known.progress]


async def opened(app: CwtoolApp, pilot: Pilot[None]) -> StudyScreen:
    await until(lambda: app.screen.query_one("#studies", RowTable).cursor_key)
    await pilot.press("enter")
    await until(lambda: isinstance(app.screen, StudyScreen) and "reading" not in screen_text(app))
    assert isinstance(app.screen, StudyScreen)
    return app.screen


async def test_without_a_study_the_list_says_how_to_begin_one() -> None:
    async with on_screen(FakeDaemon()) as (app, _):
        await until(lambda: "no studies yet: press n" in screen_text(app))


@pytest.mark.parametrize("size", SIZES)
async def test_a_study_that_somebody_else_asks_for_appears_by_itself(size: tuple[int, int]) -> None:
    async with on_screen(FakeDaemon(), size) as (app, _):
        await until(lambda: "no studies yet" in screen_text(app))
        StudyFolder.create(study())
        await until(lambda: "sizes" in screen_text(app) and "0/4" in screen_text(app))
        assert "· waiting" in screen_text(app)


@pytest.mark.parametrize("size", SIZES)
async def test_the_grid_fills_while_runs_go_on(size: tuple[int, int]) -> None:
    daemon = FakeDaemon()
    async with on_screen(daemon, size) as (app, pilot):
        runs = await started(app, daemon, study())
        screen = await opened(app, pilot)
        await until(lambda: "○ queued" in screen_text(app))
        daemon.say(runs[0], "state", state="running", error=None)
        daemon.progress(runs[0], "score", 3, 12)
        await until(lambda: "▶ score 3/12" in screen_text(app))
        ends(daemon, runs[0])
        await until(lambda: "✓ done" in screen_text(app) and "x8.62 ▲" in screen_text(app))
        value = screen.query_one("#study-grid", RowTable).source.row(0).values["grad_x_weight"]
        headline = daemon.reports[runs[0]].summary.headline
        assert headline and headline.critical
        assert value == headline.critical.perplexity_ratio
        await until(lambda: "so far, of 1 run: damage grows over 1 models" in " ".join(screen_text(app).split()))
        daemon.end(runs[1], "failed", RunFailed("the loss is not finite", hint="try float32"))
        for run in runs[2:]:
            ends(daemon, run)
        await until(lambda: "damage grows over 3 models" in screen_text(app))
        await until(lambda: "3 of 4 done, 1 failed" in screen_text(app))
        assert "so far" not in screen_text(app)


async def test_the_panes_have_the_answer_its_tables_its_figure_and_what_failed() -> None:
    daemon = FakeDaemon()
    async with on_screen(daemon) as (app, pilot):
        runs = await started(app, daemon, study())
        for run in runs[:3]:
            ends(daemon, run)
        daemon.end(runs[3], "failed", RunFailed("the loss is not finite", hint="try float32"))
        screen = await opened(app, pilot)
        await until(lambda: "damage grows over 3 models" in screen_text(app))
        await pilot.press("2")
        await until(lambda: "overturned by: a size that lies outside" in screen_text(app))
        assert "no law is fitted to fewer than four sizes" in screen_text(app)
        assert "rule: the slope of a line" in screen_text(app)
        await pilot.press("3")
        await until(lambda: "1 of 2: sizes" in screen_text(app))
        assert [
            screen.query_one("#answer-table", RowTable).source.row(place).values["damage"] for place in range(3)
        ] == [0.5, 1.5, 2.5]
        await pilot.press("m")
        await until(lambda: "2 of 2: models" in screen_text(app))
        await pilot.press("4")
        await until(lambda: "parameters, logarithmic" in screen_text(app) and "●" in screen_text(app))
        await pilot.press("5")
        await until(lambda: "4 tiny-d: the loss is not finite (try float32)" in screen_text(app))


async def test_enter_opens_the_run_of_a_cell_and_marked_cells_are_compared() -> None:
    daemon = FakeDaemon()
    async with on_screen(daemon) as (app, pilot):
        runs = await started(app, daemon, study())
        for run in runs:
            ends(daemon, run)
        await opened(app, pilot)
        await until(lambda: "4 of 4 done" in screen_text(app))
        await pilot.press("enter")
        await until(lambda: isinstance(app.screen, RunScreen))
        await pilot.press("escape")
        await until(lambda: isinstance(app.screen, StudyScreen))
        await pilot.press("space", "down", "space", "equals_sign")
        await until(lambda: isinstance(app.screen, CompareScreen))
        assert isinstance(app.screen, CompareScreen)
        assert app.screen.run_ids == tuple(runs[:2])


async def test_a_study_is_cancelled_after_a_question_and_goes_on_when_resumed() -> None:
    daemon = FakeDaemon()
    async with on_screen(daemon) as (app, pilot):
        runs = await started(app, daemon, study())
        ends(daemon, runs[0])
        await opened(app, pilot)
        await until(lambda: "1 of 4 done" in screen_text(app))
        await pilot.press("c")
        await until(lambda: "cancel this study?" in screen_text(app))
        assert "3 of 4 cells have not ended" in screen_text(app)
        await pilot.press("y")
        await until(lambda: "1 of 4 done, 3 cancelled" in screen_text(app))
        assert set(daemon.cancelled) == set(runs[1:])
        await pilot.press("r")
        await until(lambda: "1 of 4 done, 3 queued" in screen_text(app))
        assert len(daemon.submitted) == 7  # what is done is not run again


async def test_nothing_is_asked_of_the_daemon_while_nothing_changes() -> None:
    daemon = FakeDaemon()
    async with on_screen(daemon) as (app, pilot):
        for run in await started(app, daemon, study()):
            ends(daemon, run)
        await opened(app, pilot)
        await until(lambda: "damage grows over 4 models" in screen_text(app))
        known, began = app.session.store.studies, time.monotonic()
        await until(lambda: time.monotonic() - began > 0.5)
        assert app.session.store.studies is known


async def test_the_screen_is_grey_when_the_daemon_is_gone() -> None:
    daemon = FakeDaemon()
    async with on_screen(daemon) as (app, pilot):
        await started(app, daemon, study())
        screen = await opened(app, pilot)
        daemon.lose()
        await until(lambda: screen.has_class("-lost"))
        assert "○ queued" in screen_text(app)


async def test_runs_that_a_question_asks_for_in_the_end_are_queued_and_the_answer_is_so_far_until_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    more = (RunSpec(model="tiny-e", topk=(1, 4)),)
    monkeypatch.setitem(registry.STUDY_QUESTIONS, "sizes", replace(QUESTION, further=lambda asked, runs: more))
    daemon = FakeDaemon()
    async with on_screen(daemon) as (app, pilot):
        for run in await started(app, daemon, study()):
            ends(daemon, run)
        await opened(app, pilot)
        await until(lambda: len(daemon.submitted) == 5)
        await until(lambda: "4 of 5 done, 1 queued" in screen_text(app))
        await until(lambda: "so far, of 4 runs" in screen_text(app))
        ends(daemon, list(daemon.jobs)[-1])
        await until(lambda: "damage grows over 5 models" in screen_text(app) and "so far" not in screen_text(app))


async def test_the_grid_is_exported_with_exact_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    daemon = FakeDaemon()
    monkeypatch.chdir(tmp_path)
    async with on_screen(daemon) as (app, pilot):
        for run in await started(app, daemon, study()):
            ends(daemon, run)
        screen = await opened(app, pilot)
        await until(lambda: "x8.62" in screen_text(app))
        await pilot.press("x")
        await until(lambda: "export what is seen as" in screen_text(app))
        await pilot.press("c")
        file = tmp_path / f"{short_id(screen.study_id)}-study-grid.csv"
        await until(file.exists)
        rows = list(csv.DictReader(file.open()))
        assert [row["model"] for row in rows] == list(MODELS)
        assert {float(row["grad_x_weight"]) for row in rows} == {4.62 + 4}


async def test_keys_are_in_the_help() -> None:
    daemon = FakeDaemon()
    async with on_screen(daemon, (80, 48)) as (app, pilot):
        await started(app, daemon, study())
        await opened(app, pilot)
        await pilot.press("question_mark")
        await until(lambda: "queue what is not queued yet" in screen_text(app))
        assert "compare the runs of marked cells" in screen_text(app)


@pytest.mark.parametrize("size", SIZES)
async def test_a_new_study_is_typed_planned_and_started(size: tuple[int, int]) -> None:
    daemon, models = FakeDaemon(), ["distilgpt2", "gpt2"]
    daemon.models = [warm(model) for model in models]
    async with on_screen(daemon, size) as (app, pilot):
        await pilot.press("n")
        await until(lambda: "new study" in screen_text(app))
        form = app.screen
        assert isinstance(form, NewStudyScreen)
        while (field := form.query_one("#edit-question", ChoiceField)).under_cursor != "sizes":
            await pilot.press("right")
        assert field.chosen == ("sizes",)
        form.query_one("#edit-models", Input).value = " ".join(models)
        form.query_one("#edit-topk", Input).value = "3 5"
        await until(lambda: "cwtool study run sizes --models" in screen_text(app))
        await pilot.press("ctrl+r")
        await until(lambda: "2 cells" in screen_text(app))
        await pilot.press("ctrl+j")
        await until(lambda: isinstance(app.screen, StudyScreen))
        await until(lambda: len(daemon.submitted) == 2)
        assert [spec.model for spec, _ in daemon.submitted] == models
        assert {spec.topk for spec, _ in daemon.submitted} == {(3, 5)}


async def test_a_form_without_models_says_so_and_starts_nothing() -> None:
    daemon = FakeDaemon()
    async with on_screen(daemon) as (app, pilot):
        await pilot.press("n")
        await until(lambda: "new study" in screen_text(app))
        await pilot.press("ctrl+j")
        await until(lambda: "no model is given" in screen_text(app))
        assert not daemon.submitted


async def test_models_are_picked_from_the_list_one_after_the_other() -> None:
    daemon = FakeDaemon()
    daemon.models = [warm("gpt2"), warm("smollm2-135m")]
    async with on_screen(daemon) as (app, pilot):
        await pilot.press("n")
        await until(lambda: "new study" in screen_text(app))
        form = app.screen
        form.query_one("#edit-models", Input).focus()
        await pilot.press("enter")
        for _ in range(2):
            await until(lambda: isinstance(app.screen, PickModelScreen) and app.screen.is_mounted)
            await pilot.press("down", "enter")
            await pilot.pause()
        await pilot.press("escape")
        await until(lambda: app.screen is form)
        assert len(form.query_one("#edit-models", Input).value.split()) == 2


async def test_capital_f_shows_the_figures_of_a_study() -> None:
    daemon = FakeDaemon()
    async with on_screen(daemon) as (app, pilot):
        for run in await started(app, daemon, study()):
            ends(daemon, run)
        await opened(app, pilot)
        await until(lambda: "4 of 4 done" in screen_text(app))
        await pilot.press("F")
        await until(lambda: "1 of" in screen_text(app) and "· study" in screen_text(app))
        await until(lambda: "parameters, logarithmic" in screen_text(app) and "●" in screen_text(app))


async def test_a_study_that_another_process_runs_on_ray_is_listed_and_shown_and_said_to_be_there(home: Path) -> None:
    StudyFolder.create(study(), where="ray")
    async with on_screen(FakeDaemon(), (160, 48)) as (app, pilot):
        await until(lambda: "0/4" in screen_text(app))
        assert " ray " in screen_text(app)
        await opened(app, pilot)
        assert "on ray" in screen_text(app)
        await pilot.press("r")
        await until(lambda: "cwtool study resume" in " ".join(screen_text(app).split()))
