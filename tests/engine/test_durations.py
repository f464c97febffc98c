"""Spans of time as people type them, for Go, systemd and ollama alike."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cwa_engine.base.durations import seconds
from cwa_engine.base.errors import InvalidInput


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("30m", 1800), ("2h", 7200), ("7d", 604_800), ("2w", 1_209_600), ("0", 0), ("90", 90), ("1.5", 1.5), (" 5m ", 300),
        ("1h30m", 5400), ("1.5h", 5400), (".5h", 1800), ("1h15m30.918s", 4530.918), ("+5m", 300), ("1m0.5s", 60.5),  # Go
        ("500ms", 0.5), ("250us", 0.00025), ("250µs", 0.00025),
        ("5min", 300), ("2 h", 7200), ("2hours", 7200), ("1 hr 20 min", 4800), ("48hr", 172_800), ("55s500ms", 55.5),  # systemd
        ("1 week 2 days", 777_600), ("infinity", math.inf),
        ("forever", math.inf), ("-1", math.inf), ("-1m", math.inf), ("3H", 10_800), ("1D", 86_400),  # ollama; other habits
    ],
)  # fmt: skip
def test_a_span_is_understood(typed: str, expected: float) -> None:
    assert seconds(typed) == pytest.approx(expected)


@pytest.mark.parametrize(
    "typed",
    [
        "", " ", "-", "+", "m", "banana", "30 bananas", "1h30", "1h-30m", "--1", "1:30", "1e3", "30M", "5mo", "1y", "1,5h",
        "1h 30m x", "nan", "٣m", "1..5h",
    ],
)  # fmt: skip
def test_what_is_no_span_or_could_be_two_is_refused(typed: str) -> None:
    with pytest.raises(InvalidInput, match="is no span of time"):
        seconds(typed)


@given(
    st.lists(st.tuples(st.integers(0, 999), st.sampled_from(["d", "h", "m", "s"])), min_size=1),
    st.sampled_from(["", " "]),
)
def test_parts_add_up(parts: list[tuple[int, str]], between: str) -> None:
    lengths = {"d": 86_400, "h": 3600, "m": 60, "s": 1}
    typed = between.join(f"{number}{unit}" for number, unit in parts)
    assert seconds(typed) == sum(number * lengths[unit] for number, unit in parts)
