"""The dashboard, driven by keys at 80x24 and 160x48 against a daemon made of lists."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from textual.pilot import Pilot

from cwa_daemon.protocol import DeviceMemory, Headline, JobQuery, Sample
from cwa_engine.base.errors import DaemonUnreachable, RunFailed
from cwa_engine.spec import RunSpec
from cwa_tui.app import CwtoolApp
from cwa_tui.screens.home import HomeScreen, with_places
from cwa_tui.screens.run import RunScreen
from cwa_tui.store.preferences import PreferenceFile
from cwa_tui.widgets.jobs_table import JobsTable
from cwa_tui.widgets.models_table import ModelsTable
from tests.tui.fake_client import (
    BASELINE,
    NOW,
    QUICK,
    FakeDaemon,
    app_on,
    point,
    screen_lines,
    until,
    warm,
    whole_run,
)

RUN = "20261123-190315-smollm2-135m-ecyg"
OTHER = "20261123-190000-gpt2-k7q2"
SMALL, LARGE = (80, 24), (160, 48)


class Terminal:
    """What a user sees and does."""

    def __init__(self, pilot: Pilot[None]) -> None:
        self.pilot = pilot

    async def press(self, *keys: str) -> None:
        await self.pilot.press(*keys)

    async def sees(self, *texts: str) -> None:
        """Wait until all of these are on screen."""
        try:
            await until(lambda: all(text in self.text for text in texts))
        except TimeoutError:
            missing = [text for text in texts if text not in self.text]
            raise AssertionError(f"{missing} is not on screen:\n{self.text}") from None

    async def sees_no(self, text: str) -> None:
        await until(lambda: text not in self.text)

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    @property
    def lines(self) -> list[str]:
        return screen_lines(cast("CwtoolApp", self.pilot.app))

    def line(self, text: str) -> str:
        """The first line with a text in it."""
        return next(line for line in self.lines if text in line)

    @property
    def screen(self) -> Any:
        return self.pilot.app.screen

    @property
    def table(self) -> JobsTable:
        return self.screen.query_one(JobsTable)


@asynccontextmanager
async def open_on(
    daemon: FakeDaemon, size: tuple[int, int] = SMALL, app: CwtoolApp | None = None
) -> AsyncIterator[Terminal]:
    async with (app or app_on(daemon)).run_test(size=size, notifications=True) as pilot:
        await until(lambda: isinstance(pilot.app.screen, HomeScreen) and pilot.app.screen.query("#jobs"))
        yield Terminal(pilot)


@pytest.fixture
def daemon() -> FakeDaemon:
    return FakeDaemon()


def change(daemon: FakeDaemon, run_id: str, **fields: Any) -> None:
    """Let a job's view say something else."""
    daemon.jobs[run_id] = daemon.jobs[run_id].model_copy(update=fields)
    daemon.wake()


def finished(daemon: FakeDaemon, run_id: str, ratio: float = 6.5477, **fields: Any) -> str:
    whole_run(daemon, run_id)
    headline = Headline(
        metric="grad_x_weight",
        k=10,
        perturbation="zero",
        ratio=ratio,
        control_ratio=1.0001,
        outcome="harmful",
        sentence="The critical set is more harmful than its controls.",
    )
    change(daemon, run_id, headline=headline, worked_s=42.0, **fields)
    return run_id


def many(daemon: FakeDaemon, count: int) -> None:
    """So many finished runs, r0000 the oldest."""
    spec = RunSpec(model="gpt2", topk=(10,))
    for place in range(count):
        run_id = daemon.add(f"20261123-120000-gpt2-r{place:04d}", spec)
        daemon.end(run_id)


# nothing yet


async def test_without_jobs_it_says_what_to_do(daemon: FakeDaemon) -> None:
    async with open_on(daemon) as terminal:
        await terminal.sees("press n to start one", "nothing runs and nothing waits", "no model is warm", "0 running")


# devices


async def test_devices_show_their_history_ours_and_others_apart(daemon: FakeDaemon) -> None:
    def gpu(age: float) -> Sample:
        cpu = DeviceMemory(device="cpu", total_bytes=25 * 10**9, used_bytes=10**10, utilisation=0.5)
        cuda = DeviceMemory(
            device="cuda:0",
            total_bytes=80 * 10**9,
            used_bytes=40 * 10**9,
            others_bytes=10 * 10**9,
            utilisation=0.9,
            temperature_c=61,
        )
        return Sample(time=NOW - age, devices=[cpu, cuda], processes_bytes=1)

    daemon.samples = [gpu(age) for age in range(60, -1, -1)]
    async with open_on(daemon) as terminal:
        await terminal.sees(
            "cuda:0 40.0 of 80.0 GB ⣿ ours 30.0 ⢕ others 10.0", "utilisation 90%", "61 °C", "-1m", "now"
        )
        assert "util 50%" in terminal.line("cpu 10.0 of 25.0 GB")


