"""Layers of a figure as layers of Vega-Lite: marks, scales, ticks and legends. torch-free."""

from __future__ import annotations

import dataclasses
import itertools
import math
import typing
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from cwa_engine.base.plain import JsonMap
from cwa_engine.base.table import csv_text
from cwa_engine.figures.figure import Axis, Figure, Layer, along_of, can_be_drawn, drawn_rows, has_heat, is_in
from cwa_engine.reports.looks import DASHES, DIVERGING, HEAT, SHAPES, Style

MOST_TICKS = 7  # of an axis; of a logarithmic one each decade has one where they are fewer
FEW_VALUES = 6  # so few values of a logarithmic axis are its ticks
SYMBOL = 26.0  # what the symbol of a legend takes beside its text, at a font of 8
LETTER = 0.55  # mean width of a letter, of the font's size
MOST_SLANTED = 16  # names along x that are written at a slant; more are written upright, and some left out
MANY_POINTS = 60  # of a scatter; more are drawn smaller
# 12,000, then 1.2M and 1.2B, and 1e-4: numbers are shown in full as long as they are short.
NUMBER = (
    "abs(datum.value) >= 1e6 ? replace(format(datum.value, '.3~s'), 'G', 'B') : "
    "datum.value != 0 && abs(datum.value) < 1e-3 ? format(datum.value, '.1~e') : format(datum.value, ',~g')"
)


def layers_of(figure: Figure, style: Style) -> list[JsonMap]:
    """Each layer with its own rows: those that have a place on the axes, as columns that are drawn or shown."""
    layers = [
        _layer(figure, layer, style) for layer in itertools.chain(*(_by_dash(figure, of) for of in figure.layers))
    ]
    zoomed = [side for side, axis in (("x", figure.x), ("y", figure.y)) if axis.scale != "category"]
    if style.interactive and zoomed:
        next(layer for layer in layers if {"x", "y"} <= layer["encoding"].keys())["params"] = [_zoom(zoomed)]
    return layers


def _by_dash(figure: Figure, layer: Layer) -> Iterator[Layer]:
    """A layer of lines as one for each series: were dashes a scale, the symbols of the legend would be dashed too."""
    if layer.mark not in ("line", "step") or not figure.colour or figure.colour.scale != "category":
        return iter([layer])
    names = _series(figure, figure.colour)
    there = {getattr(row, figure.colour.field) for row in figure.table.rows if is_in(layer, row)}
    return (replace(layer, where=(*layer.where, (figure.colour.field, name))) for name in names if name in there)


def _zoom(sides: Sequence[str]) -> JsonMap:
    """Dragging with a mouse moves, the wheel with Ctrl zooms: a page scrolls over a figure, and so does a finger."""
    return {
        "name": "zoom",
        "bind": "scales",
        "select": {
            "type": "interval",
            "encodings": list(sides),
            "translate": "[pointerdown[event.pointerType == 'mouse'], window:pointerup] > window:pointermove!",
            "zoom": "wheel![event.ctrlKey || event.metaKey]",
        },
    }


def _layer(figure: Figure, layer: Layer, style: Style) -> JsonMap:
    if layer.mark == "rule":
        return _rule(layer, style)
    if layer.mark == "diagonal":
        return _diagonal(figure, style)
    encoding: JsonMap = {"x": _position(figure, figure.x, "x", style), "y": _position(figure, figure.y, "y", style)}
    if figure.colour:
        encoding |= _colour(figure, layer, style)
    along = along_of(figure)
    if layer.mark == "interval":
        encoding[along] |= {"field": layer.low}
        encoding[f"{along}2"] = {"field": layer.high}
    elif layer.mark == "beyond" and has_heat(figure):
        encoding["color"] = {"value": style.ink}
    elif layer.mark == "beyond":
        encoding[along] = {"value": style.font_size / 2 if along == "y" else "width"}
    elif layer.mark == "text" and figure.colour:
        encoding["text"] = {"field": figure.colour.field, "type": "quantitative", "format": ".2~g"}
        encoding["color"] = _readable(figure, figure.colour)
    told = style.interactive and layer.mark not in ("line", "step", "interval")
    fields = _fields(figure) if told else _drawn_fields(figure, layer)
    if told:
        encoding["tooltip"] = [{"field": name, "title": name.replace("_", " "), "type": "nominal"} for name in fields]
    return {
        "data": _data(figure, fields, _rows(figure, layer)),
        "mark": _mark(figure, layer, style) | _dash(figure, layer, style),
        "encoding": encoding,
    }


