"""Figures of a page: what a browser draws, in each look, and below it the data. torch-free."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cwa_engine.base.plain import JsonMap
from cwa_engine.figures.figure import Figure, Source
from cwa_engine.figures.registry import figures_of
from cwa_engine.reports.drawing import HOW_TO_LOOK, vega_lite
from cwa_engine.reports.page_parts import FigureBlock, Section
from cwa_engine.reports.page_tables import table_of

MOST_ROWS = 40  # of a figure's data on the page
MOST_CSV = 16_000  # bytes of a figure's CSV in a link
MOST_DRAWN = 450_000  # bytes of all specifications of a page


def figure_section(source: Any, of: Source, subject: str) -> Section:
    """All figures of a source; `subject` is how a command line names it."""
    return Section("figures", "Figures", tuple(_blocks(figures_of(source, of), subject)), HOW_TO_LOOK)


def _blocks(figures: Sequence[Figure], subject: str) -> Iterator[FigureBlock]:
    """Each figure with its data, and with its drawing as long as the page has room for it."""
    room = MOST_DRAWN
    for figure in figures:
        light, dark = (_with_rows(vega_lite(figure, look)) for look in ("light", "dark"))
        specs = {"light": light, "dark": list(_changes(light, dark))}
        size = len(json.dumps(specs))
        drawn, room = size <= room, room - size if size <= room else room
        yield _block(figure, subject, specs if drawn else None)


def _block(figure: Figure, subject: str, specs: Mapping[str, Any] | None) -> FigureBlock:
    found = figure.table
    content = found.table.to_bytes(found.rows)
    whole = f"{figure.name}.csv, which `cwtool report {subject} --figures FOLDER` writes"
    data = table_of(found, "data of this figure", whole, MOST_ROWS)
    link = "" if len(content) > MOST_CSV else f"data:text/csv;base64,{base64.b64encode(content).decode()}"
    caption = _LONG_WORD.sub(lambda word: f"{word[0][:_LONGEST_WORD]}…", figure.caption)
    return FigureBlock(figure.name, figure.title, caption, data, specs, link)


_LONGEST_WORD = 120  # of a caption: a name may have thousands of characters, and each figure has it
_LONG_WORD = re.compile(rf"\S{{{_LONGEST_WORD + 1},}}")


def _with_rows(spec: JsonMap) -> JsonMap:
    """The specification with rows in place of CSV: a browser's reader of CSV makes code of text, which a page forbids.

    Layers without a row are left out, as Vega-Lite warns of each.
    """
    layers = [{**layer, "data": _rows_of(layer["data"])} for layer in spec["layer"]]
    return {**spec, "layer": [layer for layer in layers if layer["data"].get("rows") != [] or "params" in layer]}


def _rows_of(data: JsonMap) -> JsonMap:
    if "format" not in data:
        return data
    heading, *lines = csv.reader(io.StringIO(data["values"]))
    read = [_number if data["format"]["parse"][name] == "number" else _text for name in heading]
    rows = [[each(value) for each, value in zip(read, line, strict=True)] for line in lines]
    return {"columns": heading, "rows": rows}


def _number(value: str) -> float | None:
    return float(value) if value else None


def _text(value: str) -> str | None:
    return value or None


def _changes(one: Any, other: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """(where, what stands there in `other`), of all in which two specifications differ; the data of both is the same."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        for name, entry in one.items():
            yield from _changes(entry, other[name], (*path, name))
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for place, entry in enumerate(one):
            yield from _changes(entry, other[place], (*path, place))
    elif one != other:
        yield path, other
