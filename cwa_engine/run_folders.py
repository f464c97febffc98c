"""Run folders side by side in one folder, and which of them was begun under which key. torch-free."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cwa_engine.base.errors import InvalidInput, NotFound
from cwa_engine.base.events import Event
from cwa_engine.base.files import write_whole
from cwa_engine.records.checksums import check_run
from cwa_engine.records.run_report import RunReport, open_run
from cwa_engine.runner import RunState

KEYS = ".keys"  # folder of files that are named by a key and hold the id of the run that was begun under it


@dataclass(frozen=True)
class RunFolders:
    """The runs of a folder, by run id; `keys` is where keys are kept, if not in `.keys` there."""

    path: Path
    keys: Path | None = None

    def folder(self, run_id: str) -> Path | None:
        """The folder of a run that is done; None where there is none."""
        plain = run_id and "/" not in run_id and not run_id.startswith(".")
        return self.path / run_id if plain and (self.path / run_id).is_dir() else None

    def finished(self, run_id: str) -> FinishedRun:
        """A run that is done. Raises NotFound."""
        if folder := self.folder(run_id):
            return FinishedRun(folder)
        raise NotFound(f"there is no run {run_id} here", hint="it was not finished, or its folder was removed")

    def keep_key(self, key: str, run_id: str) -> None:
        """Write down which run was begun under a key. Raises InvalidInput for what is no key, and OSError."""
        path = self._key_file(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, run_id.encode())

    def run_of_key(self, key: str) -> str | None:
        """The id of the run that was begun last under a key. Raises InvalidInput for what is no key."""
        try:
            return self._key_file(key).read_text("utf-8")
        except (OSError, ValueError):
            return None

    def _key_file(self, key: str) -> Path:
        if not key.isalnum():
            raise InvalidInput(f"{key!r:.80} is no key of a run", hint="a key has letters and digits alone")
        return (self.keys or self.path / KEYS) / key


@dataclass(frozen=True)
class FinishedRun:
    """A run that is done, by its folder: a handle, as `runner.RunHandle`. `fingerprint` where it is known from elsewhere."""

    folder: Path
    fingerprint: str | None = None

    @property
    def run_id(self) -> str:
        return self.folder.name

    def events(self) -> Iterator[Event]:
        """None: what it said is in its log."""
        return iter(())

    def state(self) -> RunState:
        return RunState("done", self.folder.stat().st_mtime)

    def report(self) -> RunReport:
        return open_run(self.folder, self.fingerprint)

    def altered(self) -> tuple[str, ...]:
        """Names of files that are not what the run wrote. Raises NotFound where its folder is gone."""
        if not self.folder.is_dir():
            raise NotFound(f"there is no run {self.run_id} here", hint="its folder was removed")
        return tuple(check_run(self.folder, self.fingerprint).altered)

    def cancel(self) -> None:
        """It has ended."""
