"""What a figure is: a tidy table, and what is drawn of its columns. One definition serves page, paper and terminal.

`reports.drawing` draws it in Vega-Lite, `cwa_tui/widgets/figure_chart.py` in cells of a terminal. The table is saved beside
every picture, so what is drawn can be drawn anew by others.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from cwa_engine.base.frames import frame_of
from cwa_engine.base.table import Table
from cwa_engine.questions.question import TableRows
from cwa_engine.rich_display import RichDisplay

if TYPE_CHECKING:
    import pandas

Scale = Literal["linear", "log", "symlog", "category", "diverging"]
Mark = Literal["line", "step", "point", "bar", "interval", "cell", "text", "rule", "diagonal", "beyond"]
LONGEST_NAME = 120  # characters of a name of files, without what follows
Source = Literal["run", "study", "comparison", "weight"]


@dataclass(frozen=True, slots=True)
class Axis:
    """A column of the table, along x, along y or as colour.

    `order` has the categories as they are to stand. A symlog axis is linear within `linear_within` of 0, where figures of
    both signs meet, and logarithmic beyond. `ends` are those of the axis, whatever the figures are: 0 and 1 for a share.
    """

    field: str
    title: str  # with its unit: "change of the loss (nats per token)"
    scale: Scale = "linear"
    order: tuple[str, ...] = ()
    linear_within: float = 1.0
    ends: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Layer:
    """A mark for each row, or one line through the rows of a series in their order.

    `low` and `high` are the columns of an interval's ends: along y, or along x where y has categories. Where `where` is given,
    only rows with these values in these columns are drawn. A `rule` is a straight line across the whole figure at `at`, along
    x or, if `upright`, along y; a `diagonal` is where x and y are equal. `text` writes the column of colour into a cell.
    `beyond` marks each row whose number is not finite, for the model collapsed there: at the edge where the axis of numbers
    ends, or in its cell where colour has the number.
    """

    mark: Mark
    low: str = ""
    high: str = ""
    where: tuple[tuple[str, Any], ...] = ()
    at: float | None = None
    upright: bool = False
    dashed: bool = False


@dataclass(frozen=True, slots=True)
class Figure(RichDisplay):
    """One figure. A row of the table whose x or y is None or not finite is not drawn; `caption` says how many there are.

    `colour` tells series apart where its scale is "category", else it is a scale of colour.
    """

    name: str  # of its files, without an ending: "damage_curve_grad_x_weight"
    title: str  # what it shows, in a line
    caption: str  # how it was measured and how to read it, in sentences
    table: TableRows[Any]
    x: Axis
    y: Axis
    layers: tuple[Layer, ...]
    colour: Axis | None = None

    @property
    def axes(self) -> tuple[Axis, ...]:
        """x, y, and colour where it has one."""
        return (self.x, self.y, self.colour) if self.colour else (self.x, self.y)

    def frame(self) -> pandas.DataFrame:
        """What is drawn, as a pandas frame. Raises InvalidInput where pandas is not installed."""
        return frame_of(self.table.table.row, self.table.rows)


@dataclass(frozen=True)
class FigureKind:
    """A kind of figure. `make` gives none where the source has not measured what it shows.

    The source is a RunReport, a StudyReport, a Comparison or a WeightCard, as `of` says.
    """

    name: str  # "damage_curve"
    place: int  # among the kinds of a source: the order on a page
    of: Source
    shows: str  # in words: "the change of the loss by k, with intervals, beside the controls"
    make: Callable[[Any], Iterable[Figure]]


def table_of(name: str, row: type, rows: Iterable[Any]) -> TableRows[Any]:
    """The table of a figure of this name."""
    return TableRows(Table(f"{name}.csv", row), tuple(rows))


def figure_name(kind: str, *parts: str) -> str:
    """A name of files that says what a figure is of: ("dose_response", "obd") is dose_response_obd.

    One that would be too long for a file ends in a hash instead.
    """
    said = "_".join(re.sub(r"[^A-Za-z0-9.]+", "_", part).strip("_.") for part in (kind, *parts) if part)
    return (
        said if len(said) <= LONGEST_NAME else f"{said[:LONGEST_NAME]}_{hashlib.sha256(said.encode()).hexdigest()[:8]}"
    )


def can_be_drawn(axis: Axis, value: Any) -> bool:
    """Whether a value has a place on the axis: a text of a category, a finite number, above 0 where it is logarithmic."""
    if axis.scale == "category":
        return value is not None
    return isinstance(value, int | float) and math.isfinite(value) and (axis.scale != "log" or value > 0)


def is_in(layer: Layer, row: Any) -> bool:
    """Whether a layer draws this row, if it can be drawn."""
    return all(getattr(row, name) == value for name, value in layer.where)


def has_heat(figure: Figure) -> bool:
    """Whether colour has the number of a row."""
    return figure.colour is not None and figure.colour.scale != "category"


def along_of(figure: Figure) -> Literal["x", "y"]:
    """The axis of numbers, along which intervals lie: y, or x where y has categories."""
    return "x" if figure.y.scale == "category" and figure.x.scale != "category" else "y"


def drawn_rows(figure: Figure, layer: Layer) -> Iterator[Any]:
    """The rows that a layer draws: those with a place on all axes, and of an interval both ends."""
    along = getattr(figure, along_of(figure))
    number = figure.colour if figure.colour and has_heat(figure) else along
    others = [axis for axis in figure.axes if axis is not number]
    for row in figure.table.rows:
        there = can_be_drawn(number, getattr(row, number.field))
        if layer.mark == "beyond":
            there = not there
        elif layer.mark == "interval":
            there = all(can_be_drawn(along, getattr(row, end)) for end in (layer.low, layer.high))
        if there and is_in(layer, row) and all(can_be_drawn(axis, getattr(row, axis.field)) for axis in others):
            yield row


def with_undrawn_counted(figure: Figure) -> Figure:
    """The figure; where some of its rows have no place on its axes, its caption says how many, and which have a triangle."""
    rows = figure.table.rows
    marked = {id(row) for layer in figure.layers if layer.mark == "beyond" for row in drawn_rows(figure, layer)}
    missing = [
        axis
        for row in rows
        if id(row) not in marked
        and (axis := next((axis for axis in figure.axes if not can_be_drawn(axis, getattr(row, axis.field))), None))
    ]
    number = "finite number above 0" if any(axis.scale == "log" for axis in missing) else "finite number"
    said = [figure.caption]
    if marked:
        said.append(f"{_rows(len(marked), len(rows))} no finite number; a triangle stands for {_each(len(marked))}.")
    if missing:
        said.append(f"{_rows(len(missing), len(rows))} no {number} and no mark.")
    return replace(figure, caption=" ".join(said))


def _rows(count: int, of: int) -> str:
    return f"{count:,} of {of:,} rows {'has' if count == 1 else 'have'}"


def _each(count: int) -> str:
    return "it" if count == 1 else "each"


def distinct(values: Sequence[str]) -> tuple[str, ...]:
    """Each value once, in the order of the first."""
    return tuple(dict.fromkeys(values))
