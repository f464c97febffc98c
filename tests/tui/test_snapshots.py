"""Two pictures: a run being measured, at 80x24 and at 160x48. `pytest --snapshot-update` takes them anew."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
from cwa_tui.screens.main import MainScreen
from textual.pilot import Pilot

from cwa_tui.widgets.damage_table import DamageTable
from cwa_tui.widgets.jobs_table import JobsTable
from cwa_tui.widgets.topk_table import TopkTable
from tests.tui.fake_client import BASELINE, FakeDaemon, app_on, point, until, warm, weights, whole_run


@pytest.fixture(autouse=True)
def greenwich(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The log shows the time of day."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def half_measured() -> FakeDaemon:
    daemon = FakeDaemon()
    daemon.models = [warm()]
    whole_run(daemon, "20261123-180000-gpt2-k7q2")
    run_id = daemon.run("20261123-190315-smollm2-135m-ecyg")
    daemon.say(run_id, "baseline", baseline=BASELINE)
    daemon.say(run_id, "topk", metric="grad_x_weight", partial=False, weights=weights(10))
    daemon.say(run_id, "damage", point=point(1))
    daemon.progress(run_id, "perturb", 3, 28)
    daemon.add("20261123-190400-gpt2-medium-x2m3")
    return daemon


@pytest.mark.parametrize("size", [(80, 24), (160, 48)], ids=["80x24", "160x48"])
def test_a_run_being_measured(snap_compare: Callable[..., bool], size: tuple[int, int]) -> None:
    async def select(pilot: Pilot[None]) -> None:
        await until(lambda: isinstance(pilot.app.screen, MainScreen) and pilot.app.screen.query("#jobs"))
        screen = pilot.app.screen
        await until(lambda: screen.query_one(JobsTable).row_count == 3)
        await pilot.press("down")
        await until(lambda: screen.query_one(TopkTable).row_count == 10)
        if size[0] == 160:
            await until(lambda: screen.query_one(DamageTable).row_count == 1)
        await pilot.pause()

    assert snap_compare(app_on(half_measured()), terminal_size=size, run_before=select)
