"""Where work that nothing is reported of can be cancelled: between two pieces of a file, two tokens, two blocks.

What reports its progress is cancelled by that, see `events`. Reading, hashing and trying a model go on for seconds or
minutes without a word; they ask `check_cancelled()` on the way, and whoever runs them says what that means.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")

_EVERY = 1024  # of many small steps


def _never() -> None:
    """Nobody cancels."""


_check: ContextVar[Callable[[], None]] = ContextVar("check", default=_never)


@contextmanager
def cancellable(check: Callable[[], None]) -> Iterator[None]:
    """Let `check` be called now and then by what runs within; it raises, for instance `errors.Cancelled`, to end that."""
    before = _check.set(check)
    try:
        yield
    finally:
        _check.reset(before)


def check_cancelled() -> None:
    """Raises what `cancellable` was told to raise, where the work is not wanted any more."""
    _check.get()()


def cancellable_steps(items: Iterable[T]) -> Iterator[T]:
    """The same items; now and then it is asked whether the rest are wanted. For steps of microseconds."""
    check = _check.get()
    for number, item in enumerate(items):
        if number % _EVERY == 0:
            check()
        yield item