def _rows(figure: Figure, layer: Layer) -> Iterator[Any]:
    """A line also has the rows without a figure: it is broken there."""
    if layer.mark in ("line", "step"):
        rows = (row for row in figure.table.rows if is_in(layer, row))
        return (row for row in rows if can_be_drawn(figure.x, getattr(row, figure.x.field)))
    return drawn_rows(figure, layer)


def _data(figure: Figure, fields: Sequence[str], rows: Iterator[Any]) -> JsonMap:
    """Rows as CSV, which takes half the room of a list of maps. What has no place on an axis is empty, and null when read."""
    scales = {axis.field: axis for axis in figure.axes}

    def shown(name: str, value: Any) -> Any:
        if isinstance(value, float) and not math.isfinite(value):
            return None
        return value if name not in scales or can_be_drawn(scales[name], value) else None

    hints = typing.get_type_hints(figure.table.table.row)
    numbers = {name for name in fields if {int, float} & {hints[name], *typing.get_args(hints[name])}}
    values = [[shown(name, getattr(row, name)) for name in fields] for row in rows]
    parse = {name: "number" if name in numbers else "string" for name in fields}
    return {"values": csv_text([fields, *values]), "format": {"type": "csv", "parse": parse}}


def _fields(figure: Figure) -> list[str]:
    return [field.name for field in dataclasses.fields(figure.table.table.row)]


def _drawn_fields(figure: Figure, layer: Layer) -> list[str]:
    return list(dict.fromkeys([*(axis.field for axis in figure.axes), *filter(None, (layer.low, layer.high))]))


def _mark(figure: Figure, layer: Layer, style: Style) -> JsonMap:
    match layer.mark:
        case "line":
            return {"type": "line", "clip": True}
        case "step":
            return {"type": "line", "interpolate": "step-after", "clip": True}
        case "point":
            is_scatter = "category" not in (figure.x.scale, figure.y.scale)
            smaller = max(0.25, min(1.0, MANY_POINTS / max(1, len(figure.table.rows)))) if is_scatter else 1.0
            return {"type": "point", "clip": True, "opacity": 1, "size": smaller * style.point_size}
        case "bar":
            return {"type": "bar"}
        case "interval":
            return {"type": "rule", "clip": True} | ({"strokeWidth": style.stroke} if figure.colour else {})
        case "cell":
            return {"type": "rect", "stroke": style.faint, "strokeWidth": 0.25}
        case "beyond":
            return {
                "type": "point",
                "shape": "triangle-up",
                "filled": False,
                "opacity": 1,
                "size": 2 * style.point_size,
            }
    return {"type": "text"}


def _dash(figure: Figure, layer: Layer, style: Style) -> JsonMap:
    if layer.mark not in ("line", "step"):
        return {}
    if layer.dashed:
        return {"strokeDash": [3 * style.stroke, 2 * style.stroke]}
    series = dict(layer.where).get(figure.colour.field) if figure.colour else None
    if series is None or not figure.colour:
        return {}
    dash = DASHES[_series(figure, figure.colour).index(series) % len(DASHES)]
    return {"strokeDash": [style.stroke * length for length in dash]}


def _rule(layer: Layer, style: Style) -> JsonMap:
    side = "x" if layer.upright else "y"
    mark = {"type": "rule", "color": style.ink, "opacity": 0.6, "clip": True}
    return {
        "data": {"values": [{"at": layer.at}]},
        "mark": mark | ({"strokeDash": [3, 2]} if layer.dashed else {}),
        "encoding": {side: {"field": "at", "type": "quantitative"}},
    }


def _diagonal(figure: Figure, style: Style) -> JsonMap:
    rows = [row for layer in figure.layers if layer.mark == "point" for row in drawn_rows(figure, layer)]
    ends = [getattr(row, axis.field) for row in rows for axis in (figure.x, figure.y)]
    values = [{"x": end, "y": end} for end in ((min(ends), max(ends)) if ends else ())]
    return {
        "data": {"values": values},
        "mark": {"type": "line", "color": style.ink, "opacity": 0.6, "strokeDash": [3, 2], "clip": True},
        "encoding": {side: {"field": side, "type": "quantitative"} for side in ("x", "y")},
    }