# what runs and what waits


async def test_the_running_job_shows_stage_time_and_what_it_measured_so_far(daemon: FakeDaemon) -> None:
    daemon.run(RUN)
    change(daemon, RUN, running_since=NOW - 42)
    async with open_on(daemon) as terminal:
        await terminal.sees("▶ ecyg smollm2-135m", "0:42", "starting")
        daemon.progress(RUN, "score", 3, 8)
        await terminal.sees("score 3/8 ███")
        daemon.say(RUN, "baseline", baseline=BASELINE)
        daemon.say(RUN, "damage", point=point(10))
        await terminal.sees("perplexity 17.86, x6.55 by zero k10")
        assert "▶ score 3/8" in terminal.line("   ecyg"), "the list says the same"


async def test_the_queue_says_what_each_job_waits_for_and_how_many_more_there_are(daemon: FakeDaemon) -> None:
    daemon.run(RUN)
    for place in range(5):
        run_id = daemon.add(f"20261123-190400-gpt2-q00{place}", RunSpec(model="gpt2"))
        change(daemon, run_id, waits_for="ecyg runs on cpu (score 3/8)")
    async with open_on(daemon, LARGE) as terminal:
        await terminal.sees("○ q000 gpt2", "waits: ecyg runs on cpu (score 3/8)", "1 running", "5 queued")
    async with open_on(daemon) as terminal:
        await terminal.sees("○ q000 gpt2", "and 3 more")


async def test_loads_and_plans_are_no_runs(daemon: FakeDaemon) -> None:
    daemon.add("20261123-190600-gpt2-plan", RunSpec(model="gpt2"), "plan")
    finished(daemon, RUN)
    async with open_on(daemon) as terminal:
        await terminal.sees("○ plan plan gpt2", "runs 1-1 of 1")
        await terminal.press("t")
        await terminal.sees("loads and plans 1-1 of 1", "only plans")
        await terminal.press("t")
        await terminal.sees("runs 1-1 of 1")


# the list


async def test_a_finished_run_shows_its_ratio_beside_that_of_controls(daemon: FakeDaemon) -> None:
    finished(daemon, RUN)
    async with open_on(daemon) as terminal:
        await terminal.sees("✓ done x6.55 vs x1.0001", "The critical set is more harmful than its controls.")
    async with open_on(daemon, LARGE) as terminal:
        await terminal.sees("✓ done", "x6.55 vs x1.0001", "0:42")


async def test_a_failed_run_says_why_and_what_to_do(daemon: FakeDaemon) -> None:
    daemon.end(daemon.run(RUN), "failed", RunFailed("out of memory in block 3", hint="try --dtype bfloat16"))
    async with open_on(daemon) as terminal:
        await terminal.sees("✗ failed: out of", "out of memory in block 3 (try --dtype bfloat16)")


async def test_all_of_250_jobs_can_be_reached_and_are_counted(daemon: FakeDaemon) -> None:
    many(daemon, 250)
    async with open_on(daemon) as terminal:
        await terminal.sees("of 250", "r0249")
        await terminal.press("G")
        await terminal.sees("r0000", "-250 of 250")
        assert terminal.screen.run_in_view == "20261123-120000-gpt2-r0000"
        await terminal.press("k", "k")
        await until(lambda: terminal.screen.run_in_view == "20261123-120000-gpt2-r0002")
        await terminal.press("g")
        await terminal.sees("r0249", "runs 1-")
        await terminal.press(":", *"120", "enter")
        await terminal.sees("r0130")
        await until(lambda: terminal.screen.run_in_view == "20261123-120000-gpt2-r0130")
        await terminal.press(":", *"r0003", "enter")
        await terminal.sees("r0003", "runs 1-1 of 1")


async def test_a_filter_is_the_daemons_and_escape_clears_it(daemon: FakeDaemon) -> None:
    many(daemon, 150)
    finished(daemon, RUN)
    async with open_on(daemon) as terminal:
        await terminal.press("slash", *"r0007")
        await terminal.sees("/r0007", "runs 1-1 of 1")
        await terminal.press("enter", "escape")
        await terminal.sees("of 151")


async def test_the_list_is_sorted_by_the_daemon_and_says_by_what_it_can(daemon: FakeDaemon) -> None:
    finished(daemon, OTHER, model="alpha")
    finished(daemon, RUN, model="omega")
    async with open_on(daemon) as terminal:
        await terminal.sees("omega", "alpha")
        await terminal.press("l", "l", "s")
        await until(lambda: terminal.screen.store.query.sort == "model" and not terminal.screen.store.query.descending)
        await until(lambda: [job.model for job in terminal.screen.store.job_list.jobs] == ["alpha", "omega"])
        await terminal.press("s")
        await until(lambda: [job.model for job in terminal.screen.store.job_list.jobs] == ["omega", "alpha"])
        await terminal.press("l", "s")
        await until(lambda: "the list is sorted by" in str([n.message for n in terminal.pilot.app._notifications]))


