"""The second step of a study: runs that its question makes from the reports of the grid. torch-free."""

from __future__ import annotations

from collections.abc import Sequence

from cwa_engine.spec import RunSpec
from cwa_engine.studies.study import Cell, Study

_OF_THE_RANKING = ("model", "metrics", "topk")  # fields that have another meaning where weights are given


def further_cells(study: Study, grid: Sequence[Cell], specs: Sequence[RunSpec]) -> tuple[Cell, ...]:
    """The specs that a question's `further` gave as cells, numbered behind those of the grid."""
    return tuple(Cell(number, _values(study, spec), spec) for number, spec in enumerate(specs, start=len(grid) + 1))


def _values(study: Study, spec: RunSpec) -> dict[str, str]:
    """What tells the run from others: its model, whatever else differs in the grid, and how many weights it was given."""
    named = spec.model if not spec.revision or "revision" in study.grid else f"{spec.model}@{spec.revision}"
    others = [name for name, values in study.grid.items() if len(values) > 1 and name not in _OF_THE_RANKING]
    return {
        "model": named,
        **{name: str(getattr(spec, name)) for name in others},
        "weights": f"{len(spec.weights):,} given",
    }
