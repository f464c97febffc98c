"""Tasks that die are begun again, are shown while they are in trouble, and end when they are asked to."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from cwa_daemon.control import supervise as supervise_module
from cwa_daemon.control.supervise import Troubles, supervise
from cwa_engine.base.errors import StateNotWritten


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervise_module, "FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(supervise_module, "LONGEST_PAUSE_S", 0.01)


class Heard(Troubles):
    """Tells when a trouble is reported and when it is over."""

    def __init__(self) -> None:
        super().__init__()
        self.reported, self.over = asyncio.Event(), asyncio.Event()

    def report(self, subject: str, sentence: str) -> bool:
        self.reported.set()
        return super().report(subject, sentence)

    def clear(self, subject: str) -> None:
        super().clear(subject)
        self.over.set()


def dies(times: int, done: asyncio.Event, error: Exception) -> Callable[[], Coroutine[Any, Any, None]]:
    """A task that dies so often, and then waits for ever."""
    deaths = iter([error] * times)

    async def run() -> None:
        if failure := next(deaths, None):
            raise failure
        done.set()
        await asyncio.Event().wait()

    return run


def test_a_task_that_dies_is_begun_again_and_its_trouble_and_traceback_are_to_be_seen(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scene() -> list[str]:
        troubles, recovered = Troubles(), asyncio.Event()
        task = supervise("the lane of cpu", dies(3, recovered, ZeroDivisionError("a defect")), troubles)
        await asyncio.wait_for(recovered.wait(), 10)
        task.cancel()
        return troubles.sentences()

    with caplog.at_level(logging.ERROR):
        assert asyncio.run(scene()) == [
            "the lane of cpu failed and was begun again (3 times): ZeroDivisionError: a defect"
        ]
    assert caplog.text.count("Traceback") == 3


def test_a_task_that_has_lived_on_for_a_while_is_in_no_trouble_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervise_module, "STEADY_S", 0.05)

    async def scene() -> None:
        troubles, recovered = Heard(), asyncio.Event()
        task = supervise("a task", dies(1, recovered, StateNotWritten("no room", hint="make room")), troubles)
        await asyncio.wait_for(recovered.wait(), 10)
        assert troubles.sentences() == ["a task failed and was begun again: no room"]
        await asyncio.wait_for(troubles.over.wait(), 10)
        assert troubles.sentences() == []
        task.cancel()

    asyncio.run(scene())


def test_a_task_ends_when_it_is_cancelled_also_between_a_death_and_its_next_beginning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(supervise_module, "FIRST_PAUSE_S", 3600.0)
    monkeypatch.setattr(supervise_module, "LONGEST_PAUSE_S", 3600.0)

    async def scene() -> None:
        troubles = Heard()
        task = supervise("a task", dies(99, asyncio.Event(), OSError("gone")), troubles)
        await asyncio.wait_for(troubles.reported.wait(), 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scene())
