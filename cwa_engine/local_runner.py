"""Runs in this process, in a thread of its own."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Condition
from threading import Event as Flag
from types import TracebackType

from cwa_engine.base.cancellation import cancellable
from cwa_engine.base.errors import Cancelled, CwaError, NotFound, RunFailed
from cwa_engine.base.events import Event
from cwa_engine.local_run import load_for, run_here
from cwa_engine.records.run_id import new_run_id
from cwa_engine.records.run_report import RunReport, open_run
from cwa_engine.run_folders import FinishedRun, RunFolders
from cwa_engine.runner import RunHandle, RunState, states_of
from cwa_engine.spec import RunSpec


class LocalRunner:
    """Runs specs in this process, one after the other, in a thread. With `folder` it writes run folders there.

    A key that was asked for before gives the same run, also that of an earlier process whose folder is there.

    with LocalRunner(folder="results") as runner:
        print(runner.submit(RunSpec(model="gpt2", topk=(10,))).report().verdicts)
    """

    elsewhere = False

    def __init__(self, folder: str | Path | None = None) -> None:
        self._folder = Path(folder) if folder is not None else None
        self._folders = RunFolders(self._folder) if self._folder else None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="cwtool run")
        self._handles: dict[str, _LocalRun] = {}  # by run id
        self._keys: dict[str, str] = {}  # key -> run id

    @property
    def where(self) -> str:
        return str(self._folder.absolute()) if self._folder else f"the memory of process {os.getpid()}"

    def submit(self, spec: RunSpec, key: str | None = None) -> RunHandle:
        if key is not None and (known := self._known(key)):
            return known
        handle = _LocalRun(spec, self._folders, key)
        self._handles[handle.run_id] = handle
        if key is not None:
            self._keys[key] = handle.run_id
        self._thread.submit(handle.work)
        return handle

    def attach(self, run_id: str) -> RunHandle:
        if run_id in self._handles:
            return self._handles[run_id]
        if self._folders:
            return self._folders.finished(run_id)
        raise NotFound(f"there is no run {run_id} here", hint="it was not finished, or its folder was removed")

    def states(self, run_ids: Sequence[str]) -> Mapping[str, RunState]:
        return states_of(run_ids, lambda run_id: self.attach(run_id).state())

    def wait_for_room(self) -> None:
        """There is always room."""

    def _known(self, key: str) -> RunHandle | None:
        """The run of a key; None for one that was never asked for, or whose process ended before its run did."""
        if key in self._keys:
            return self._handles[self._keys[key]]
        run_id = self._folders.run_of_key(key) if self._folders else None
        try:
            return self.attach(run_id) if run_id else None
        except NotFound:
            return None

    def close(self) -> None:
        """Cancel what has not ended, and wait until the thread has ended."""
        for handle in self._handles.values():
            handle.cancel()
        self._thread.shutdown()

    def __enter__(self) -> LocalRunner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _LocalRun:
    """A run in this process: `work` is called in the thread, all else in those of whoever waits for it."""

    def __init__(self, spec: RunSpec, folders: RunFolders | None, key: str | None) -> None:
        self._run_id = new_run_id(spec.model)
        self._spec = spec
        self._folders = folders
        self._key = key
        self._created = time.time()
        self._began = False
        self._cancelled = Flag()
        self._changed = Condition()
        self._events: list[Event] = []  # guarded, as all below, by `_changed`
        self._ended = False
        self._outcome: RunReport | BaseException | None = None

    @property
    def run_id(self) -> str:
        return self._run_id

    def events(self) -> Iterator[Event]:
        for number in itertools.count():
            event = self._event(number)
            if event is None:
                return
            yield event

    def _event(self, number: int) -> Event | None:
        """The event of that number when it comes; None where the run ends before."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended or len(self._events) > number)
            return self._events[number] if len(self._events) > number else None

    def report(self) -> RunReport:
        with self._changed:
            self._changed.wait_for(lambda: self._ended)
            outcome = self._outcome
        if isinstance(outcome, RunReport):
            return outcome
        assert outcome is not None
        raise outcome

    def state(self) -> RunState:
        with self._changed:
            outcome = self._outcome
            if isinstance(outcome, RunReport):
                return RunState("done", self._created)
            if isinstance(outcome, Cancelled):
                return RunState("cancelled", self._created, outcome)
            if outcome is not None:
                return RunState("failed", self._created, _as_cwa_error(outcome))
            return RunState("running" if self._began else "queued", self._created)

    def altered(self) -> tuple[str, ...]:
        return FinishedRun(self._folders.path / self._run_id).altered() if self._folders else ()

    def cancel(self) -> None:
        self._cancelled.set()

    def work(self) -> None:
        """Run, and keep how it ended."""
        outcome: RunReport | BaseException
        with self._changed:
            self._began = True
        try:
            outcome = self._run()
        except BaseException as error:  # whoever asks for the report hears of it
            outcome = error
        with self._changed:
            self._outcome, self._ended = outcome, True
            self._changed.notify_all()

    def _run(self) -> RunReport:
        self._check_cancelled()
        if self._key and self._folders:  # before the run: whoever is killed right after it has both
            self._folders.keep_key(self._key, self._run_id)
        with cancellable(self._check_cancelled):
            report = run_here(
                self._spec,
                lambda emit: load_for(self._spec, emit),
                self._emit,
                run_id=self._run_id,
                folder=self._folders.path if self._folders else None,
            )
        # Of many runs not all are kept in memory where their files are on disk.
        return open_run(self._folders.path / self._run_id) if self._folders else report

    def _emit(self, event: Event) -> None:
        self._check_cancelled()
        with self._changed:
            self._events.append(event)
            self._changed.notify_all()

    def _check_cancelled(self) -> None:
        if self._cancelled.is_set():
            raise Cancelled("the run was cancelled")


def _as_cwa_error(error: BaseException) -> CwaError:
    return error if isinstance(error, CwaError) else RunFailed(f"{type(error).__name__}: {error}")
