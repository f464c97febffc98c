"""Comparing runs on screen: what the panes show, their keys, and what is said of runs that cannot be compared."""

from __future__ import annotations

import csv
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot

import cwa_engine as cwa
from cwa_engine.records.run_report import RunReport
from cwa_tui.app import CwtoolApp
from cwa_tui.screens.compare import PANES, CompareScreen
from tests.engine.conftest import TEXTS, wrap
from tests.models import tiny_model
from tests.tui.fake_client import FakeDaemon, app_on, screen_text, until

SIZES = ((80, 24), (160, 48))


@pytest.fixture(scope="module")
def reports() -> dict[str, RunReport]:
    """Two runs of a model on other texts, and one of another model on the first's."""
    llama = wrap(tiny_model("llama"))
    asked: dict[str, Any] = {"metrics": ["grad_x_weight"], "topk": [2, 10], "control_seeds": 2}
    others = [f"{text} And so on, until the end." for text in TEXTS]
    return {
        "first": cwa.analyze(llama, texts=TEXTS, **asked),
        "other texts": cwa.analyze(llama, texts=others, **asked),
        "other model": cwa.analyze(wrap(tiny_model("gpt2")), texts=TEXTS, **asked),
    }


def daemon_with(*reports: RunReport) -> FakeDaemon:
    daemon = FakeDaemon()
    for report in reports:
        daemon.end(daemon.run(report.run_id, report.spec))
        daemon.reports[report.run_id] = report
        for name in report.hashes:
            daemon.files[report.run_id, name] = report.files.read(name)
    return daemon


@asynccontextmanager
async def comparing(
    *reports: RunReport, size: tuple[int, int] = (80, 24), ascii: bool = False
) -> AsyncIterator[tuple[CwtoolApp, Pilot[None]]]:
    """The app with these runs compared."""
    app = app_on(daemon_with(*reports), ascii=ascii)
    async with app.run_test(size=size, notifications=True) as pilot:
        await until(lambda: len(app.session.store.job_list.jobs) == len(reports))
        app.open_comparison([report.run_id for report in reports])
        await until(lambda: isinstance(app.screen, CompareScreen) and "reading" not in screen_text(app))
        await until(lambda: "differ" in screen_text(app))
        yield app, pilot


def are_shown(app: CwtoolApp, words: tuple[str, ...]) -> bool:
    return all(word in screen_text(app) for word in words)


def label(report: RunReport) -> str:
    return report.run_id.rpartition("-")[2]


@pytest.mark.parametrize("size", SIZES)
async def test_the_answer_comes_first_in_words(reports: dict[str, RunReport], size: tuple[int, int]) -> None:
    first, other = reports["first"], reports["other texts"]
    async with comparing(first, other, size=size) as (app, _):
        await until(lambda: "random sets" in screen_text(app))
        said = " ".join(screen_text(app).split())
        assert f"● {label(first)} tiny ■ {label(other)} tiny" in said
        assert "the runs differ in scored texts and measured texts" in said
        assert "damage was not measured alike" in said


async def test_each_pane_has_its_key_and_shows_what_it_is_named_after(reports: dict[str, RunReport]) -> None:
    first, other = reports["first"], reports["other texts"]
    shown = {
        "2": ("shared", "chance", "of 10", f"{label(first)} {label(other)}"),
        "3": ("in both:", f"across: place in {label(first)}", "the line: equal places"),
        "4": ("critical", "random", "95 %", "NOT MEASURED ALIKE", "k 10"),
        "5": ("norm", "outside the blocks", "of all", "█"),
        "1": ("differ",),
    }
    async with comparing(first, other) as (app, pilot):
        for key, words in shown.items():
            await pilot.press(key)
            await until(partial(are_shown, app, words))
            assert f"[{key} {PANES[list(PANES)[int(key) - 1]]}]" in screen_text(app)


