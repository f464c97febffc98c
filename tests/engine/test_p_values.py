"""What is printed of a p-value is on the same side of 0.05 as the p-value."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from cwa_engine.base.p_values import LEVEL, p_text, shown_p


@given(st.floats(0, 1))
@example(6 / 119)
@example(0.05)
@example(0.05000000000000001)
def test_a_p_above_the_level_never_reads_as_one_at_it(p: float) -> None:
    assert (float(shown_p(p)) <= LEVEL) == (p <= LEVEL)
    assert shown_p(p) == f"{p:.2g}" or LEVEL < p < 1.01 * LEVEL


def test_a_p_in_a_sentence() -> None:
    assert [p_text(p) for p in (None, 0.0, 2e-50, 0.0314, 0.05, 6 / 119)] == [
        "p not known", "p < 1e-300", "p = 2e-50", "p = 0.031", "p = 0.05", "p = 0.0504",
    ]  # fmt: skip
