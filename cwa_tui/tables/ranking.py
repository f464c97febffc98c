"""A ranking of any length in little memory: 100,000 weights take 6 MB here, and 70 MB as rows. No Textual in it."""

from __future__ import annotations

import csv
import io
import itertools
import math
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any, overload

from cwa_engine.rows import TopWeight
from cwa_tui.tables.filters import Sorting, in_order, parse_filter

COLUMNS = tuple(entry.name for entry in fields(TopWeight))
_AT_ONCE = 4096  # lines of a file that are taken together
_MISSING = -1  # of a whole number; there are no negative ones
_WHOLE = ("rank", "flat_index", "out_feature", "in_feature", "layer", "expert", "fan_out")
_FRACTIONS = ("value", "score", "standard_error")
_TEXTS = ("parameter", "component")
_FLAGS = {"True": 1, "False": 0, "": _MISSING}
Columns = Mapping[str, Sequence[str]]


class RankingRows(Sequence[TopWeight]):
    """The weights of one ranking, best first, kept as columns. A row is made when it is asked for."""

    def __init__(self) -> None:
        self._whole = {name: array("q") for name in _WHOLE}
        self._fractions = {name: array("d") for name in _FRACTIONS}
        self._texts = {name: array("l") for name in _TEXTS}  # places in `_names`
        self._stable = array("b")
        self._names: list[str] = []
        self._place_of_name: dict[str, int] = {}
        self._targets: dict[int, str] = {}  # only those that do not follow from parameter and indices

    @classmethod
    def of(cls, weights: Iterable[TopWeight]) -> RankingRows:
        """A ranking that is in memory already."""
        rows, given = cls(), list(weights)
        rows._extend({name: [_text(getattr(weight, name)) for weight in given] for name in COLUMNS}, len(given))
        return rows

    @classmethod
    def from_csv(cls, content: bytes) -> RankingRows:
        """A ranking from the bytes of its `topk_*.csv`. Raises ValueError, which names the line, for what is none."""
        rows = cls()
        reader = csv.reader(io.TextIOWrapper(io.BytesIO(content), "utf-8", newline=""))
        head = next(reader, [])
        if missing := {"rank", "parameter", "value", "score", "target", "component"} - set(head):
            raise ValueError(f"line 1: there is no column {', '.join(sorted(missing))}")
        while lines := list(itertools.islice(reader, _AT_ONCE)):
            try:
                rows._extend(_columns(head, lines), len(lines))
            except (ValueError, KeyError) as error:
                raise ValueError(f"line {reader.line_num - len(lines) + _first_wrong(head, lines)}: {error}") from error
        return rows

    def _extend(self, columns: Columns, count: int) -> None:
        """Add so many rows, given column by column as a CSV has them: that takes a third of the time of row by row."""
        nothing = ("",) * count
        for name, numbers in self._whole.items():
            numbers.extend(_read(int, columns.get(name, nothing), _MISSING))
        for name, floats in self._fractions.items():
            floats.extend(_read(float, columns.get(name, nothing), math.nan))
        for name, places in self._texts.items():
            for text in dict.fromkeys(columns[name]):
                self._place_of_name.setdefault(text, len(self._place_of_name))
            places.extend(map(self._place_of_name.__getitem__, columns[name]))
        first = len(self._stable)
        self._stable.extend(map(_FLAGS.__getitem__, columns.get("stable", nothing)))
        self._names = list(self._place_of_name)
        usual = map(_usual_target, *(columns.get(name, nothing) for name in ("parameter", "out_feature", "in_feature")))
        for place, (target, expected) in enumerate(zip(columns["target"], usual, strict=True), first):
            if target != expected:
                self._targets[place] = target

    def _usual_target(self, place: int) -> str:
        inside = self._whole["in_feature"][place]
        parameter = self._names[self._texts["parameter"][place]]
        return _usual_target(
            parameter, str(self._whole["out_feature"][place]), "" if inside == _MISSING else str(inside)
        )

    def value(self, place: int, column: str) -> Any:
        """One cell; None for what is not known."""
        if column in self._whole:
            number = self._whole[column][place]
            return None if number == _MISSING else number
        if column in self._fractions:
            fraction = self._fractions[column][place]
            return None if column != "value" and math.isnan(fraction) else fraction
        if column in self._texts:
            return self._names[self._texts[column][place]]
        if column == "stable":
            stable = self._stable[place]
            return None if stable == _MISSING else bool(stable)
        return self._targets.get(place) or self._usual_target(place)

    def order(self, sorting: Sorting | None, text: str = "") -> Sequence[int]:
        """Places of the weights that `text` leaves, in the order of `sorting`, best first without one."""
        places: Sequence[int] = range(len(self))
        if text.strip():
            matches = parse_filter(text, COLUMNS)
            places = [place for place in places if matches(_Values(self, place))]
        return places if sorting is None else self._sorted(list(places), sorting)

    def _sorted(self, places: list[int], sorting: Sorting) -> list[int]:
        """The places by a column. Whole arrays are their own keys: tuples of 100,000 would take 15 MB."""
        column, descending = sorting.column, sorting.descending
        if column in self._whole or column in self._fractions:
            numbers: array[Any] = self._whole[column] if column in self._whole else self._fractions[column]
            there = [place for place in places if self.value(place, column) is not None]
            there.sort(key=numbers.__getitem__, reverse=descending)
            return there + [place for place in places if self.value(place, column) is None]
        return in_order(places, lambda place: self.value(place, column), sorting)

    def __len__(self) -> int:
        return len(self._stable)

    @overload
    def __getitem__(self, place: int) -> TopWeight: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[TopWeight]: ...
    def __getitem__(self, place: int | slice) -> TopWeight | Sequence[TopWeight]:
        if isinstance(place, slice):
            return [self[at] for at in range(*place.indices(len(self)))]
        if not -len(self) <= place < len(self):
            raise IndexError(place)
        place %= len(self)
        return TopWeight(**{name: self.value(place, name) for name in COLUMNS})


