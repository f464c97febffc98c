"""Numbers as people read them, the same in the CLI and the TUI. No Textual in it."""

from __future__ import annotations

import math
import time
from typing import TypeGuard

NOT_FINITE = "beyond a float"
STATE_STYLES = {
    "done": "green",
    "failed": "red",
    "running": "cyan",
    "paused": "magenta",
    "cancelled": "yellow",
    "interrupted": "yellow",
}  # rich styles of a job's states
STATE_SIGNS = {
    "waiting": "·",  # of a study's cell that is not queued yet
    "queued": "○",
    "paused": "‖",
    "running": "▶",
    "done": "✓",
    "failed": "✗",
    "cancelled": "⊘",
    "interrupted": "!",
}  # a state is told by sign and word, never by its colour alone
OUTCOME_SIGNS = {
    "harmful": "▲",
    "helpful": "▼",
    "indistinguishable": "≈",
    "not tested": "?",
}  # verdicts on a critical set beside its controls
STABLE = "●"  # marks a weight that every repeat of the ranking has


def signed(state: str) -> str:
    """`✓ done`: a state with its sign."""
    return f"{STATE_SIGNS[state]} {state}" if state in STATE_SIGNS else state


def size(size_bytes: float | None) -> str:
    """`538.1 MB`, in powers of ten as disks and model cards count."""
    if size_bytes is None:
        return "-"
    for unit in ("B", "kB", "MB", "GB"):
        if size_bytes < 1000:
            return f"{size_bytes:.0f} B" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.1f} TB"


def counted(done: int, total: int, unit: str) -> str:
    """`3/40`, and of bytes `12.0 MB/270.1 MB`."""
    return f"{size(done)}/{size(total)}" if unit == "byte" else f"{done}/{total}"


def millions(parameters_m: float) -> str:
    """`135 M`, `6.7 B`: parameters of a model, given in millions."""
    return f"{parameters_m / 1000:.1f} B" if parameters_m >= 1000 else f"{parameters_m:.0f} M"


def duration(seconds: float | None) -> str:
    """`0.31 s`, `42 s`, `3 min 05 s`, `2 h 10 min`, `3 d 4 h`; `-` also where a clock was put back in between."""
    if seconds is None or seconds < 0:
        return "-"
    if seconds < 10:
        return f"{seconds:.2f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def ago(moment: float | None, now: float | None = None) -> str:
    """`12 s ago` for a time in seconds since the epoch."""
    if moment is None:
        return "-"
    seconds = round(max(0.0, (time.time() if now is None else now) - moment))
    return f"{seconds} s ago" if seconds < 60 else f"{duration(seconds)} ago"


def time_of_day(moment: float) -> str:
    """`14:03:22` here, for a time in seconds since the epoch."""
    return time.strftime("%H:%M:%S", time.localtime(moment))


def is_known(value: float | None) -> TypeGuard[float]:
    """Whether a figure is there and finite: what came over the wire has None for one that is not."""
    return value is not None and math.isfinite(value)


def perplexity(value: float | None) -> str:
    """`17.86`, `23,411`, `1.2e+08`. What is not finite, None or nan, is beyond a float."""
    if not is_known(value):
        return NOT_FINITE
    if value >= 1e7:
        return f"{value:.3g}"
    return f"{value:,.0f}" if value >= 10_000 else f"{value:.2f}"


def is_worse_than_guessing(nll: float, vocabulary: int) -> bool:
    """Whether a loss in nats per token exceeds that of guessing among all tokens."""
    return vocabulary > 1 and nll > math.log(vocabulary)


def ratio(value: float | None) -> str:
    """`x4.62`, `x1.0000` beside one, `x181,724` far from it."""
    if not is_known(value):
        return "-"
    if value >= 1e7:
        return f"x{value:.2g}"
    if value >= 100:
        return f"x{value:,.0f}"
    return f"x{value:.4f}" if abs(value - 1) < 0.1 else f"x{value:.2f}"


def delta(value: float | None) -> str:
    """A change in nats per token, with its sign: `+1.5314`."""
    return f"{value:+.4f}" if is_known(value) else "-"


def delta_of_any_size(value: float | None) -> str:
    """The same with three digits where four decimals would say nothing: `-2.31e-06`."""
    return f"{value:+.2e}" if is_known(value) and 0 < abs(value) < 0.001 else delta(value)


def finite_delta(value: float | None) -> str:
    """The same, or that it is beyond a float."""
    return delta(value) if is_known(value) else NOT_FINITE


def standard_error(error: float | None) -> str:
    """Of an estimated score; one that was computed exactly after has none."""
    if error is None:
        return "-"
    return number(error) if error else "exact"


def interval(low: float | None, high: float | None) -> str:
    """`[+1.3318, +1.7153]`."""
    return f"[{low:+.4f}, {high:+.4f}]" if is_known(low) and is_known(high) else "-"


def clock(seconds: float | None) -> str:
    """`0:42`, `3:05`, `2:10:05`, `3 d 4 h`: a duration in a narrow column."""
    if seconds is None:
        return ""
    whole = max(0, int(seconds))
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d}"
    return f"{whole // 3600}:{whole % 3600 // 60:02d}:{whole % 60:02d}" if whole < 86400 else duration(whole)


def age(moment: float, now: float) -> str:
    """`12 s`, `3 min`, `2 h`, `4 d`: how long ago, in a narrow column."""
    seconds = max(0, int(now - moment))
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length} {unit}"
    return f"{seconds} s"


def bar(part: float, whole: float, width: int) -> str:
    """`███░░░`: how much of `whole` is there, on a fixed range."""
    full = round(width * min(1.0, max(0.0, part / whole))) if whole > 0 else 0
    return "█" * full + "░" * (width - full)


def progress(stage: str, done: int, total: int, width: int, unit: str = "", widest_bar: int = 8) -> str:
    """`score 3/8 ███░░░░░` in at most `width` cells; the bar is as long as there is room."""
    said = f"{stage} {counted(done, total, unit)}"
    room = min(widest_bar, width - len(said) - 1)
    return f"{said} {bar(done, total, room)}" if room >= 2 else said[:width]


def number(value: float | None) -> str:
    """Four significant digits, for values of any size. What is not finite, None or nan, is beyond a float."""
    return f"{value:.4g}" if is_known(value) else NOT_FINITE


def short_delta(value: float) -> str:
    """A change in nats with its sign in at most eight cells: `+1.8791`, `+12.346`, `+1234.6`."""
    decimals = 4 if abs(value) < 10 else 3 if abs(value) < 100 else 1
    return f"{value:+.{decimals}f}"
