"""Cells of a study that its grid does not have: runs made from the reports of those that are done. torch-free."""

from __future__ import annotations

from collections.abc import Sequence

from cwa_engine.spec import RunSpec
from cwa_engine.studies.study import Cell, Study, cells_of

_OF_THE_RANKING = ("model", "metrics", "topk")  # fields that have another meaning where weights are given


def further_cells(study: Study, specs: Sequence[RunSpec]) -> tuple[Cell, ...]:
    """The specs that a question's `further` gave as cells, numbered behind those of the grid."""
    numbers = range(len(cells_of(study)) + 1, len(cells_of(study)) + 1 + len(specs)) if specs else ()
    return tuple(Cell(number, _values(study, spec), spec) for number, spec in zip(numbers, specs, strict=True))


def _values(study: Study, spec: RunSpec) -> dict[str, str]:
    """What tells the run from others: its model, whatever else differs in the grid, and how many weights it was given."""
    named = spec.model if not spec.revision or "revision" in study.grid else f"{spec.model}@{spec.revision}"
    others = [name for name, values in study.grid.items() if len(values) > 1 and name not in _OF_THE_RANKING]
    return {
        "model": named,
        **{name: str(getattr(spec, name)) for name in others},
        "weights": f"{len(spec.weights):,} given",
    }