def _position(figure: Figure, axis: Axis, side: str, style: Style) -> JsonMap:
    """x or y. The title of y lies over the axis and reads from left to right, so that it is never cut."""
    placed: JsonMap = {"labelOverlap": True, "labelSeparation": 3, "labelLimit": 0.56 * style.assumed_width}
    if side == "y":
        placed |= {"titleAngle": 0, "titleAlign": "left", "titleAnchor": "end", "titleBaseline": "bottom", "titleX": 0}
        placed |= {"titleY": -0.5 * style.font_size}
    if axis.scale == "category":
        return _categories(figure, axis, side, style, placed)
    placed["labelExpr"] = NUMBER
    values = _values(figure, axis)
    has_bars = any(layer.mark == "bar" for layer in figure.layers)
    scale: JsonMap = (
        {"zero": True} if has_bars and side == along_of(figure) else {"zero": False, "padding": style.font_size}
    )
    if axis.scale in ("log", "symlog"):
        scale = _logarithmic(axis) | {"nice": False, "padding": style.font_size}
        if ticks := _ticks(axis, values):
            placed |= {
                "values": ticks,
                "tickCount": len(ticks),
                "labelOverlap": "greedy",
            }  # without the count some are left out
    else:
        placed["tickCount"] = MOST_TICKS
        if all(value == int(value) for value in values):
            placed["tickMinStep"] = 1
    if axis.ends:
        scale |= {"domain": list(axis.ends), "nice": False}
    return {"field": axis.field, "type": "quantitative", "title": axis.title, "scale": scale, "axis": placed}


def _categories(figure: Figure, axis: Axis, side: str, style: Style, placed: JsonMap) -> JsonMap:
    """Names that have no room beside one another are written at a slant; of numbers some are left out."""
    names = [str(name) for name in axis.order or dict.fromkeys(getattr(row, axis.field) for row in figure.table.rows)]
    room = 0.8 * (style.width or style.assumed_width) / max(1, len(names))
    is_wide = (max(map(len, names), default=0) + 1) * LETTER * style.font_size > room
    are_numbers = 2 * sum(name.isdigit() for name in names) > len(names)
    angle = 0
    if side == "x" and is_wide and not are_numbers:
        angle = -35 if len(names) <= MOST_SLANTED else -90
    slanted: JsonMap = {"labelAlign": "right", "labelOverlap": angle == -90} if angle else {}
    if angle == -90:
        slanted["labelBaseline"] = "middle"
    has_cells = any(layer.mark == "cell" for layer in figure.layers)
    return {
        "field": axis.field,
        "type": "nominal",
        "sort": list(axis.order) or None,
        "title": axis.title or None,
        "scale": {"paddingInner": 0 if has_cells else 0.25},
        "axis": placed | {"labelAngle": angle, "grid": False} | slanted,
    }


def _logarithmic(axis: Axis) -> JsonMap:
    return {"type": "log"} if axis.scale == "log" else {"type": "symlog", "constant": axis.linear_within}


def _values(figure: Figure, axis: Axis) -> list[float]:
    """All that an axis has to have room for."""
    found = [
        float(getattr(row, axis.field)) for row in figure.table.rows if can_be_drawn(axis, getattr(row, axis.field))
    ]
    if axis is getattr(figure, along_of(figure)):
        ends = (name for layer in figure.layers for name in (layer.low, layer.high) if name)
        found += [
            float(value)
            for name, row in itertools.product(ends, figure.table.rows)
            if can_be_drawn(axis, value := getattr(row, name))
        ]
    return found


def _ticks(axis: Axis, values: Sequence[float]) -> list[float]:
    """Few values of a logarithmic axis themselves, else powers of ten; none where the library's own are better."""
    if axis.scale == "symlog":
        first = 10 * axis.linear_within  # the ends of the linear part are too near to 0 for a label
        positive = _decades([value for value in values if value >= first], first)
        negative = _decades([-value for value in values if value <= -first], first)
        return [*(-value for value in reversed(negative)), 0.0, *positive] if positive or negative else []
    known = sorted(set(values))
    if len(known) <= FEW_VALUES:
        return known
    decades = _decades(known, known[0])
    return decades if len(decades) > 2 else _steps(known[0], known[-1])


