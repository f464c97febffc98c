"""Figures of a page: what a browser draws, in each look, and below it the data. torch-free."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Sequence
from typing import Any

from cwa_engine.figures.figure import Figure
from cwa_engine.reports.drawing import vega_lite
from cwa_engine.reports.page_parts import FigureBlock
from cwa_engine.reports.page_tables import table_of

LOOKS = ("light", "dark")
MOST_ROWS = 40  # of a figure's data on the page
MOST_CSV = 16_000  # bytes of a figure's CSV in a link
MOST_DRAWN = 450_000  # bytes of all specifications of a page


def figure_blocks(figures: Sequence[Figure], subject: str) -> Iterator[FigureBlock]:
    """Each figure with its data, and with its drawing as long as the page has room for it.

    `subject` is how a command line names what the figures are of.
    """
    room = MOST_DRAWN
    for figure in figures:
        specs = {look: vega_lite(figure, look) for look in LOOKS}
        size = len(json.dumps(shared(specs)))
        drawn, room = size <= room, room - size if size <= room else room
        yield _block(figure, subject, specs if drawn else None)


def _block(figure: Figure, subject: str, specs: dict[str, Any] | None) -> FigureBlock:
    found = figure.table
    content = found.table.to_bytes(found.rows)
    whole = f"{figure.name}.csv, which `cwtool report {subject} --figures FOLDER` writes"
    data = table_of(found, "data of this figure", whole, MOST_ROWS)
    link = "" if len(content) > MOST_CSV else f"data:text/csv;base64,{base64.b64encode(content).decode()}"
    return FigureBlock(figure.name, figure.title, figure.caption, data, specs and shared(specs), link)


def shared(specs: dict[str, Any]) -> dict[str, Any]:
    """Specifications of one figure without what they have in common, which is most of them: it stands under "both"."""
    names = {name for spec in specs.values() for name in spec}
    first = next(iter(specs.values()))
    both = {name: first[name] for name in names if all(spec.get(name) == first.get(name) for spec in specs.values())}
    return {
        "both": both,
        **{look: {name: spec[name] for name in spec if name not in both} for look, spec in specs.items()},
    }