async def test_another_ranking_and_another_pair_are_a_key_away(reports: dict[str, RunReport]) -> None:
    first, other, model = reports.values()
    async with comparing(first, other, model) as (app, pilot):
        assert "· grad_x_weight ·" in screen_text(app)
        await pilot.press("m")
        await until(lambda: "· grad_x_weight, matrices alone ·" in screen_text(app))
        await pilot.press("3")
        await until(lambda: f"place in {label(first)} · up: place in {label(other)}" in screen_text(app))
        await pilot.press("o")
        await until(lambda: "the models differ in size" in " ".join(screen_text(app).split()))


async def test_f_subtracts_damage_that_was_not_measured_alike_and_says_why_not(reports: dict[str, RunReport]) -> None:
    async with comparing(reports["first"], reports["other texts"], size=(160, 48)) as (app, pilot):
        await until(lambda: "no difference is given" in " ".join(screen_text(app).split()))
        await pilot.press("1", "f")
        await until(lambda: "no difference is given" not in " ".join(screen_text(app).split()))
        await pilot.press("end")
        await until(lambda: "forced, although" in screen_text(app) or "as of unrelated" in screen_text(app))
        await pilot.press("f", "home")
        await until(lambda: "no difference is given" in " ".join(screen_text(app).split()))


async def test_models_of_other_sizes_are_compared_but_not_weight_by_weight(reports: dict[str, RunReport]) -> None:
    async with comparing(reports["first"], reports["other model"], size=(160, 48)) as (app, _):
        await until(lambda: "cannot be compared: the models differ in size" in " ".join(screen_text(app).split()))
        await until(partial(are_shown, app, ("norm", "critical", "hollow: of each control")))
        assert "NOT MEASURED ALIKE" not in screen_text(app)


async def test_what_is_seen_is_exported_with_exact_numbers(
    reports: dict[str, RunReport], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    async with comparing(reports["first"], reports["other texts"], size=(160, 48)) as (app, pilot):
        await pilot.press("4")
        await until(lambda: app.focused is not None and app.focused.id == "curve-table")
        await pilot.press("x")
        await until(lambda: "export what is seen" in screen_text(app))
        await pilot.press("enter")
        await until(lambda: list(tmp_path.glob("*.csv")))
        (path,) = tmp_path.glob("*.csv")
        rows = list(csv.DictReader(path.open()))
    critical = next(row for row in rows if (row["k"], row["selection"]) == ("2", "critical"))
    for report in (reports["first"], reports["other texts"]):
        point = next(
            p for p in report.damage if (p.metric, p.k, p.selection) == ("grad_x_weight", 2, "critical")
        )  # fmt: skip
        assert float(critical[report.run_id]) == point.delta_nll


async def test_runs_are_told_apart_without_colour_and_in_ascii(reports: dict[str, RunReport]) -> None:
    async with comparing(reports["first"], reports["other texts"], ascii=True) as (app, pilot):
        await pilot.press("4")
        await until(lambda: "NOT MEASURED ALIKE" in screen_text(app))
        assert screen_text(app).isascii()


async def test_a_run_without_a_result_is_named_with_the_reason(reports: dict[str, RunReport]) -> None:
    daemon = daemon_with(reports["first"])
    daemon.run("20260101-000000-gpt2-zzzz")
    app = app_on(daemon)
    async with app.run_test(size=(80, 24), notifications=True):
        await until(lambda: len(app.session.store.job_list.jobs) == 2 or app.session.store.active.jobs)
        app.open_comparison([reports["first"].run_id, "20260101-000000-gpt2-zzzz"])
        await until(lambda: "cannot be compared" in screen_text(app))
        assert "20260101-000000-gpt2-zzzz has no result" in " ".join(screen_text(app).split())


async def test_escape_goes_back(reports: dict[str, RunReport]) -> None:
    async with comparing(reports["first"], reports["other texts"]) as (app, pilot):
        await pilot.press("escape")
        await until(lambda: not isinstance(app.screen, CompareScreen))
