"""What a figure is: a tidy table, and what is drawn of its columns. One definition serves page, paper and terminal.

`reports.drawing` draws it with Altair, `cwa_tui/widgets/figure_chart.py` in cells of a terminal. The table is saved beside
every picture, so what is drawn can be drawn anew by others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from cwa_engine.questions.question import TableRows

Scale = Literal["linear", "log", "symlog", "category", "diverging"]
Mark = Literal["line", "point", "bar", "step", "cell", "interval", "rule"]
Source = Literal["run", "study", "comparison", "weight"]


@dataclass(frozen=True, slots=True)
class Axis:
    """A column of the table, along x, along y or as colour. `order` has the categories as they are to stand."""

    field: str
    title: str  # with its unit: "change of the loss (nats per token)"
    scale: Scale = "linear"
    order: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Layer:
    """A mark for each row, or one line through the rows of a series.

    `low` and `high` are the columns of an interval's ends. Where `where` is given, only rows with that value in that column are
    drawn. A `rule` is a straight line: at `at` across the whole figure, along y unless `field` is the column of x.
    """

    mark: Mark
    low: str = ""
    high: str = ""
    where: tuple[tuple[str, Any], ...] = ()
    at: float | None = None
    dashed: bool = False


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure. A row of the table whose x or y is None or not finite is not drawn; `caption` says how many there are.

    `colour` tells series apart where its scale is "category", else it is a scale of colour. `facet` is the column by which
    the figure is divided into panels.
    """

    name: str  # of its files, without an ending: "damage_curve_grad_x_weight"
    title: str  # what it shows, in a line
    caption: str  # how it was measured and how to read it, in sentences
    table: TableRows[Any]
    x: Axis
    y: Axis
    layers: tuple[Layer, ...]
    colour: Axis | None = None
    facet: str = ""


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
