"""A run in this process and one by the daemon say the same, find the same and end in the same ways."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from cwa_daemon.client import DaemonRunner
from cwa_engine import Cancelled, LocalRunner, ModelNotFound, NotFound, Runner, RunReport, RunSpec, open_run
from cwa_engine.base.events import Event, Progress
from tests.conftest import CommandLine
from tests.engine.conftest import TEXTS
from tests.models import save_tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("gpt2", tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def spec(model: Path, tmp_path: Path) -> Callable[..., RunSpec]:
    texts = tmp_path / "texts.txt"
    texts.write_text("\n\n".join(TEXTS) + "\n")

    def made(**options: Any) -> RunSpec:
        asked = {"topk": (3,), "control_seeds": 2, "controls": ("random",), "data_file": texts, "individually": True}
        return RunSpec(**{"model": str(model), **asked, **options})

    return made


@pytest.fixture
def runners(cwtool: CommandLine, tmp_path: Path) -> Iterator[dict[str, Runner]]:
    with ExitStack() as stack:
        local = stack.enter_context(LocalRunner(tmp_path / "runs"))
        yield {"here": local, "daemon": DaemonRunner(stack.enter_context(cwtool.client()))}


KINDS = pytest.mark.parametrize("kind", ["here", "daemon"])


def told(event: Event) -> tuple[object, ...]:
    """An event by what does not depend on time and free memory: its kind, and what it is about."""
    about = getattr(event, "point", None) or getattr(event, "verdict", None) or event
    names = ("stage", "metric", "k", "perturbation", "selection", "seed", "partial", "outcome")
    text = re.sub(r"[0-9.]+", "N", getattr(event, "text", ""))
    return (event.kind, text, *(getattr(about, name, None) for name in names))


def from_the_first_stage(events: list[Event]) -> list[tuple[object, ...]]:
    """Without progress, which is as fine as time allows, and what a daemon says of its worker before."""
    lasting = [told(event) for event in events if not isinstance(event, Progress)]
    return list(itertools.dropwhile(lambda event: event[0] != "stage_started", lasting))


def test_both_say_the_same_and_give_the_same_report(runners: dict[str, Runner], spec: Callable[..., RunSpec]) -> None:
    said: dict[str, list[Event]] = {}
    reports: dict[str, RunReport] = {}
    for kind, runner in runners.items():
        handle = runner.submit(spec())
        said[kind] = list(handle.events())
        reports[kind] = handle.report()
        assert reports[kind].run_id == handle.run_id
        assert {event.stage for event in said[kind] if isinstance(event, Progress)} >= {"baseline", "score", "perturb"}
        assert list(map(told, handle.events())) == list(map(told, said[kind]))  # again, from the beginning
    here, daemon = (from_the_first_stage(said[kind]) for kind in runners)
    assert here == daemon
    assert {kind for kind, *_ in here} >= {"stage_started", "baseline", "topk", "damage", "verdict"}
    one, other = reports["here"], reports["daemon"]
    assert (one.spec, one.texts, one.versions) == (other.spec, other.texts, other.versions)
    assert (one.model, one.hashes.keys()) == (other.model, other.hashes.keys())
    assert [weight.target for weight in one.topk()] == [weight.target for weight in other.topk()]
    assert [p.delta_nll for p in one.damage] == pytest.approx([p.delta_nll for p in other.damage], abs=1e-6)
    assert one.summary.timings.keys() == other.summary.timings.keys()


def test_a_run_here_leaves_its_folder(runners: dict[str, Runner], spec: Callable[..., RunSpec], tmp_path: Path) -> None:
    handle = runners["here"].submit(spec())
    assert handle.report() == open_run(tmp_path / "runs" / handle.run_id)


@KINDS
def test_a_cancelled_run_ends_and_says_so(runners: dict[str, Runner], spec: Callable[..., RunSpec], kind: str) -> None:
    handle = runners[kind].submit(spec(control_seeds=2000))
    next(event for event in handle.events() if event.kind == "damage")
    handle.cancel()
    assert len(list(handle.events())) < 2000  # they end
    with pytest.raises(Cancelled):
        handle.report()
    assert runners[kind].submit(spec()).report().verdicts  # and the next one runs


@KINDS
def test_the_error_of_a_run_is_raised_by_its_report(
    runners: dict[str, Runner], spec: Callable[..., RunSpec], kind: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelNotFound, match="nothing"):
        runners[kind].submit(spec(model=str(tmp_path / "nothing"))).report()


@KINDS
def test_a_key_never_runs_twice(runners: dict[str, Runner], spec: Callable[..., RunSpec], kind: str) -> None:
    runner, key = runners[kind], f"key{kind}1234567"
    handle = runner.submit(spec(), key)
    assert runner.submit(spec(), key).run_id == handle.run_id
    assert handle.report().run_id == handle.run_id
    assert runner.submit(spec(), key).run_id == handle.run_id
    assert runner.submit(spec(), f"{key}2").run_id != handle.run_id


@KINDS
def test_a_run_is_found_by_its_id_with_its_state(
    runners: dict[str, Runner], spec: Callable[..., RunSpec], kind: str, tmp_path: Path
) -> None:
    runner = runners[kind]
    done, lost = runner.submit(spec()), runner.submit(spec(model=str(tmp_path / "nothing")))
    found = runner.attach(done.run_id)
    assert found.report() == done.report()
    with pytest.raises(ModelNotFound):
        lost.report()
    told = runner.states([done.run_id, "20200101-000000-never-abcd", lost.run_id])
    assert {run_id: state.name for run_id, state in told.items()} == {done.run_id: "done", lost.run_id: "failed"}
    assert isinstance(told[lost.run_id].error, ModelNotFound)
    assert (found.state().name, found.altered()) == ("done", ())
    folder = done.report().folder
    assert folder
    (folder / "log.txt").write_text("something else")
    assert found.altered() == ("log.txt",)
    with pytest.raises(NotFound):
        runner.attach("20200101-000000-never-abcd")


def test_the_states_of_many_runs_are_those_that_one_by_one_would_tell(
    runners: dict[str, Runner], spec: Callable[..., RunSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = runners["daemon"]
    done = [runner.submit(spec(seed=seed)) for seed in range(2)]
    for handle in done:
        handle.report()
    names = [handle.run_id for handle in done]
    one_by_one = runner.states(names)
    monkeypatch.setattr("cwa_daemon.client.runner.ASKED_ONE_BY_ONE", 0)
    assert runner.states(names) == one_by_one


def test_a_key_leads_to_the_folder_of_an_earlier_process(spec: Callable[..., RunSpec], tmp_path: Path) -> None:
    with LocalRunner(tmp_path / "runs") as earlier:
        first = earlier.submit(spec(), "12345678")
        first.report()
    with LocalRunner(tmp_path / "runs") as later:
        again = later.submit(spec(), "12345678")
        assert (again.run_id, again.report()) == (first.run_id, first.report())
        assert list(again.events()) == [] and again.state().name == "done"
