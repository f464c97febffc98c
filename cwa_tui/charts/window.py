"""What of a chart is in sight, and how keys change it."""

from __future__ import annotations

from cwa_tui.charts.layout import Limits, Window

_STEP = 0.2  # of what is in sight, that a key moves it by


def zoomed(window: Window, factor: float) -> Window:
    """What is in sight, `factor` times as wide and high, around the same middle."""
    across, up = (_scaled(limits, factor) for limits in window)
    return across, up


def moved(window: Window, right: int, up: int) -> Window:
    """What is in sight, a step to the right and up; with -1 to the left and down."""
    return _shifted(window[0], right), _shifted(window[1], up)


def _scaled(limits: Limits, factor: float) -> Limits:
    middle, half = (limits[0] + limits[1]) / 2, (limits[1] - limits[0]) / 2 * factor
    return middle - half, middle + half


def _shifted(limits: Limits, steps: int) -> Limits:
    by = _STEP * (limits[1] - limits[0]) * steps
    return limits[0] + by, limits[1] + by
