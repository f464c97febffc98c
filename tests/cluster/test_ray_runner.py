"""A study on Ray: what it finds is what the daemon finds, and what dies costs the run that was under way there."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from cwa_daemon.base.settings import Settings
from cwa_daemon.client import DaemonRunner
from cwa_daemon.cluster.runner import RayRunner
from cwa_engine import Cancelled, InvalidInput, NotFound, Runner, RunReport, RunSpec, open_run
from cwa_engine.base.errors import VersionMismatch, WorkerDied
from cwa_engine.base.events import Event, Note
from cwa_engine.hub.imported import ImportedModel, remember_import
from cwa_engine.studies.folder import StudyFolder
from cwa_engine.studies.progress import CellProgress, progress_of
from cwa_engine.studies.running import run_study
from cwa_engine.studies.study import Study
from tests.cluster.conftest import LONG
from tests.conftest import CommandLine

SOON_S = 150.0  # for what another process does, at the most
_DEPENDS = ("run_id", "started", "command", "timings", "peak_memory_bytes", "scores_from")


def grid(models: tuple[Path, Path], texts: Path, name: str, seeds: int = 3, **options: Any) -> Study:
    shared = {"topk": [3], "control_seeds": 2, "controls": ["random"], "data_file": str(texts), **options}
    return Study(name=name, run=shared, grid={"model": [str(m) for m in models], "seed": list(range(seeds))})


def ran(study: Study, runner: Runner, root: Path) -> tuple[CellProgress, ...]:
    return run_study(StudyFolder.of(study, root, runner.where)[0], runner)


def content(report: RunReport) -> dict[str, Any]:
    """All that a run's files say, but for what names it, times it and says how much memory it took."""
    assert report.folder
    said: dict[str, Any] = {path.name: path.read_bytes() for path in report.folder.iterdir()}
    for name in ("manifest.json", "summary.json"):
        said |= {f"{name} {key}": value for key, value in json.loads(said.pop(name)).items() if key not in _DEPENDS}
    return {name: each for name, each in said.items() if name not in ("log.txt", "SHA256SUMS")}


def process_of(event: Event) -> int:
    """The process of the actor that a run has begun on, by its note."""
    return int(re.search(r"process (\d+)", event.text)[1])  # type: ignore[attr-defined,index]


def begins(handle: Any) -> Iterator[int]:
    """The processes of the actors that a run begins on, one after the other."""
    return (process_of(e) for e in handle.events() if isinstance(e, Note) and e.text.startswith("on "))


def test_a_study_with_a_killed_actor_finds_to_the_byte_what_the_daemon_finds(
    runner: RayRunner, models: tuple[Path, Path], texts: Path, cwtool: CommandLine, tmp_path: Path
) -> None:
    study = grid(models, texts, "killed", control_seeds=40)
    killed: list[str] = []

    def kill(run_id: str) -> None:
        handle, process = runner.attach(run_id), 0
        for event in handle.events():
            if isinstance(event, Note) and event.text.startswith("on "):
                process = process_of(event)
            elif event.kind == "baseline" and not killed:
                killed.append(run_id)
                os.kill(process, signal.SIGKILL)

    def show(cells: tuple[CellProgress, ...]) -> None:
        if not killers and all(cell.run_id for cell in cells):  # the second run of the first model, on a warm actor
            killers.append(threading.Thread(target=kill, args=(cells[1].run_id,)))
            killers[0].start()

    killers: list[threading.Thread] = []
    here = run_study(StudyFolder.of(study, tmp_path, runner.where)[0], runner, show=show)
    killers[0].join()
    assert [(cell.state, cell.error) for cell in here] == [("done", None)] * 6 and killed
    said = [event.text for event in runner.attach(killed[0]).events() if isinstance(event, Note)]
    assert any("died" in text and "queued again" in text for text in said)
    with cwtool.client() as client:
        there = ran(study, DaemonRunner(client), tmp_path / "daemon")
        for one, other in zip(here, there, strict=True):
            assert content(runner.attach(one.run_id).report()) == content(
                DaemonRunner(client).attach(other.run_id).report()
            )


def test_a_cancelled_run_ends_and_the_next_one_runs(runner: RayRunner, spec: Callable[..., RunSpec]) -> None:
    handle = runner.submit(spec(control_seeds=LONG))
    next(event for event in handle.events() if event.kind == "damage")
    handle.cancel()
    with pytest.raises(Cancelled):
        handle.report()
    assert handle.state().name == "cancelled"
    assert runner.submit(spec()).report().verdicts


