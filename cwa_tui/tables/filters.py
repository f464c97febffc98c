"""Which rows a typed text leaves: `mlp layer:3 score>0.5`. No Textual in it."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_TERM = re.compile(r"(?P<column>[\w .-]+?)(?P<sign>>=|<=|!=|[:=<>])(?P<wanted>.+)")
_COMPARED: Mapping[str, Callable[[Any, Any], bool]] = {
    ">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le,
}  # fmt: skip

Matches = Callable[[Mapping[str, Any]], bool]  # of a row's values by column key


@dataclass(frozen=True, slots=True)
class Sorting:
    """By which column, and whether the largest comes first."""

    column: str
    descending: bool = False


def parse_filter(text: str, columns: Sequence[str]) -> Matches:
    """Whether a row has all words of `text`, each anywhere (`down_proj`) or in one column (`layer:3`, `score>0.5`).

    Words are compared without case. A word with a sign whose left side is no column is looked for as it stands. `column:`
    wants a number to be equal, and a text to contain the word; `!=` the opposite.
    """
    terms = [_term(word, columns) for word in text.split()]
    return lambda values: all(term(values) for term in terms)


def sort_key(value: Any) -> tuple[bool, Any]:
    """The key of a value of one column in an ascending order: what is not there, or is no number, comes last."""
    missing = value is None or value != value  # noqa: PLR0124
    if missing:
        return True, 0
    return False, value.casefold() if isinstance(value, str) else value


def arranged(
    values: Sequence[Mapping[str, Any]], columns: Sequence[str], sorting: Sorting | None, text: str
) -> list[int]:
    """Places of the rows that `text` leaves, in the order of `sorting`; equal ones stay in theirs, missing values last."""
    places = list(range(len(values)))
    if text.strip():
        matches = parse_filter(text, columns)
        places = [place for place in places if matches(values[place])]
    return places if sorting is None else in_order(places, lambda place: values[place].get(sorting.column), sorting)


def in_order(places: list[int], value: Callable[[int], Any], sorting: Sorting) -> list[int]:
    """The places by their value; those without one come last in either direction."""
    keys = {place: sort_key(value(place)) for place in places}
    there = [place for place in places if not keys[place][0]]
    there.sort(key=lambda place: keys[place][1], reverse=sorting.descending)
    return there + [place for place in places if keys[place][0]]


def _term(word: str, columns: Sequence[str]) -> Matches:
    found = _TERM.fullmatch(word)
    if found and found["column"] in columns:
        column, sign, wanted = found["column"], found["sign"], found["wanted"].casefold()
        if sign in _COMPARED:
            compare, bound = _COMPARED[sign], _number(wanted)
            return lambda values: (
                bound is not None and _is_number(values.get(column)) and compare(values[column], bound)
            )
        return lambda values: _is(values.get(column), wanted) is not (sign == "!=")
    wanted = word.casefold()
    return lambda values: any(wanted in str(value).casefold() for value in values.values() if value is not None)


def _is(value: Any, wanted: str) -> bool:
    if _is_number(value):
        return bool(value == _number(wanted))
    return value is not None and wanted in str(value).casefold()


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
