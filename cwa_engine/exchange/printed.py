"""Tables as papers print them: what they say, before any format. Numbers keep their intervals, and the interval decides
how many digits are printed. torch-free.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

MOST_DECIMALS = 12
_PLAIN_BELOW = 1e6  # larger numbers are printed with a power of ten


@dataclass(frozen=True, slots=True)
class Number:
    """A number to print, with the ends of its interval where it has one. What is not finite is printed as "n/a"."""

    value: float | None
    low: float | None = None
    high: float | None = None
    digits: int = 3  # significant ones, where there is no interval


@dataclass(frozen=True, slots=True)
class Strong:
    """A cell in bold; what bold means stands in the caption."""

    cell: str | int | Number


Cell = str | int | Number | Strong | None


@dataclass(frozen=True, slots=True)
class PrintedTable:
    """A table worth printing."""

    name: str  # of its file: "damage"
    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


def number_texts(number: Number) -> tuple[str, str]:
    """(the number, its interval) as texts of plain characters: ("2.31", "[2.10, 2.52]"), ("1.3e+09", "").

    With an interval there are as many decimals as leave its half-width two significant digits; without one the number has
    `digits` significant digits.
    """
    if number.value is None or not math.isfinite(number.value):
        return "n/a", ""
    ends = (number.low, number.high)
    if None in ends or not all(math.isfinite(end) for end in ends if end is not None):
        return _significant(number.value, number.digits), ""
    low, high = (end for end in ends if end is not None)
    if (half := (high - low) / 2) <= 0:
        return _significant(number.value, number.digits), ""
    decimals = 1 - math.floor(math.log10(half))
    if decimals > MOST_DECIMALS or max(abs(number.value), abs(low), abs(high)) >= _PLAIN_BELOW:
        places = max(1, math.floor(math.log10(max(abs(number.value), half))) + decimals)
        return _power(number.value, places), f"[{_power(low, places)}, {_power(high, places)}]"
    return _fixed(number.value, decimals), f"[{_fixed(low, decimals)}, {_fixed(high, decimals)}]"


def _significant(value: float, digits: int) -> str:
    if value == 0:
        return "0"
    size = math.floor(math.log10(abs(value)))
    if not -4 <= size < math.log10(_PLAIN_BELOW):
        return _power(value, digits - 1)
    return _fixed(value, max(0, digits - 1 - size))


def _fixed(value: float, decimals: int) -> str:
    rounded = round(value, decimals) + 0.0  # no negative zero
    return f"{rounded:.{max(0, decimals)}f}"


def _power(value: float, decimals: int) -> str:
    return f"{value:.{min(decimals, 15)}e}"


def columns_with_cells(rows: Sequence[Sequence[Cell]]) -> list[int]:
    """Places of the columns that are not empty."""
    places = range(len(rows[0])) if rows else ()
    return [place for place in places if any(row[place] not in (None, "") for row in rows)]


def is_numeric(cells: Sequence[Cell]) -> bool:
    """Whether a column has numbers, which are then aligned."""
    return any(isinstance(cell.cell if isinstance(cell, Strong) else cell, (int, Number)) for cell in cells)
