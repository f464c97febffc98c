"""Pictures of the dashboard and of a run being measured. `pytest --snapshot-update` takes them anew; look at each of them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from textual.pilot import Pilot

from cwa_daemon.protocol import DeviceMemory, Headline, Sample
from cwa_engine.base.errors import RunFailed
from cwa_tui.app import CwtoolApp
from cwa_tui.screens.run import RunScreen
from tests.tui.fake_client import (
    BASELINE,
    NOW,
    FakeDaemon,
    point,
    screen_text,
    until,
    warm,
    weights,
    whole_run,
)
from tests.tui.looks import LOOKS, app_in_look

RUN = "20261123-190315-smollm2-135m-ecyg"


@pytest.fixture(autouse=True)
def greenwich(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The log shows the time of day."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.fixture(params=LOOKS, ids="-".join)
def app(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> CwtoolApp:
    """The app at one size and in one look, with a run that is half measured and one in every other state."""
    return app_in_look(request.param[1], half_measured(), monkeypatch)


def half_measured() -> FakeDaemon:
    daemon = FakeDaemon()
    daemon.models = [warm()]
    daemon.samples = [sampled(age) for age in range(280, -1, -1)]
    done = whole_run(daemon, "20261123-180000-gpt2-k7q2")
    harm = "Zeroing 10 weights harms it."
    headline = Headline(
        metric="grad_x_weight", k=10, perturbation="zero", ratio=6.5477, control_ratio=1.0001, sentence=harm
    )
    daemon.jobs[done] = daemon.jobs[done].model_copy(update={"headline": headline, "worked_s": 42.0})
    for state in ("failed", "cancelled", "interrupted"):
        ended = daemon.run(f"20261123-1810{len(state):02}-gpt2-{state[:4]}")
        daemon.end(ended, state, RunFailed("the loss of the intact model is not finite") if state == "failed" else None)
    daemon.run(RUN)
    daemon.say(RUN, "baseline", baseline=BASELINE)
    daemon.say(RUN, "topk", metric="grad_x_weight", partial=False, weights=weights(10))
    daemon.say(RUN, "damage", point=point(1))
    daemon.progress(RUN, "perturb", 3, 28)
    daemon.add("20261123-190400-gpt2-medium-x2m3")
    return daemon


def sampled(age: float) -> Sample:
    """A device that works since two minutes, beside others."""
    works = age < 120
    gpu = DeviceMemory(
        device="cuda:0",
        total_bytes=80 * 10**9,
        used_bytes=(38 if works else 8) * 10**9,
        others_bytes=8 * 10**9,
        utilisation=0.6 + 0.3 * math.sin(age / 9) if works else 0.05,
        temperature_c=68 if works else 41,
    )
    cpu = DeviceMemory(device="cpu", total_bytes=25 * 10**9, used_bytes=10**10, others_bytes=8 * 10**9, utilisation=0.3)
    return Sample(time=NOW - age, devices=[cpu, gpu], processes_bytes=10**9)


def seen(app: CwtoolApp, *texts: str) -> Callable[[], bool]:
    return lambda: all(text in screen_text(app) for text in texts)


def test_the_dashboard(snap_compare: Callable[..., bool], app: CwtoolApp, size: tuple[int, int]) -> None:
    async def wait(pilot: Pilot[None]) -> None:
        await until(seen(app, "ecyg", "x2m3", "smollm2-135m", "done", "failed", "perturb", "-1m", "by zero k1"))
        await until(seen(app, "queued" if size[0] < 120 else "log"))
        await pilot.pause()

    assert snap_compare(app, terminal_size=size, run_before=wait)


def test_a_run_being_measured(snap_compare: Callable[..., bool], app: CwtoolApp, size: tuple[int, int]) -> None:
    async def opened(pilot: Pilot[None]) -> None:
        await until(seen(app, "ecyg"))
        app.open_run(RUN)
        await until(lambda: isinstance(app.screen, RunScreen))
        await until(seen(app, "2533,10]", "x6.55"))
        await pilot.pause()

    assert snap_compare(app, terminal_size=size, run_before=opened)


def test_the_form_with_a_mistake(
    snap_compare: Callable[..., bool],
    app: CwtoolApp,
    size: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    for name in ("HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))  # nothing is on disk
    app.preferences.change(draft={"model": "gpt2", "topk": "0", "probes": "4"})

    async def opened(pilot: Pilot[None]) -> None:
        await until(seen(app, "ecyg"))
        app.open_form(None)
        await until(seen(app, "will be downloaded", "too small", "--model"))
        await pilot.pause()

    assert snap_compare(app, terminal_size=size, run_before=opened)
