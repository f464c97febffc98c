"""Which family each model of a study is of, and where that is known from."""

from __future__ import annotations

import re
from collections.abc import Sequence

from cwa_engine.guide.catalog import catalog_model
from cwa_engine.records.run_report import RunReport

GUIDE, LAYOUT = "the model guide", "the names of their parameters"


def families_of(reports: Sequence[RunReport]) -> tuple[tuple[str, ...], str]:
    """(the family of each run's model, where it is from): the guide where it knows all of them, else their layout.

    A layout is called by what its decoder blocks are called, "gpt_neox.layers". Models of the same layout may have been
    trained by different people on different texts.
    """
    entries = [catalog_model(report.model.name) for report in reports]
    known = [entry.family for entry in entries if entry]
    if len(known) == len(reports):
        return tuple(known), GUIDE
    layouts = [_layout(report) for report in reports]
    names: dict[tuple[str, ...], str] = {}
    for layout in layouts:
        if layout not in names:
            name = layout[0].split(".#")[0] if layout else "unknown"
            taken = sum(other.split(" (")[0] == name for other in names.values())
            names[layout] = f"{name} ({taken + 1})" if taken else name
    return tuple(names[layout] for layout in layouts), LAYOUT


def _layout(report: RunReport) -> tuple[str, ...]:
    """The names of the parameters of its blocks, without the numbers of blocks and experts."""
    names = (row.parameter for row in report.ranked if row.layer is not None)
    return tuple(sorted({re.sub(r"(?<=\.)\d+(?=\.|$)", "#", name) for name in names}))
