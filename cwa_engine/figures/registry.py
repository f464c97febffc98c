"""All kinds of figures, and the figures of a source. torch-free."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from typing import Any

from cwa_engine.figures import kinds
from cwa_engine.figures.figure import Figure, FigureKind, Source, with_undrawn_counted


def _kinds() -> Iterator[FigureKind]:
    """The `FIGURES` of every module of `kinds/`."""
    for module in pkgutil.iter_modules(kinds.__path__, f"{kinds.__name__}."):
        yield from importlib.import_module(module.name).FIGURES


FIGURE_KINDS: tuple[FigureKind, ...] = tuple(sorted(_kinds(), key=lambda kind: (kind.of, kind.place, kind.name)))


def figures_of(source: Any, of: Source) -> list[Figure]:
    """Every figure that a source has measured the data of, in the order of their kinds.

    `of` says what the source is: a RunReport, a StudyReport, a Comparison or a WeightCard.
    """
    return [with_undrawn_counted(figure) for kind in FIGURE_KINDS if kind.of == of for figure in kind.make(source)]