class _Values(dict[str, Any]):
    """The cells of one weight by column, read when they are asked for."""

    def __init__(self, rows: RankingRows, place: int) -> None:
        super().__init__()
        self._rows, self._place = rows, place

    def __missing__(self, column: str) -> Any:
        return self._rows.value(self._place, column)

    def get(self, column: str, default: Any = None) -> Any:
        return self._rows.value(self._place, column)

    def values(self) -> Any:
        """What a word without a column is looked for in: the names."""
        return _names(self._rows, self._place)


def _names(rows: RankingRows, place: int) -> Iterator[str]:
    yield rows.value(place, "target")
    yield rows.value(place, "component")


def _columns(head: Sequence[str], lines: Sequence[Sequence[str]]) -> Columns:
    """The cells of some lines by column. Raises ValueError."""
    if any(len(line) != len(head) for line in lines):
        raise ValueError(f"it has not {len(head)} cells")
    return dict(zip(head, zip(*lines, strict=True), strict=True))


def _first_wrong(head: Sequence[str], lines: Sequence[Sequence[str]]) -> int:
    """Which of some lines, counted from 1, cannot be read."""
    for number, line in enumerate(lines, 1):
        try:
            RankingRows()._extend(_columns(head, [line]), 1)
        except (ValueError, KeyError):
            return number
    return len(lines)


def _read(kind: Callable[[str], Any], cells: Sequence[str], missing: float) -> Iterable[Any]:
    """Numbers from their texts, `missing` where there is none."""
    if "" not in cells:
        return map(kind, cells)
    return (kind(text) if text else missing for text in cells)


def _text(value: object) -> str:
    """A cell as a CSV has it."""
    return "" if value is None else str(value)


def _usual_target(parameter: str, out: str, inside: str) -> str:
    """`NAME[out,in]`, `NAME[out]` of a parameter with one dimension."""
    return f"{parameter}[{out},{inside}]" if inside else f"{parameter}[{out}]"
