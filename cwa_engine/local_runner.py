"""Runs in this process, in a thread of its own."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Condition
from threading import Event as Flag
from types import TracebackType

from cwa_engine.base.cancellation import cancellable
from cwa_engine.base.errors import Cancelled
from cwa_engine.base.events import Event
from cwa_engine.local_run import load_for, run_here
from cwa_engine.records.run_id import new_run_id
from cwa_engine.records.run_report import RunReport
from cwa_engine.runner import RunHandle
from cwa_engine.spec import RunSpec


class LocalRunner:
    """Runs specs in this process, one after the other, in a thread. With `folder` it writes run folders there.

    with LocalRunner(folder="results") as runner:
        print(runner.submit(RunSpec(model="gpt2", topk=(10,))).report().verdicts)
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self._folder = Path(folder) if folder is not None else None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="cwtool run")
        self._handles: list[_LocalRun] = []

    def submit(self, spec: RunSpec) -> RunHandle:
        handle = _LocalRun(spec, self._folder)
        self._handles.append(handle)
        self._thread.submit(handle.work)
        return handle

    def close(self) -> None:
        """Cancel what has not ended, and wait until the thread has ended."""
        for handle in self._handles:
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

    def __init__(self, spec: RunSpec, folder: Path | None) -> None:
        self._run_id = new_run_id(spec.model)
        self._spec = spec
        self._folder = folder
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

    def cancel(self) -> None:
        self._cancelled.set()

    def work(self) -> None:
        """Run, and keep how it ended."""
        outcome: RunReport | BaseException
        try:
            outcome = self._run()
        except BaseException as error:  # whoever asks for the report hears of it
            outcome = error
        with self._changed:
            self._outcome, self._ended = outcome, True
            self._changed.notify_all()

    def _run(self) -> RunReport:
        self._check_cancelled()
        with cancellable(self._check_cancelled):
            report = run_here(
                self._spec,
                lambda emit: load_for(self._spec, emit),
                self._emit,
                run_id=self._run_id,
                folder=self._folder,
            )
        return report

    def _emit(self, event: Event) -> None:
        self._check_cancelled()
        with self._changed:
            self._events.append(event)
            self._changed.notify_all()

    def _check_cancelled(self) -> None:
        if self._cancelled.is_set():
            raise Cancelled("the run was cancelled")
