"""p-values in print. numpy-free."""

from __future__ import annotations

LEVEL = 0.05  # at or below which a test says that there is something
SMALLEST = 1e-300  # what a p of zero means


def p_text(p: float | None) -> str:
    """`p = 0.031`, `p = 2e-50`, `p < 1e-300`; `p not known` for None."""
    if p is None:
        return "p not known"
    return f"p < {SMALLEST:.0e}" if p < SMALLEST else f"p = {shown_p(p)}"


def shown_p(p: float) -> str:
    """`0.031`, `2e-50`; `0.0504`, which is not 0.05."""
    return f"{p:.{digits_of_p(p)}g}"


def digits_of_p(p: float) -> int:
    """Significant digits: two, and more where two would read as the level that p is above."""
    digits = 2
    while p > LEVEL >= float(f"{p:.{digits}g}"):
        digits += 1
    return digits
