"""Cancellation of work that reports no progress: between two pieces of a file, two tokens, two blocks.

Work that reports progress is cancelled through its events, see `events`. Reading, hashing and trying a model take seconds
or minutes without an event. They call `check_cancelled()` at every step, and their caller sets the check by `cancellable`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")

_EVERY = 1024  # steps between two checks of `cancellable_steps`


def _never() -> None:
    """The default check: it never cancels."""


_check: ContextVar[Callable[[], None]] = ContextVar("check", default=_never)


@contextmanager
def cancellable(check: Callable[[], None]) -> Iterator[None]:
    """Call `check` at every `check_cancelled()` inside the block. It raises, such as `errors.Cancelled`, to end the work."""
    before = _check.set(check)
    try:
        yield
    finally:
        _check.reset(before)


def current_check() -> Callable[[], None]:
    """The check that `cancellable` set, for what another thread calls on behalf of this one."""
    return _check.get()


def check_cancelled() -> None:
    """Run the check that `cancellable` set. Raises what the check raises if the work was cancelled."""
    current_check()()


def cancellable_steps(items: Iterable[T]) -> Iterator[T]:
    """The same items, with a `check_cancelled()` every 1024 items: for steps of microseconds."""
    check = _check.get()
    for number, item in enumerate(items):
        if number % _EVERY == 0:
            check()
        yield item
