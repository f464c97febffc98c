"""The long-lived tasks of the daemon: what dies is logged with its traceback, begun again, and shown by `daemon status`.

troubles = Troubles()
task = supervise("the lane of cpu", lane.run, troubles)  # `run` is called again whenever it raises
...
troubles.sentences()  # for `cwtool daemon status` and `cwtool doctor`
task.cancel()
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from cwa_engine.base.errors import CwaError

log = logging.getLogger(__name__)

FIRST_PAUSE_S = 0.1  # before a task that died is begun again; each further death doubles it
LONGEST_PAUSE_S = 30.0  # no task is begun more often than this for long, and none is given up
STEADY_S = 60.0  # without another death, after which a task counts as sound again


class Troubles:
    """What is wrong with the daemon now: one sentence for each thing that is, the longest known first."""

    def __init__(self) -> None:
        self._sentences: dict[str, str] = {}

    def report(self, subject: str, sentence: str) -> bool:
        """`subject` is in trouble, as another report may have said before; whether that is new."""
        before, self._sentences[subject] = self._sentences.get(subject), sentence
        return sentence != before

    def clear(self, subject: str) -> None:
        self._sentences.pop(subject, None)

    def sentences(self) -> list[str]:
        return list(self._sentences.values())


def supervise(name: str, run: Callable[[], Awaitable[None]], troubles: Troubles) -> asyncio.Task[None]:
    """A task that awaits `run()`, and does so again whenever that raises; cancel it to end it.

    `name` stands in the log and in `troubles`, "the lane of cpu" for instance. A `run` that returns is not called again.
    """
    return asyncio.create_task(_again_and_again(name, run, troubles), name=name)


async def _again_and_again(name: str, run: Callable[[], Awaitable[None]], troubles: Troubles) -> None:
    loop = asyncio.get_running_loop()
    deaths, died = 0, 0.0
    while True:
        steady = loop.call_later(STEADY_S, troubles.clear, name)
        try:
            await run()
            troubles.clear(name)
            return
        except Exception as error:
            log.exception("%s failed, and is begun again", name)
            deaths = deaths + 1 if loop.time() - died < STEADY_S + LONGEST_PAUSE_S else 1
            died = loop.time()
            times = "" if deaths == 1 else f" ({deaths} times)"
            troubles.report(name, f"{name} failed and was begun again{times}: {in_words(error)}")
        finally:
            steady.cancel()
        await asyncio.sleep(min(FIRST_PAUSE_S * 2 ** min(deaths - 1, 20), LONGEST_PAUSE_S))


def in_words(error: Exception) -> str:
    """What a trouble says of an error."""
    if isinstance(error, CwaError):
        return error.message
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