def test_a_key_never_runs_twice_and_other_processes_see_the_run(
    runner: RayRunner, spec: Callable[..., RunSpec]
) -> None:
    handle = runner.submit(spec(), "key0123456789")
    assert runner.submit(spec(), "key0123456789").run_id == handle.run_id
    with RayRunner() as other:  # which starts nothing
        assert other.submit(spec(), "key0123456789").run_id == handle.run_id
        told = [event.kind for event in other.attach(handle.run_id).events()]
        assert {"stage_started", "topk", "damage", "verdict"} <= set(told)
        assert other.attach(handle.run_id).report() == handle.report() == open_run(handle.run_id)
        assert other.states([handle.run_id, "never-abcd"]).keys() == {handle.run_id}
        assert other.attach(handle.run_id).altered() == ()
        folder = handle.report().folder
        assert folder
        (folder / "log.txt").write_text("something else")
        assert other.attach(handle.run_id).altered() == ("log.txt",)
        with pytest.raises(NotFound):
            other.attach("never-abcd")


def test_a_run_under_which_three_actors_died_fails_and_says_so(runner: RayRunner, spec: Callable[..., RunSpec]) -> None:
    handle = runner.submit(spec(control_seeds=LONG))
    for process in begins(handle):
        os.kill(process, signal.SIGKILL)
    with pytest.raises(WorkerDied, match="3 actors died under this run"):
        handle.report()
    assert runner.submit(spec()).report().verdicts


def test_an_actor_that_died_while_it_had_nothing_to_do_costs_the_next_run_no_attempt(
    runner: RayRunner, spec: Callable[..., RunSpec]
) -> None:
    handles = [runner.submit(spec(seed=seed, control_seeds=100)) for seed in (6, 7)]  # one for each slot
    actors = {process for handle in handles for process in begins(handle)}
    for process in actors:
        os.kill(process, signal.SIGKILL)
    handle = runner.submit(spec(seed=8))
    (begun,) = begins(handle)
    assert handle.report().verdicts and begun not in actors
    assert not [event for event in handle.events() if isinstance(event, Note) and "died" in event.text]


def test_a_run_that_hangs_is_begun_anew_and_one_whose_store_takes_nothing_waits(
    runner: RayRunner, spec: Callable[..., RunSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray's nodes have a cache of their own, which hangs here as a network drive does; `runner` has filled it."""
    seen = runner.submit(spec(seed=9)).report()
    with pytest.MonkeyPatch.context() as node:
        node.delenv("CWTOOL_HOME")
        cache = Settings().cache
    scores = list(cache.glob("*.json"))
    for path in scores:
        path.unlink()
        os.mkfifo(path)
    monkeypatch.setenv("CWTOOL_STAGE_IDLE_S", "6")
    with RayRunner(slots=1, cpus=0.5, store=str(tmp_path / "a store")) as stored:
        handle = stored.submit(spec(seed=9))
        in_the_way = tmp_path / "a store" / handle.run_id
        in_the_way.touch()
        for event in handle.events():
            if not isinstance(event, Note):
                continue
            if "last in stage" in event.text:
                assert "it has neither computed nor said anything" in event.text and "queued again" in event.text
                for path in scores:
                    path.unlink()
            elif "cannot keep the files" in event.text:
                assert not any(path.is_fifo() for path in scores), "it did not hang"
                time.sleep(10)  # longer than a run may be idle: the time that passes is what this is about
                assert handle.state().name == "running"
                in_the_way.unlink()
        assert handle.report().verdicts == seen.verdicts
        said = [event.text for event in handle.events() if isinstance(event, Note)]
        assert [sum(part in text for text in said) for part in ("was ended", "cannot keep")] == [1, 1]


DRIVER = """
import sys
from pathlib import Path
from cwa_daemon.cluster.runner import RayRunner
from cwa_engine.studies.folder import StudyFolder
from cwa_engine.studies.running import run_study
with RayRunner(slots=2) as runner:
    run_study(StudyFolder.at(Path(sys.argv[1])), runner)
"""


def test_a_study_whose_driver_was_killed_goes_on_with_what_is_not_done(
    runner: RayRunner, models: tuple[Path, Path], texts: Path, home: Path, tmp_path: Path
) -> None:
    study = grid(models, texts, "driver", control_seeds=150)
    folder = StudyFolder.of(study, tmp_path, runner.where)[0]
    log = (tmp_path / "driver.log").open("wb")
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(folder.path)], env={**os.environ, "CWTOOL_HOME": str(home)},
        stdout=log, stderr=log, start_new_session=True,
    )  # fmt: skip
    try:
        cells = _until(lambda: progress_of(folder, runner), lambda cells: any(c.state == "done" for c in cells))
        waiting = next(cell for cell in reversed(cells) if cell.state == "queued")
        runner.attach(waiting.run_id).cancel()  # of another process
        _until(lambda: runner.attach(waiting.run_id).state(), lambda state: state.name == "cancelled")
        cells = progress_of(folder, runner)
        its_ray = psutil.Process(driver.pid).children(recursive=True)
    finally:
        driver.kill()
        driver.wait()
    done = {cell.run_id for cell in cells if cell.state == "done"}
    gone = {cell.run_id for cell in cells if cell.state == "running"}
    assert done and gone
    assert not runner.states(list(gone))
    with pytest.raises(NotFound):
        runner.attach(gone.pop())
    resumed = run_study(folder, runner)
    assert [cell.state for cell in resumed].count("done") == 5
    assert done <= {cell.run_id for cell in resumed}
    assert next(cell for cell in resumed if cell.cell == waiting.cell).state == "cancelled"
    assert all(cell.state == "done" for cell in run_study(folder, runner, retry=True))
    _, alive = psutil.wait_procs(its_ray, timeout=SOON_S)
    assert not alive, "the Ray of a killed driver lives on"