async def test_the_cursor_stays_on_its_run_when_new_ones_come(daemon: FakeDaemon) -> None:
    many(daemon, 5)
    async with open_on(daemon) as terminal:
        await terminal.sees("r0004")
        await terminal.press("j")
        await until(lambda: terminal.screen.run_in_view == "20261123-120000-gpt2-r0003")
        finished(daemon, RUN)
        await terminal.sees("ecyg")
        assert terminal.table.cursor_job == terminal.screen.run_in_view == "20261123-120000-gpt2-r0003"


async def test_enter_opens_a_run(daemon: FakeDaemon) -> None:
    finished(daemon, RUN)
    async with open_on(daemon) as terminal:
        await terminal.sees("ecyg")
        await terminal.press("enter")
        await until(lambda: isinstance(terminal.screen, RunScreen))


async def test_a_large_screen_shows_the_selected_run_beside_the_list(daemon: FakeDaemon) -> None:
    finished(daemon, RUN)
    async with open_on(daemon, LARGE) as terminal:
        await terminal.sees(
            "The critical set is more harmful than its",
            "top weights by grad_x_weight",
            "perplexity, times the intact model's",
            "$ cwtool run --model smollm2-135m",
        )


# warm models


async def test_warm_models_say_how_long_they_stay_and_who_uses_them(daemon: FakeDaemon) -> None:
    daemon.models = [
        warm("gpt2").model_copy(update={"expires": NOW + 125}),
        warm("pinned-one").model_copy(update={"pinned": True}),
    ]
    async with open_on(daemon, LARGE) as terminal:
        await terminal.sees("2:05", "pinned", "538.1 MB", "free 15.00")
        assert "cpu ▏" in terminal.text, "a bar shares the memory out"


async def test_a_model_is_unloaded_after_a_question(daemon: FakeDaemon) -> None:
    daemon.models = [warm("gpt2"), warm("opt")]
    async with open_on(daemon) as terminal:
        await terminal.sees("opt")
        await terminal.press("2", "j", "u")
        await terminal.sees("unload this model?", "opt · float32")
        await terminal.press("y")
        await until(lambda: daemon.unloaded == ["opt"])
        await until(lambda: len(terminal.screen.query_one(ModelsTable).source) == 1)


# the daemon is gone


async def test_when_the_daemon_is_gone_nothing_ticks_and_D_starts_it(daemon: FakeDaemon, tmp_path: Path) -> None:
    now = [NOW]
    app = CwtoolApp(daemon.connect, lambda: now[0], QUICK, PreferenceFile(tmp_path / "tui.json"))
    daemon.run(RUN)
    change(daemon, RUN, running_since=NOW - 42)
    async with open_on(daemon, app=app) as terminal:
        await terminal.sees("0:42")
        now[0] += 3
        await terminal.sees("0:45")
        await until(lambda: app.session.store.answered_at == now[0])
        daemon.lose()
        await terminal.sees("starts the daemon")
        now[0] += 100
        drawn = app.session.store.version
        await until(lambda: app.session.store.version > drawn + 3)
        assert "0:45" in terminal.text, "its clock stands still"
        await terminal.sees("D  starts the daemon", "last answer", "as of")
        assert terminal.screen.has_class("-lost")
        await terminal.press("D")
        await until(lambda: daemon.started == 1)
        await terminal.sees_no("starts the daemon")
        assert not terminal.screen.has_class("-lost")


async def test_it_connects_again_by_itself_when_somebody_else_starts_the_daemon(daemon: FakeDaemon) -> None:
    async with open_on(daemon) as terminal:
        await terminal.sees("0 running")
        daemon.lose()
        await terminal.sees("starts the daemon")
        daemon.reachable = True
        await terminal.sees_no("starts the daemon")
        assert daemon.started == 0


async def test_a_daemon_that_hangs_is_not_offered_to_be_started(daemon: FakeDaemon) -> None:
    def hang() -> None:
        raise DaemonUnreachable("it does not answer", hint="`cwtool daemon restart` helps")

    async with open_on(daemon) as terminal:
        await terminal.sees("0 running")
        daemon.check = hang  # type: ignore[method-assign]
        await terminal.sees("it does not answer", "cwtool daemon restart")
        assert "starts the daemon" not in terminal.text


# which part of the list is asked for


def test_the_part_of_the_list_that_is_asked_for_has_what_is_in_sight() -> None:
    here = JobQuery(limit=100, offset=0)
    assert with_places(here, 10, 90, 5000) == here
    moved = with_places(here, 90, 110, 5000)
    assert moved.offset <= 90 and moved.offset + moved.limit >= 110 and moved.offset == 50
    assert with_places(moved, 60, 80, 5000) == moved
    end = with_places(here, 4990, 5010, 5000)
    assert end.offset + end.limit >= 5000
