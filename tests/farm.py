"""A runner of another package, by its name: "farm:BARN". It runs at once, in this process, and notes how it was opened."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from cwa_engine.base.places import runs_folder, state_folder
from cwa_engine.records.run_id import new_run_id
from cwa_engine.run_folders import RunFolders
from cwa_engine.runner import RunHandle, RunState, states_of
from cwa_engine.spec import RunSpec

ROOT = Path(__file__).parents[1]
OPENED = "farm.txt"  # in the state folder: a line each time it was opened


def install(folder: Path) -> dict[str, str]:
    """Make the package that brings it; gives the environment in which it is installed."""
    about = folder / "farm-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: farm\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[cwtool.runners]\nfarm = tests.farm:make\n")
    return {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT), os.environ.get("PYTHONPATH", "")])}


def make(address: str, *, say: Callable[[str], None], command: str, slots: int = 1) -> Farm:
    state_folder().mkdir(parents=True, exist_ok=True)
    with (state_folder() / OPENED).open("a") as file:
        file.write(f"{address} {slots}\n")
    say(f"the farm at {address} has {slots} fields")
    return Farm(command)


class Farm:
    where = "farm"
    elsewhere = False

    def __init__(self, command: str) -> None:
        self._command = command
        self._folders = RunFolders(runs_folder(), state_folder() / "farm-keys")

    def submit(self, spec: RunSpec, key: str | None = None) -> RunHandle:
        from cwa_engine.local_run import load_for, run_here

        assert key
        if not (run_id := self._folders.run_of_key(key)):
            run_id = new_run_id(spec.model)
            self._folders.path.mkdir(parents=True, exist_ok=True)
            run_here(
                spec, lambda emit: load_for(spec, emit), command=self._command, run_id=run_id, folder=runs_folder()
            )
            self._folders.keep_key(key, run_id)
        return self.attach(run_id)

    def attach(self, run_id: str) -> RunHandle:
        return self._folders.finished(run_id)

    def states(self, run_ids: Sequence[str]) -> Mapping[str, RunState]:
        return states_of(run_ids, lambda run_id: self.attach(run_id).state())

    def wait_for_room(self) -> None: ...

    def close(self) -> None: ...
