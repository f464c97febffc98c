"""The grid of a study as a table: a row for each cell, a column for each metric. No Textual in it.

table = study_grid(progress, summaries, stages)  # a `ViewTable`
reasons = failures(progress)  # why cells have none
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from cwa_engine.records.run_summary import DamageSummary, RunSummary
from cwa_engine.rows import GIVEN
from cwa_engine.studies.progress import CellProgress
from cwa_engine.studies.study import Cell
from cwa_tui.tables.columns import Column, fit
from cwa_tui.tables.rows import TableRow, ViewTable
from cwa_tui.text import format as fmt

STATE_CELLS = 19  # `▶ score 13/40 ██░░░`
LEGEND = " ".join(f"{sign} {outcome}" for outcome, sign in fmt.OUTCOME_SIGNS.items())
OUTCOME_STYLES = {"harmful": "green", "helpful": "green", "indistinguishable": "yellow", "not tested": "yellow"}


class Stage(Protocol):
    """How far a stage of a run is: `StageProgress` of a job."""

    @property
    def stage(self) -> str: ...
    @property
    def done(self) -> int: ...
    @property
    def total(self) -> int: ...
    @property
    def unit(self) -> str: ...


def study_grid(
    cells: Sequence[CellProgress], summaries: Mapping[str, RunSummary], stages: Mapping[str, Stage | None]
) -> ViewTable:
    """A row for each cell, with what its run found by each metric: the perplexity ratio of the largest k that was compared.

    `summaries` are those of done runs, `stages` those that run, both by run id. Keys of rows are numbers of cells. A column
    of a metric has the exact ratio as its value; k, perturbation and verdict are hidden columns beside it.
    """
    metrics = _metrics([entry.cell for entry in cells], summaries)
    varied = list(dict.fromkeys(name for entry in cells for name in entry.cell.values))
    columns = [
        Column("cell", "#", max(1, len(str(len(cells)))), right=True),
        *(_value_column(name, [entry.cell.values.get(name, "") for entry in cells]) for name in varied),
        Column("state", "state", STATE_CELLS),
        *(_metric_column(metric, place) for place, metric in enumerate(metrics)),
        Column("why", "why", 20, most=100, optional=len(metrics) + 1),
        Column("run", "run id", 24, most=60, cut="start", hidden=True),
        *(
            Column(f"{metric} {name}", f"{name} of {metric}", 14, most=30, hidden=True)
            for metric in metrics
            for name in ("k", "change", "verdict")
        ),
    ]
    if not any(entry.error for entry in cells):
        columns = [column for column in columns if column.key != "why"]
    rows = [_row(entry, metrics, summaries.get(entry.run_id), stages.get(entry.run_id)) for entry in cells]
    return ViewTable("times the perplexity, by metric", tuple(columns), tuple(rows))


def left_out(table: ViewTable, room: int) -> list[str]:
    """Labels of the columns that have no room in `room` cells: a face says so."""
    shown = [column for column in table.columns if not column.hidden]
    widths = fit(shown, room)
    return [column.label for column in shown if column.key not in widths]


def failures(cells: Sequence[CellProgress]) -> list[str]:
    """`3 gpt2, seed 1: there is no such model (hint)`, of each cell that has an error."""
    return [f"{entry.cell.number} {entry.cell.label}: {_reason(entry)}" for entry in cells if entry.error]


def _reason(entry: CellProgress) -> str:
    error = entry.error
    return f"{error} ({error.hint})" if error and error.hint else str(error or "")


def counted(cells: Sequence[CellProgress]) -> str:
    """`3 of 12 done, 1 failed, 2 running`."""
    states = [entry.state for entry in cells]
    others = (state for state in ("failed", "cancelled", "running", "queued", "waiting") if state in states)
    return ", ".join(
        [f"{states.count('done')} of {len(cells)} done", *(f"{states.count(state)} {state}" for state in others)]
    )


def _metrics(cells: Sequence[Cell], summaries: Mapping[str, RunSummary]) -> list[str]:
    """What the runs rank by, as asked for, and what those that are done ranked beside it."""
    asked = [metric for cell in cells for metric in (*((GIVEN,) if cell.spec.weights else ()), *cell.spec.metrics)]
    found = [group.metric for summary in summaries.values() for group in summary.damage if group.critical]
    return list(dict.fromkeys([*asked, *found]))


def _value_column(name: str, values: Sequence[str]) -> Column:
    longest = max(map(len, (name, *values)))
    if name == "model":
        return Column(name, name, min(longest, 14), most=longest, cut="start")
    return Column(name, name.replace("_", " "), min(longest, 12), most=longest, cut="middle")


def _metric_column(metric: str, place: int) -> Column:
    """The first is always shown; the others while they fit."""
    return Column(metric, metric, 13, most=max(13, len(metric)), cut="middle", optional=place)


def _row(entry: CellProgress, metrics: Sequence[str], summary: RunSummary | None, stage: Stage | None) -> TableRow:
    state, styles = _state(entry, stage), {"state": fmt.STATE_STYLES.get(entry.state, "")}
    cells: dict[str, str] = {"cell": str(entry.cell.number), **entry.cell.values, "state": state}
    values: dict[str, Any] = {"cell": entry.cell.number, "state": entry.state}
    cells |= {"why": _reason(entry), "run": entry.run_id}
    if entry.state == "done" and summary is None:
        cells |= dict.fromkeys(metrics, "reading")
    elif entry.state == "done" and summary:
        for metric in metrics:
            group = summary.headline_of(metric)
            cells[metric] = _found(group, metric in [ranking.metric for ranking in summary.rankings])
            if group and group.critical:
                styles[metric] = OUTCOME_STYLES.get(group.outcome or "", "")
                values[metric] = group.critical.perplexity_ratio
                beside = {"k": group.k, "change": group.perturbation, "verdict": group.verdict or ""}
                values |= {f"{metric} {name}": value for name, value in beside.items()}
                cells |= {f"{metric} {name}": str(value) for name, value in beside.items()}
    return TableRow(str(entry.cell.number), cells, styles=styles, values=values)


def _state(entry: CellProgress, stage: Stage | None) -> str:
    """`▶ score 13/40 ██░░░`, `✓ done, reused`, `✗ failed, try 2`."""
    sign = fmt.STATE_SIGNS.get(entry.state, "?")
    if entry.state == "running" and stage:
        return f"{sign} {fmt.progress(stage.stage, stage.done, stage.total, STATE_CELLS - 2, stage.unit)}"
    said = fmt.signed(entry.state)
    if entry.reused:
        return f"{said}, reused"
    return f"{said}, try {entry.attempt}" if entry.attempt > 1 else said


def _found(group: DamageSummary | None, is_ranked: bool) -> str:
    """`x4.62 ▲`: the perplexity ratio and the sign of the verdict."""
    if group is None or group.critical is None:
        return "ranked" if is_ranked else "-"
    ratio = "collapsed" if group.critical.collapsed_at else fmt.ratio(group.critical.perplexity_ratio)
    sign = fmt.OUTCOME_SIGNS.get(group.outcome or "not tested", "?")
    return f"{ratio} {sign}"
