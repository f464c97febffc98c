"""All kinds of figures, and the figures of a source. torch-free."""

from __future__ import annotations

import importlib
import itertools
import pkgutil
from collections.abc import Container, Iterator
from dataclasses import replace
from typing import Any

from cwa_engine.figures import kinds
from cwa_engine.figures.figure import Figure, FigureKind, Source, with_undrawn_counted


def _kinds() -> Iterator[FigureKind]:
    """The `FIGURES` of every module of `kinds/`."""
    for module in pkgutil.iter_modules(kinds.__path__, f"{kinds.__name__}."):
        yield from importlib.import_module(module.name).FIGURES


FIGURE_KINDS: tuple[FigureKind, ...] = tuple(sorted(_kinds(), key=lambda kind: (kind.of, kind.place, kind.name)))


def figures_of(source: Any, of: Source) -> list[Figure]:
    """Every figure that a source has measured the data of, in the order of their kinds, each with a name of its own.

    `of` says what the source is: a RunReport, a StudyReport, a Comparison or a WeightCard.
    """
    found: dict[str, Figure] = {}
    for kind in FIGURE_KINDS:
        for figure in kind.make(source) if kind.of == of else ():
            name = _free(figure.name, found)
            table = replace(figure.table, table=replace(figure.table.table, name=f"{name}.csv"))
            found[name] = with_undrawn_counted(replace(figure, name=name, table=table))
    return list(found.values())


def _free(name: str, taken: Container[str]) -> str:
    """The name; with a number where names that differ in other characters alone came to the same."""
    return next(
        free for number in itertools.count(1) if (free := name if number == 1 else f"{name}_{number}") not in taken
    )
