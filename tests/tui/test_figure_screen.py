"""The figures of a run, a study and a comparison on screen, and the card of a weight: keys, files, and what goes wrong."""

from __future__ import annotations

import csv
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from textual.pilot import Pilot

from cwa_engine.base.errors import RunFailed
from cwa_engine.base.events import CardMade, to_dict
from cwa_engine.figures.registry import figures_of
from cwa_engine.spec import CARD_METRICS
from cwa_tui.app import CwtoolApp
from cwa_tui.screens.run import RunScreen
from cwa_tui.screens.weight import WeightScreen
from cwa_tui.screens.weight_card import WeightCardScreen
from cwa_tui.widgets.figure_chart import FigureChart
from tests.tui.a_card import card
from tests.tui.fake_client import FakeDaemon, app_on, screen_lines, sees, steady, until
from tests.tui.finished_run import RUN_ID, finished

OTHER = "20261123-180100-tiny-w2m7"


@asynccontextmanager
async def on_run(daemon: FakeDaemon, size: tuple[int, int] = (100, 30)) -> AsyncIterator[tuple[CwtoolApp, Pilot[None]]]:
    """The app with a finished run on screen, whose report is here."""
    app = app_on(daemon)
    async with app.run_test(size=size, notifications=True) as pilot:
        await until(lambda: app.session.store.job(RUN_ID))
        app.open_run(RUN_ID)
        await until(lambda: isinstance(app.screen, RunScreen) and app.session.store.report(RUN_ID))
        yield app, pilot


async def test_capital_f_shows_the_figures_of_a_run_and_brackets_go_round_all_of_them() -> None:
    daemon = FakeDaemon()
    figures = figures_of(finished(daemon), "run")
    async with on_run(daemon) as (app, pilot):
        await pilot.press("F")
        await sees(app, f"1 of {len(figures)}", "run k7q2", figures[0].y.title[:20])
        await pilot.press("right_square_bracket")
        await sees(app, f"2 of {len(figures)}", figures[1].title[:30])
        await pilot.press("left_square_bracket", "left_square_bracket")
        await sees(app, f"{len(figures)} of {len(figures)}")
        await pilot.press("escape")
        await until(lambda: isinstance(app.screen, RunScreen))


async def test_the_list_of_a_wide_terminal_chooses_a_figure() -> None:
    daemon = FakeDaemon()
    figures = figures_of(finished(daemon), "run")
    async with on_run(daemon, (160, 48)) as (app, pilot):
        await pilot.press("F")
        await sees(app, f"1 of {len(figures)}", *(figure.name[:20] for figure in figures[:4]))
        app.screen.query_one("#figure-list").focus()
        await pilot.press("j", "j")
        await sees(app, f"3 of {len(figures)}")


async def test_t_shows_the_table_of_a_figure_and_x_writes_it_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    daemon = FakeDaemon()
    figure = figures_of(finished(daemon), "run")[0]
    async with on_run(daemon) as (app, pilot):
        await pilot.press("F")
        await sees(app, "1 of ")
        await pilot.press("t")
        await sees(app, "random, leading draw", "change", "texts")
        await pilot.press("t", "x")
        await sees(app, "export the figure as")
        await pilot.press("c")
        file = tmp_path / f"k7q2-{figure.name}.csv"
        await until(file.exists)
    assert file.read_bytes() == figure.table.table.to_bytes(figure.table.rows)
    assert len(list(csv.reader(file.open()))) == len(figure.table.rows) + 1


async def test_a_picture_is_written_beside_the_screen_where_the_extra_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("vl_convert", reason="the extra `report` draws pictures")
    monkeypatch.chdir(tmp_path)
    daemon = FakeDaemon()
    name = figures_of(finished(daemon), "run")[0].name
    async with on_run(daemon) as (app, pilot):
        await pilot.press("F")
        await sees(app, "1 of ")
        await pilot.press("x")
        await sees(app, "export the figure as")
        await pilot.press("s")
        await sees(app, "the figure is in")
    assert (tmp_path / f"k7q2-{name}.svg").read_text().startswith("<svg")


async def test_plus_shows_a_part_of_a_chart_and_0_all_of_it_again() -> None:
    daemon = FakeDaemon()
    finished(daemon)
    async with on_run(daemon) as (app, pilot):
        await pilot.press("F")
        await sees(app, "1 of ")
        chart = app.screen.query_one(FigureChart)
        before = await steady(app)
        await pilot.press("plus", "plus", "l")
        await until(lambda: screen_lines(app) != before)
        await pilot.press("0")
        await until(lambda: screen_lines(app) == before)
        assert chart.has_focus


async def test_what_cannot_be_read_is_said() -> None:
    daemon = FakeDaemon()
    finished(daemon)
    async with on_run(daemon) as (app, pilot):
        del daemon.reports[RUN_ID]
        await pilot.press("F")
        await sees(app, "the figures cannot be read", "has no result")


