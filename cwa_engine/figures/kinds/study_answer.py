"""What a study's answer has in tables with intervals, whatever its question. torch-free."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cwa_engine.figures.captions import study_runs
from cwa_engine.figures.figure import Axis, Figure, FigureKind, Layer, Scale, distinct, figure_name, table_of
from cwa_engine.questions.question import TableRows
from cwa_engine.studies.questions import metrics, scaling, trajectory, transfer
from cwa_engine.studies.report import StudyReport

LOW, HIGH = "low", "high"  # fields with the ends of an interval, or ends of their names: `slope_low`
ACROSS = ("parameters", "step", "tokens", "k", "sequences")  # fields that a figure has across, best first
SERIES = ("family", "metric", "k", "perturbation", "selection", "others")  # fields that tell series apart
_APART = 10.0  # a logarithmic axis is used where the largest is at least so many times the smallest
KIND = "study_answer"
DRAWN = (scaling.POINTS, scaling.FITS, trajectory.STEPS, transfer.TABLE, metrics.FIDELITY)  # what other figures show


@dataclass(frozen=True, slots=True)
class AnswerPoint:
    """A row of the answer: where it stands across, what it is called, what was measured, and the interval's ends."""

    across: float | None
    row: str
    series: str
    value: float | None
    low: float | None
    high: float | None


def study_answers(report: StudyReport) -> Iterator[Figure]:
    """A figure for each table with intervals that no figure of its own shows."""
    for found in report.answer.tables if report.answer else ():
        figure = _figure(found) if found.table not in DRAWN else None
        if figure is not None:
            yield replace(figure, caption=f"{study_runs(report)} {figure.caption}")


def answer_figure(tables: Sequence[TableRows[Any]]) -> Figure | None:
    """The figure of the first table with figures that have intervals; None where there is none.

    Across is the first field of `ACROSS` with two values or more, else the rows one after the other. Rows of one series
    have the fields of `SERIES` in common.
    """
    return next((figure for table in tables if (figure := _figure(table))), None)


def with_interval(names: Sequence[str]) -> tuple[str, str, str] | None:
    """(figure, low, high): `slope` with `slope_low` and `slope_high`, or what stands before `low` and `high`."""
    for name in names:
        low, high = f"{name}_{LOW}", f"{name}_{HIGH}"
        if low in names and high in names:
            return name, low, high
    for place, name in enumerate(names):
        stem = name.removesuffix(LOW)
        if place and name.endswith(LOW) and f"{stem}{HIGH}" in names:
            return names[place - 1], name, f"{stem}{HIGH}"
    return None


def _figure(found: TableRows[Any]) -> Figure | None:
    names = [field.name for field in dataclasses.fields(found.table.row)]
    if (measured := with_interval(names)) is None or not found.rows:
        return None
    value, low, high = measured
    rows = [{name: getattr(row, name) for name in names} for row in found.rows]
    across = next((name for name in ACROSS if name in names and _is_axis([row[name] for row in rows])), "")
    varying = [name for name in SERIES if name in names and name != across and len({row[name] for row in rows}) > 1]
    texts = [name for name in names if isinstance(rows[0][name], str)]
    named = [name for name in texts if len({row[name] for row in rows}) > 1] or texts  # what tells rows apart
    points = [
        AnswerPoint(
            across=float(row[across]) if across else None,
            row=" ".join(str(row[name]) for name in named),
            series=_series(row, varying) if across else "",
            value=row[value],
            low=row[low],
            high=row[high],
        )
        for row in rows
    ]
    if across:
        points.sort(key=lambda point: point.across or 0.0)
    if not any(_is_finite(point.value) for point in points):
        return None
    table, title = found.table.name.removesuffix(".csv"), value.replace("_", " ")
    name = figure_name(KIND, table)
    series = distinct([point.series for point in points])
    return Figure(
        name=name,
        title=f"{title.capitalize()} of {table.replace('_', ' ')}, with intervals",
        caption=f"From {found.table.name} of the study's answer, with 95 % intervals.",
        table=table_of(name, AnswerPoint, points),
        x=Axis("across", across, _scale([point.across for point in points]))
        if across
        else Axis("row", "row", "category", distinct([point.row for point in points])),
        y=Axis("value", title, _scale([end for point in points for end in (point.value, point.low, point.high)])),
        colour=Axis("series", "", "category", series) if len(series) > 1 else None,
        layers=(*((Layer("line"),) if across else ()), Layer("interval", low=LOW, high=HIGH), Layer("point")),
    )


def _series(row: dict[str, Any], varying: Sequence[str]) -> str:
    return ", ".join(f"k {row[name]:,}" if name == "k" else str(row[name]) for name in varying)


def _is_axis(values: Sequence[Any]) -> bool:
    return all(map(_is_finite, values)) and len(set(values)) > 1


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _scale(values: Sequence[float | None]) -> Scale:
    """Logarithmic where figures span a factor of ten and are above 0."""
    there = [value for value in values if value is not None and math.isfinite(value)]
    is_wide = bool(there) and min(there) > 0 and max(there) / min(there) >= _APART
    return "log" if is_wide else "linear"


FIGURES = (
    FigureKind(
        KIND, 90, "study", "tables of the answer with intervals that have no figure of their own", study_answers
    ),
)
