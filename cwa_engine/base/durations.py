"""Spans of time as people write them: `30m`, `1h30m`, `5min`, `2 hours`, `7d`, `0`, `forever`. Plain numbers are seconds."""

from __future__ import annotations

import math
import re

from cwa_engine.base.errors import InvalidInput

# The units that Go, systemd and ollama read, without months and years: their length varies, so M is no unit.
_UNITS = {
    1e-6: ("us", "µs", "μs", "usec"),
    1e-3: ("ms", "msec"),
    1: ("s", "sec", "secs", "second", "seconds"),
    60: ("m", "min", "mins", "minute", "minutes"),
    3600: ("h", "H", "hr", "hrs", "hour", "hours"),
    86_400: ("d", "D", "day", "days"),
    604_800: ("w", "W", "week", "weeks"),
}
_SECONDS = {name: length for length, names in _UNITS.items() for name in names}
_NUMBER = r"(?:[0-9]+\.?[0-9]*|\.[0-9]+)"
_PART = re.compile(rf"\s*({_NUMBER})\s*([a-zA-Zµμ]+)\s*")
_FOREVER = ("forever", "infinity", "inf")


def seconds(text: str) -> float:
    """The span in seconds; `math.inf` for "forever" and, as in ollama, for negative spans. Raises InvalidInput."""
    span = text.strip()
    if span.lower() in _FOREVER:
        return math.inf
    amount = span[1:] if span.startswith(("-", "+")) else span
    if re.fullmatch(_NUMBER, amount):
        length = float(amount)
    elif amount and not _PART.sub("", amount):
        length = math.fsum(float(number) * _length(unit, text) for number, unit in _PART.findall(amount))
    else:  # also `1h30`, which may mean seconds or minutes
        raise _no_span(text)
    return math.inf if span.startswith("-") else length


def _length(unit: str, text: str) -> float:
    length = _SECONDS.get(unit)
    if length is None:
        raise _no_span(text)
    return length


def _no_span(text: str) -> InvalidInput:
    return InvalidInput(f"'{text}' is no span of time", hint="like 30m, 1h30m, 5min, 7d, 0 or forever")