def _until(look: Callable[[], Any], good: Callable[[Any], bool]) -> Any:
    until, never = time.monotonic() + SOON_S, threading.Event()
    while not good(found := look()):
        assert time.monotonic() < until, f"it does not come: {found}"
        never.wait(0.1)
    return found


def test_nodes_with_other_code_are_refused_by_name(
    ray: Any, home: Path, spec: Callable[..., RunSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cwa_daemon.cluster.driving.code_here", lambda: {"cwtool": "0.0.1"})
    said: list[str] = []
    with (
        RayRunner(slots=1, cpus=0.1, say=said.append) as runner,
        pytest.raises(VersionMismatch, match=r"cwtool is .* there and 0.0.1 here"),
    ):
        runner.submit(spec())
    assert "slot 1 of 1 is not used" in said[-1]


@pytest.mark.parametrize("kind", ["folder", "address"])
def test_files_stay_in_the_store_and_texts_and_names_of_models_travel_to_other_nodes(
    runner: RayRunner,
    spec: Callable[..., RunSpec],
    models: tuple[Path, Path],
    tmp_path: Path,
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    remember_import(ImportedModel("my-tiny", str(models[0]), "gpt2", 1, 1))  # here: the nodes have another state folder
    monkeypatch.setattr("cwa_daemon.cluster.joining._own_node", lambda ray: "another one")
    store = str(tmp_path / "store") if kind == "folder" else f"local://{tmp_path}/store"
    at_home = runner.submit(spec(model="my-tiny", seed=5)).report()
    with RayRunner(slots=1, cpus=0.1, store=store) as away:
        assert away.where == f"ray {store}"
        handle = away.submit(spec(model="my-tiny", seed=5))
        state_folder = Path(os.environ["CWTOOL_HOME"])
        assert list(handle.events())  # until it has ended
        assert (tmp_path / "store" / handle.run_id / "manifest.json").is_file()
        link = state_folder / "runs" / handle.run_id  # by which the daemon lists it
        assert link.is_symlink() if kind == "folder" else not link.exists()
        assert content(handle.report()) == content(at_home)
        assert handle.altered() == ()


def test_what_means_one_machine_alone_is_refused(
    runner: RayRunner, spec: Callable[..., RunSpec], tmp_path: Path
) -> None:
    for wrong in (spec(device="cuda:1"), spec(device="cuda"), spec(data_file=Path("/dev/stdin"))):
        with pytest.raises(InvalidInput):
            runner.submit(wrong)
    with pytest.raises(InvalidInput, match="slots"):
        RayRunner(slots=0)
