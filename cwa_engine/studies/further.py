"""Cells of a study that its grid does not have: runs made from the reports of those that are done. torch-free."""

from __future__ import annotations

from collections.abc import Sequence

from cwa_engine.spec import RunSpec
from cwa_engine.studies.study import Cell


def further_cells(grid: Sequence[Cell], specs: Sequence[RunSpec]) -> tuple[Cell, ...]:
    """The specs that a question's `further` gave as cells, numbered behind those of the grid."""
    return tuple(
        Cell(number, {"model": _model(spec), "weights": f"{len(spec.weights):,} given"}, spec)
        for number, spec in enumerate(specs, start=len(grid) + 1)
    )


def _model(spec: RunSpec) -> str:
    return f"{spec.model}@{spec.revision}" if spec.revision else spec.model
