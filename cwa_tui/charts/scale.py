"""Where values stand along an axis, and where its ticks are: linear, logarithmic, logarithmic on both sides of 0, by name.

scale = scale_of(Axis("k", "k", "log"), [1, 10, 100])
scale.place(10)  # 1.0
scale.ticks(0.0, 2.0, 5)  # {0.0: "1", 1.0: "10", 2.0: "100"}
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from cwa_engine.figures.figure import Axis


@dataclass(frozen=True, slots=True)
class AxisScale:
    """`names` are those of a category axis, at 0, 1, 2 and so on. `linear` is where a symlog axis turns logarithmic."""

    kind: str
    names: tuple[str, ...] = ()
    linear: float = 1.0

    @property
    def is_named(self) -> bool:
        return self.kind == "category"

    def place(self, value: Any) -> float | None:
        """Where a value stands; None where it has no place: it is missing, not finite, or not above 0 in a logarithm."""
        if self.is_named:
            name = None if value is None else named(value)
            return float(self.names.index(name)) if name in self.names else None
        if isinstance(value, str) or value is None or not math.isfinite(value):
            return None
        match self.kind:
            case "log":
                return math.log10(value) if value > 0 else None
            case "symlog":
                return math.copysign(math.log10(1 + abs(value) / self.linear), value)
        return float(value)

    def value(self, place: float) -> float:
        """The value that stands at a place of an axis of numbers."""
        match self.kind:
            case "log":
                return math.pow(10.0, min(300.0, max(-300.0, place)))
            case "symlog":
                return math.copysign(self.linear * (math.pow(10.0, min(300.0, abs(place))) - 1), place)
        return place

    def ticks(self, low: float, high: float, most: int) -> dict[float, str]:
        """Place -> label of at most about `most` ticks between two places."""
        if self.is_named:
            return {float(at): name for at, name in enumerate(self.names) if low <= at <= high}
        values = self._round_values(low, high, max(2, most))
        return {
            place: label
            for value, label in zip(values, _labels(values), strict=True)
            if (place := self.place(value)) is not None and low - 1e-9 <= place <= high + 1e-9
        }

    def _round_values(self, low: float, high: float, most: int) -> list[float]:
        first, last = self.value(low), self.value(high)
        if self.kind == "log":
            return _log_values(first, last, most) or _linear_values(first, last, most)
        if self.kind == "symlog":
            powers = _powers(self.linear, max(abs(first), abs(last)))
            values = [0.0, *powers, *(-power for power in powers)]
            inside = sorted(value for value in values if first <= value <= last)
            return _thinned(inside, most) if len(inside) > 1 else _linear_values(first, last, most)
        return _linear_values(first, last, most)


def scale_of(axis: Axis, values: Iterable[Any]) -> AxisScale:
    """The scale of an axis; `values` are all those along it."""
    if axis.scale == "category":
        return AxisScale("category", categories(axis, values))
    if axis.scale == "symlog":
        return AxisScale("symlog", linear=axis.linear_within)
    return AxisScale("log" if axis.scale == "log" else "linear")


def categories(axis: Axis, values: Iterable[Any]) -> tuple[str, ...]:
    """The names along an axis: first those of its order, then the others as they come."""
    found = dict.fromkeys(named(value) for value in values if value is not None)
    return (*(name for name in axis.order if name in found), *(name for name in found if name not in axis.order))


def named(value: Any) -> str:
    """A category as it is called."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return short_number(value) if isinstance(value, float) else str(value)


def short_number(value: float) -> str:
    """`1.4 B`, `70 M`, `42 k`, `512`, `0.25`, `1e-5`."""
    if not math.isfinite(value):
        return str(value)
    size = abs(value)
    for least, unit in ((1e13, ""), (1e9, " B"), (1e6, " M"), (1e4, " k")):
        if size >= least:
            return f"{value / {' B': 1e9, ' M': 1e6, ' k': 1e3}[unit]:.3g}{unit}" if unit else _scientific(value)
    return _scientific(value) if 0 < size < 1e-3 else f"{value:.4g}"


def _scientific(value: float) -> str:
    digits, _, power = f"{value:.2e}".partition("e")
    return f"{digits.rstrip('0').rstrip('.')}e{int(power)}"


def _labels(values: Sequence[float]) -> list[str]:
    """Short where these tell the values apart, else with more digits."""
    short = [short_number(value) for value in values]
    return short if len(set(short)) == len(short) else [f"{value:.8g}" for value in values]


def _linear_values(low: float, high: float, most: int) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten."""
    least = (high - low) / most
    if not least > 0:
        return [low]
    power = 10.0 ** math.floor(math.log10(least))
    step = next(step for step in (power, 2 * power, 5 * power, 10 * power) if step >= least * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(step * number, 12 - math.floor(math.log10(step))) + 0.0 for number in range(first, last + 1)]


def _log_values(low: float, high: float, most: int) -> list[float]:
    """1, 2 and 5 times powers of ten, or some powers alone; fewer than two are no ticks."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 2, 5), (1,)):
        found = [step * 10.0**power for power in powers for step in steps]
        inside = [value for value in found if low * (1 - 1e-9) <= value <= high * (1 + 1e-9)]
        if len(inside) <= most:
            return inside if len(inside) > 1 else []
    return _thinned(inside, most)


def _powers(linear: float, high: float) -> list[float]:
    """Powers of ten from where the axis turns logarithmic."""
    last = math.floor(math.log10(max(high, linear)))
    return [10.0**power for power in range(math.ceil(math.log10(linear) - 1e-9), last + 1)]


def _thinned(values: Sequence[float], most: int) -> list[float]:
    """Every second or third of them, with 0 among them where it is one."""
    step = -(-len(values) // most)
    start = values.index(0.0) % step if 0.0 in values else 0
    return list(values[start::step])