async def test_runs_that_are_compared_have_figures_of_their_own() -> None:
    daemon = FakeDaemon()
    report = finished(daemon)
    finished(daemon, OTHER)
    daemon.reports[OTHER] = replace(report, summary=replace(report.summary, run_id=OTHER))
    app = app_on(daemon)
    async with app.run_test(size=(100, 30), notifications=True):
        await until(lambda: app.session.store.job(OTHER))
        app.open_figures("comparison", [RUN_ID, OTHER])
        await sees(app, "comparison of k7q2 and w2m7", "1 of ")


# the card of a weight


@asynccontextmanager
async def on_card(
    daemon: FakeDaemon, size: tuple[int, int] = (100, 40)
) -> AsyncIterator[tuple[CwtoolApp, Pilot[None]]]:
    """The card of the run's first weight, which is being examined."""
    async with on_run(daemon, size) as (app, pilot):
        app.open_weight(RUN_ID, "grad_x_weight", 1)
        await until(lambda: isinstance(app.screen, WeightScreen) and app.screen.weight)
        await pilot.press("e")
        await until(lambda: isinstance(app.screen, WeightCardScreen) and daemon.examined)
        yield app, pilot


JOB = "20261123-190800-card1"


async def test_e_examines_the_weight_by_all_metrics_and_its_stages_are_told() -> None:
    daemon = FakeDaemon()
    target = finished(daemon).topk()[0].target
    async with on_card(daemon) as (app, _):
        spec, asked = daemon.examined[0]
        assert asked == target and set(CARD_METRICS) <= set(spec.metrics)
        await sees(app, target, "waits for its turn")
        daemon.say(JOB, "state", state="running", error=None)
        daemon.say(JOB, "stage_started", stage="bits")
        daemon.progress(JOB, "bits", 12, 64)
        await sees(app, "bits 12/64", "being examined")


async def test_c_cancels_the_examination_after_a_question() -> None:
    daemon = FakeDaemon()
    finished(daemon)
    async with on_card(daemon) as (app, pilot):
        daemon.say(JOB, "state", state="running", error=None)
        await sees(app, "being examined")
        await pilot.press("c", "y")
        await until(lambda: daemon.cancelled == [JOB])
        await sees(app, "cancelled")


async def test_the_card_has_ranks_damage_bits_channels_and_the_life_of_the_channel() -> None:
    daemon = FakeDaemon()
    finished(daemon)
    async with on_card(daemon, (160, 48)) as (app, pilot):
        daemon.say(JOB, "state", state="running", error=None)
        daemon.say(JOB, **to_dict(CardMade(card())))
        daemon.end(JOB)
        await sees(app, "rank among all weights", "grad_x_weight", "10,880", "only weights of down")
        await pilot.press("2")
        await sees(app, "the weight changed", "x 0.5", "+1.879", "factor that weights are multiplied by")
        await pilot.press("3")
        await sees(app, "one stored bit flipped", "× collapsed", "bit across")
        await pilot.press("4")
        await sees(app, "what its channels carry", "mean probability of tokens", "' the'")
        await pilot.press("5")
        await sees(app, "born", "cancelled", "written by the block")


async def test_an_examination_goes_on_when_the_card_is_left_and_is_found_again() -> None:
    daemon = FakeDaemon()
    finished(daemon)
    async with on_card(daemon) as (app, pilot):
        daemon.say(JOB, "state", state="running", error=None)
        await sees(app, "being examined")
        await pilot.press("escape", "e")
        await until(lambda: isinstance(app.screen, WeightCardScreen))
        await sees(app, "being examined")
    assert daemon.cancelled == [] and len(daemon.examined) == 1


async def test_an_examination_that_failed_says_why_and_is_asked_for_again() -> None:
    daemon = FakeDaemon()
    finished(daemon)
    async with on_card(daemon) as (app, pilot):
        daemon.end(JOB, "failed", RunFailed("the loss of the intact model is not finite", hint="try float32"))
        await sees(app, "could not be examined: the loss of the intact model is not finite", "try float32")
        await pilot.press("escape")
        await until(lambda: isinstance(app.screen, WeightScreen))
        await pilot.press("e")
        await until(lambda: len(daemon.examined) == 2)


async def test_a_card_is_exported_as_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    daemon = FakeDaemon()
    finished(daemon)
    async with on_card(daemon) as (app, pilot):
        daemon.say(JOB, "state", state="running", error=None)
        daemon.say(JOB, **to_dict(CardMade(card())))
        await sees(app, "rank among all weights")
        await pilot.press("x")
        await sees(app, "the card is in")
    (file,) = tmp_path.glob("k7q2-*.json")
    assert '"metric": "grad_x_weight"' in file.read_text()
