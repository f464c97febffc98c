"""Runs that other programs put into the folder of runs, a study on Ray or a notebook: they are listed as they come.

A run folder appears whole, by its renaming, and the daemon's own runs have a job before they have a folder. So a folder of
which no job is known is a run that somebody else has made. Nobody tells of it: whoever asks for runs has the folder looked at,
which is a `stat` where nothing has changed.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Iterator
from pathlib import Path

from cwa_daemon.control.headlines import kept_headline
from cwa_daemon.control.store import Store
from cwa_daemon.protocol import JobState
from cwa_engine.base.errors import CwaError, NotFound
from cwa_engine.base.plain import JsonMap
from cwa_engine.prompt_spec import spec_of_kind
from cwa_engine.records.checksums import MANIFEST, SUMS, fingerprint_of, written_hashes
from cwa_engine.records.reading import read_manifest, read_summary

log = logging.getLogger(__name__)

SETTLED_NS = 2 * 10**9  # two changes that are closer may have one time, as file systems keep it
PATIENCE_S = 8.0  # that a request waits for a look; clients wait ten, and thousands of runs may take longer
FOUND = "it was made by another program, and found in the folder of runs"
# What reading a folder raises that somebody else has made: its files may hold anything, and must not end a list of all others.
NO_RUN = (CwaError, LookupError, TypeError, AttributeError, ValueError, ArithmeticError, RecursionError, OSError)

Times = tuple[int, ...]  # in ns: when the folder of runs had changed, and each folder in it that was no whole run


class FoundRuns:
    """The look at the folder. The store belongs to the loop's thread; files are read in others."""

    def __init__(self, store: Store, runs: Path) -> None:
        self._store, self._runs = store, runs
        self._settled: Times = ()  # at a look that saw all of it
        self._not_whole: dict[str, int] = {}  # name -> when it had changed; what is copied slowly is whole later
        self._looking = asyncio.Lock()

    async def look_after(self, every_s: float) -> None:
        """Look for ever, so that lists that are on screen hear of new runs."""
        while True:
            await self.look()
            await asyncio.sleep(every_s)

    async def look_soon(self) -> None:
        """Look before a request is answered; what takes long goes on behind it."""
        if self._times() == self._settled:
            return
        looking = asyncio.create_task(self.look())
        await asyncio.wait([looking], timeout=PATIENCE_S)
        if looking.done():
            looking.result()  # or its error is lost

    async def look(self) -> None:
        """List every run that no job is known of."""
        async with self._looking:
            times = self._times()
            if times == self._settled:
                return
            known = self._store.run_ids()
            for row, fingerprint in await asyncio.to_thread(self._read, known):
                if self._store.job(row["run_id"]) is None:
                    list_run(self._store, row, fingerprint)
                    log.info("%s: %s", row["run_id"], FOUND)
            self._settled = times if time.time_ns() - max(times) > SETTLED_NS and times == self._times() else ()

    def _times(self) -> Times:
        return (_changed(self._runs), *(_changed(self._runs / name) for name in self._not_whole))

    def _read(self, known: set[str]) -> list[tuple[JsonMap, str | None]]:
        """(row, fingerprint) of each run that is not known, those that began first first."""
        found, not_whole = [], {}
        for folder in unknown_folders(self._runs, known):
            changed = _changed(folder)
            try:
                if self._not_whole.get(folder.name) != changed:
                    _check_whole(folder)
                    found.append((row_of(folder), fingerprint_of(folder)))
                    continue
            except NO_RUN as error:
                log.warning("%s is no whole run, and is not listed: %s", folder, error)
            not_whole[folder.name] = changed
        self._not_whole = not_whole
        return sorted(found, key=lambda each: float(each[0]["created"]))


def _changed(path: Path) -> int:
    """When a folder was changed, in ns; 0 where there is none."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _check_whole(folder: Path) -> None:
    """Raise NotFound for a folder that does not have all files that its hashes name, Altered for hashes that are none."""
    sums, manifest = ((folder / name).read_bytes() for name in (SUMS, MANIFEST))
    missing = [
        name for name in written_hashes(folder.name, sums, manifest, None).hashes if not (folder / name).is_file()
    ]
    if missing:
        raise NotFound(f"{folder} lacks {', '.join(missing)}")


def unknown_folders(runs: Path, known: set[str]) -> Iterator[Path]:
    """The run folders that have another name than these; what is half written has a hidden one."""
    for folder in sorted(runs.iterdir()) if runs.is_dir() else []:
        if folder.name[0] != "." and folder.name not in known and folder.is_dir():
            yield folder


def list_run(store: Store, row: JsonMap, fingerprint: str | None, **columns: int) -> None:
    """Add a run that is done, as `row_of` gives it."""
    store.add_job(**row, **columns)
    run_id = row["run_id"]
    store.append_event(run_id, {"kind": "note", "text": FOUND, "level": "info"})
    store.append_event(run_id, {"kind": "state", "state": JobState.DONE, "error": None, "fingerprint": fingerprint})


def row_of(folder: Path) -> JsonMap:
    """The job of a run folder. Raises one of `NO_RUN` for what is no whole run."""
    manifest, summary = read_manifest(folder), read_summary(folder)
    spec_of_kind("run", manifest["spec"])  # or every list that it is in would fail
    started, worked_s = float(manifest["started"]), float(sum(summary["timings"].values()))
    texts = manifest["command"], manifest["model"]["device"]
    if not (math.isfinite(started) and math.isfinite(worked_s) and all(isinstance(text, str) for text in texts)):
        raise ValueError("its times are no numbers, or its command or device is no text")
    return {
        "run_id": folder.name,
        "kind": "run",
        "state": JobState.DONE,
        "spec": manifest["spec"],
        "command": manifest["command"],
        "device": manifest["model"]["device"],
        "client_key": f"reindexed-{folder.name}",
        "created": started,
        "started": started,
        "finished": started + worked_s,
        "worked_s": worked_s,
        "headline": kept_headline(folder),
    }
