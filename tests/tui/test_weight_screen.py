"""The view of one weight, driven by keys: what the run found of it, and what its model holds around it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from textual.pilot import Pilot

from cwa_engine.base.errors import ModelBroken
from cwa_engine.command_line import command_of
from cwa_engine.spec import RunSpec
from cwa_tui.screens.weight import WeightScreen, alone_spec
from tests.tui.fake_client import FakeDaemon, app_on, sees, until, warm
from tests.tui.finished_run import RUN_ID, finished, looked_at, tiny

LARGE = (160, 48)


@asynccontextmanager
async def weight_open(
    daemon: FakeDaemon, place: int = 1, size: tuple[int, int] = LARGE
) -> AsyncIterator[tuple[Pilot[None], WeightScreen]]:
    async with app_on(daemon).run_test(size=size, notifications=True) as pilot:
        await until(lambda: RUN_ID in pilot.app.session.store._jobs)  # type: ignore[attr-defined]
        pilot.app.open_weight(RUN_ID, "grad_x_weight", place)  # type: ignore[attr-defined]
        await until(lambda: isinstance(pilot.app.screen, WeightScreen) and pilot.app.screen.query("#weight-lines"))
        screen = pilot.app.screen
        assert isinstance(screen, WeightScreen)
        await until(lambda: screen.weight is not None)
        yield pilot, screen


async def test_the_run_knows_where_a_weight_is_its_ranks_what_it_does_alone_and_its_command() -> None:
    daemon = FakeDaemon()
    report = finished(daemon)
    weight = report.topk()[0]
    alone = next(row for row in report.interactions if row.target == weight.target)
    async with weight_open(daemon) as (pilot, _):
        await sees(pilot.app, weight.target, f"decoder block {weight.layer}", f"component {weight.component}")
        await sees(pilot.app, f"1 of {len(report.topk())}", "grad_x_weight", "magnitude", "damaged alone")
        await sees(pilot.app, f"{alone.alone:+.4f}", "--individually", "--weights", f"'{weight.target}'")
        await sees(pilot.app, "the model is not warm: i loads it")
    assert daemon.inspected == []  # nobody asked to load anything


async def test_a_warm_model_is_looked_at_by_itself() -> None:
    daemon = FakeDaemon()
    daemon.models = [warm("tiny")]
    target = finished(daemon).topk()[0].target
    async with weight_open(daemon) as (pilot, screen):
        await until(lambda: daemon.inspected)
        assert daemon.inspected[0][1] == target
        await sees(pilot.app, "waits for its turn")
        look = next(run_id for run_id, job in daemon.jobs.items() if job.kind == "inspect")
        looked_at(daemon, look, target)
        name, index = target.rstrip("]").split("[")
        value = float(tiny().model.get_parameter(name).detach()[int(index)])
        await sees(pilot.app, f"value {value:.6g}", "by |value|", "heights are logarithms", "▲", "median", "largest")
        assert screen.facts is not None


async def test_i_loads_a_model_that_is_not_warm_and_a_failure_says_why() -> None:
    daemon = FakeDaemon()
    finished(daemon)
    async with weight_open(daemon) as (pilot, _):
        await pilot.press("i")
        await until(lambda: daemon.inspected)
        look = next(run_id for run_id, job in daemon.jobs.items() if job.kind == "inspect")
        daemon.end(look, "failed", ModelBroken("the files are gone", hint="download them again"))
        await sees(pilot.app, "the model cannot be looked at: the files are gone", "download them again")


async def test_a_value_that_is_not_what_the_run_found_is_pointed_out() -> None:
    daemon = FakeDaemon()
    daemon.models = [warm("tiny")]
    report = finished(daemon)
    other = report.topk()[1].target
    async with weight_open(daemon) as (pilot, _):
        await until(lambda: daemon.inspected)
        look = next(run_id for run_id, job in daemon.jobs.items() if job.kind == "inspect")
        looked_at(daemon, look, other)
        await sees(pilot.app, "the model's files have changed since")


async def test_a_look_that_nobody_waits_for_is_cancelled() -> None:
    daemon = FakeDaemon()
    daemon.models = [warm("tiny")]
    finished(daemon)
    async with weight_open(daemon) as (pilot, screen):
        await until(lambda: screen._look)
        look = screen._look
        await pilot.press("escape")
        await until(lambda: daemon.cancelled == [look])


async def test_brackets_go_to_other_ranks_and_y_copies_the_command() -> None:
    daemon = FakeDaemon()
    report = finished(daemon)
    async with weight_open(daemon, size=(80, 24)) as (pilot, screen):
        copied: list[str] = []
        pilot.app.copy_text = copied.append  # type: ignore[attr-defined]
        await pilot.press("]")
        await sees(pilot.app, report.topk()[1].target)
        await pilot.press("[", "[")  # there is none before the first
        await sees(pilot.app, report.topk()[0].target)
        assert screen.place == 1
        await pilot.press("y", "Y")
        await until(lambda: len(copied) == 2)
        assert copied[0].startswith("cwtool run --model tiny")
        assert f"--weights '{report.topk()[0].target}'" in copied[0]
        assert copied[1] == report.topk()[0].target


def test_the_command_names_no_option_that_needs_a_ranking() -> None:
    spec = RunSpec(model="gpt2", metrics=("grad_x_weight",), controls=("random", "bottom"), stability="halves", seed=3)
    assert command_of(alone_spec(spec, "a.weight[1,2]")) == (
        "cwtool run --model gpt2 --topk 1 --weights 'a.weight[1,2]' --control random --seed 3"
    )