def _decades(values: Sequence[float], least: float) -> list[float]:
    """Powers of ten from `least` to the largest value, at most `MOST_TICKS`."""
    if not values:
        return []
    first, last = math.ceil(math.log10(least) - 1e-9), math.floor(math.log10(max(values)) + 1e-9)
    step = max(1, -(-(last - first + 1) // MOST_TICKS))
    return [float(f"1e{power}") for power in range(last, first - 1, -step)][::-1]


def _steps(least: float, largest: float) -> list[float]:
    """1, 2 and 5 times powers of ten between these; none where they would be fewer than two."""
    powers = range(math.floor(math.log10(least)), math.ceil(math.log10(largest)) + 1)
    found = [
        value for power in powers for digit in (1, 2, 5) if least <= (value := float(f"{digit}e{power}")) <= largest
    ]
    return found if len(found) > 1 else []


def _colour(figure: Figure, layer: Layer, style: Style) -> JsonMap:
    axis = figure.colour
    assert axis
    if axis.scale != "category":
        return {"color": _heat(figure, axis, style)}
    names = _series(figure, axis)
    legend = _legend(names, axis.title, style)

    def told(values: Sequence[Any]) -> JsonMap:
        scale = {"domain": names, "range": [values[place % len(values)] for place in range(len(names))]}
        return {"field": axis.field, "type": "nominal", "scale": scale, "legend": legend}

    found = {"color": told(style.colours)}
    if layer.mark == "point":
        found["shape"] = told(_shapes(figure, names))
    beside = next((side for side, of in (("x", figure.x), ("y", figure.y)) if of.scale == "category"), "")
    has_lines = any(other.mark in ("line", "step") for other in figure.layers)
    if beside and not has_lines and layer.mark in ("bar", "interval", "point"):
        found[f"{beside}Offset"] = {"field": axis.field, "sort": names}
    return found


def _shapes(figure: Figure, names: Sequence[str]) -> list[str]:
    """A marker for each series; in the legend a stroke or a square for those that have lines or bars alone."""
    assert figure.colour
    field = figure.colour.field
    marks: dict[str, set[str]] = {name: set() for name in names}
    for layer in figure.layers:
        for row in figure.table.rows:
            if is_in(layer, row):
                marks[getattr(row, field)].add(layer.mark)
    own = (SHAPES[place % len(SHAPES)] for place in range(len(names)))
    return [
        shape if "point" in marks[name] else "square" if "bar" in marks[name] else "stroke"
        for name, shape in zip(names, own, strict=True)
    ]


def _readable(figure: Figure, axis: Axis) -> JsonMap:
    """Black on light cells and white on dark ones."""
    values = [*(axis.ends or ()), *_values(figure, axis)]
    middle = (min(values) + max(values)) / 2 if values else 0.0
    return {"condition": {"test": f"datum['{axis.field}'] > {middle!r}", "value": "black"}, "value": "white"}


def _series(figure: Figure, colour: Axis) -> list[str]:
    """The names of all series, in their order."""
    return list(colour.order) or list(dict.fromkeys(getattr(row, colour.field) for row in figure.table.rows))


def _heat(figure: Figure, axis: Axis, style: Style) -> JsonMap:
    is_diverging = axis.scale == "diverging"
    scale: JsonMap = {"scheme": DIVERGING, "domainMid": 0} if is_diverging else {"scheme": HEAT}
    if axis.scale in ("log", "symlog"):
        scale |= _logarithmic(axis)
    if axis.ends:
        scale["domain"] = list(axis.ends)
    ticks = _ticks(axis, _values(figure, axis)) if axis.scale in ("log", "symlog") else []
    legend = ({"values": ticks} if ticks else {}) | {
        "labelExpr": NUMBER,
        "orient": "bottom",
        "title": axis.title,
        "titleLimit": style.assumed_width,
        "gradientLength": 0.5 * style.assumed_width,
        "gradientThickness": style.font_size,
    }
    return {"field": axis.field, "type": "quantitative", "scale": scale, "legend": legend}


def _legend(names: Sequence[str], title: str, style: Style) -> JsonMap | None:
    """Below the plot, where it covers no data; None for one series alone."""
    if len(names) < 2:
        return None
    symbol = SYMBOL * style.font_size / 8
    longest = max(map(len, names)) * LETTER * style.font_size + symbol
    return {
        "orient": "bottom",
        "title": title or None,
        "columns": max(1, min(len(names), int(style.assumed_width / longest))),
        "labelLimit": style.assumed_width - symbol,
        "symbolLimit": 0,
    }
