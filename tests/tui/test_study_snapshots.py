"""Pictures of a study half-way and of the form for a new one. `pytest --snapshot-update` takes them anew; look at each."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from textual.pilot import Pilot

from cwa_engine.base.errors import RunFailed
from cwa_engine.studies import registry
from cwa_engine.studies.folder import STUDY, StudyFolder
from cwa_engine.studies.identity import identity_of
from cwa_engine.studies.study import cells_of
from cwa_tui.app import CwtoolApp
from cwa_tui.screens.study import StudyScreen
from tests.tui.a_study import QUESTION, ends, study
from tests.tui.fake_client import NOW, FakeDaemon, screen_text, until
from tests.tui.finished_run import finished
from tests.tui.looks import LOOKS, app_in_look

ID = "20261123-190000-four-sizes-w2m7"


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeDaemon:
    """With a study that was asked for seven minutes ago under a name that is always the same."""
    finished(FakeDaemon())
    identity_of(cells_of(study())[0].spec)  # the hash of the code is kept
    monkeypatch.setitem(registry.STUDY_QUESTIONS, "sizes", QUESTION)
    monkeypatch.setenv("CWTOOL_HOME", str(tmp_path))
    made = StudyFolder.create(study())
    path = made.path.rename(made.path.parent / ID) / STUDY
    path.write_text(json.dumps(json.loads(path.read_text()) | {"created": NOW - 420}))
    return FakeDaemon()


@pytest.fixture(params=LOOKS, ids="-".join)
def app(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, daemon: FakeDaemon) -> CwtoolApp:
    return app_in_look(request.param[1], daemon, monkeypatch)


def test_a_study_half_way(
    snap_compare: Callable[..., bool], app: CwtoolApp, size: tuple[int, int], daemon: FakeDaemon
) -> None:
    async def opened(pilot: Pilot[None]) -> None:
        await until(lambda: "connecting" not in screen_text(app))
        app.open_study(ID)
        await until(lambda: isinstance(app.screen, StudyScreen) and "4 waiting" in screen_text(app))
        await app.session.resume_study(ID)
        await until(lambda: len(daemon.submitted) == 4 and "4 queued" in screen_text(app))
        runs = list(daemon.jobs)
        app.session.started.update(runs[:2])  # else one end is told, of the run that the dashboard had listed first
        ends(daemon, runs[0])
        await until(lambda: "done: new1" in screen_text(app))
        daemon.end(runs[1], "failed", RunFailed("the loss of the intact model is not finite", hint="try float32"))
        await until(lambda: "failed: new2" in screen_text(app))
        daemon.say(runs[2], "state", state="running", error=None)
        daemon.progress(runs[2], "score", 3, 12)
        await until(lambda: "1 running, 1 queued" in screen_text(app) and "score 3/12" in screen_text(app))
        await until(lambda: "so far, of 1 run" in screen_text(app) and "x8.62" in screen_text(app))
        await pilot.pause()

    assert snap_compare(app, terminal_size=size, run_before=opened)
