"""Trackers are told of finished runs by the same calls, and one that fails loses nothing."""

from __future__ import annotations

import importlib.machinery
import json
import math
import os
import sqlite3
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from cwa_engine.base.errors import InvalidInput, TrackingFailed
from cwa_engine.records.run_report import RunReport
from cwa_engine.tracking.tracker import TRACKERS, Tracker, track, tracker_typed
from cwa_tui.cli.tracking import track_runs
from tests.engine.study_runs import Planted, planted_run

RUN = [Planted(k=1, delta=0.25), Planted(k=10, delta=0.5, worst=0.01), Planted(k=100, delta=math.inf)]


@pytest.fixture
def report() -> RunReport:
    return planted_run("/home/ann/models/tiny", damage=RUN, run_id="20260101-000000-tiny-abcd", kl=True)


class FakeLibrary(types.ModuleType):
    """Takes the calls of trackio and of wandb, and remembers them."""

    def __init__(self, name: str, failing: str = "") -> None:
        super().__init__(name)
        self.__spec__ = importlib.machinery.ModuleSpec(name, None)
        self.failing = failing
        self.calls: list[tuple[str, Any]] = []

    def _call(self, name: str, about: Any) -> None:
        print("a greeting")
        self.calls.append((name, about))
        if name == self.failing:
            raise ConnectionError("the server is away")

    def init(self, project: str, name: str, config: dict[str, Any]) -> None:
        self._call("init", (project, name, config))

    def log(self, figures: dict[str, Any], step: int | None = None) -> None:
        self._call("log", (step, figures))

    def finish(self) -> None:
        self._call("finish", None)


@pytest.mark.parametrize("library", TRACKERS)
def test_both_trackers_are_told_the_same(
    library: str, report: RunReport, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = FakeLibrary(library)
    monkeypatch.setitem(sys.modules, library, fake)
    track(report, Tracker(library, "project"), study="a-study")
    assert [name for name, _ in fake.calls] == ["init", "log", "log", "log", "log", "finish"]
    project, name, config = fake.calls[0][1]
    assert (project, name) == ("project", report.run_id)
    assert config["model"] == "tiny" and config["topk"] == [1, 10, 100] and config["seed"] == 0
    assert config["texts_sha256"] == report.texts.sha256 and config["study"] == "a-study" and "output" not in config
    assert "/home" not in json.dumps(config)
    steps = {step: figures for _, (step, figures) in fake.calls[1:4]}
    assert list(steps) == [1, 10, 100]
    assert steps[10]["grad_x_weight/zero/delta_nll"] == 0.5
    assert steps[10]["grad_x_weight/zero/worst_control_delta_nll"] == 0.01
    assert steps[10]["grad_x_weight/zero/perplexity_ratio"] == pytest.approx(math.exp(0.5))
    assert not any(
        isinstance(value, float) and not math.isfinite(value) for each in steps.values() for value in each.values()
    )
    step, numbers = fake.calls[4][1]
    assert step is None and numbers["baseline/perplexity"] == pytest.approx(math.exp(3))
    assert numbers["grad_x_weight/zero/k10/outcome"] == "harmful"
    assert capsys.readouterr().out == "", "what a library prints is no output of a command"


@pytest.mark.parametrize("call", ["init", "log", "finish"])
def test_a_tracker_that_fails_is_named(call: str, report: RunReport, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", FakeLibrary("wandb", failing=call))
    with pytest.raises(
        TrackingFailed, match=f"wandb was not told of {report.run_id}: ConnectionError: the server is away"
    ):
        track(report, Tracker("wandb"))


def test_a_command_goes_on_where_a_tracker_fails_and_says_which(
    report: RunReport, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = FakeLibrary("wandb", failing="init")
    monkeypatch.setitem(sys.modules, "wandb", fake)
    track_runs([report, report], Tracker("wandb"))
    said = capsys.readouterr()
    assert said.err.count(f"warning: wandb was not told of {report.run_id}") == 2 and "saved all the same" in said.err
    assert said.out == ""


def test_a_tracker_is_typed_with_its_project_or_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", FakeLibrary("wandb"))
    assert tracker_typed("wandb:my project") == Tracker("wandb", "my project")
    assert tracker_typed("wandb") == Tracker("wandb", "cwtool")
    assert tracker_typed("") is None and tracker_typed(None) is None
    for typed, why in (("wand", "is no tracker"), ("wandb:", "names no project"), (":x", "is no tracker")):
        with pytest.raises(InvalidInput, match=why):
            tracker_typed(typed)


def test_a_tracker_that_is_not_installed_is_refused_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InvalidInput, match="trackio is not installed") as raised:
        tracker_typed("trackio")
    assert "cwtool[track]" in raised.value.hint


def test_trackio_itself_keeps_what_it_was_told(report: RunReport, tmp_path: Path) -> None:
    pytest.importorskip("trackio", reason="trackio is not installed")
    report.save(tmp_path / "run")
    program = (
        "from cwa_engine.records.run_report import open_run\n"
        "from cwa_engine.tracking.tracker import Tracker, track\n"
        f"track(open_run({str(tmp_path / 'run')!r}), Tracker('trackio', 'project'))\n"
    )
    env = {**os.environ, "TRACKIO_DIR": str(tmp_path / "trackio"), "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    with sqlite3.connect(tmp_path / "trackio" / "project.db") as kept:
        logged = {step: json.loads(figures) for step, figures in kept.execute("SELECT step, metrics FROM metrics")}
        (config,) = (json.loads(config) for (config,) in kept.execute("SELECT config FROM configs"))
    kept.close()
    assert logged[10]["grad_x_weight/zero/delta_nll"] == 0.5
    assert any(figures.get("grad_x_weight/zero/k10/outcome") == "harmful" for figures in logged.values())
    assert config["run_id"] == report.run_id
