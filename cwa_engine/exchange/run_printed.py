"""The tables of a run that papers print: its damage beside controls, and its top weights. torch-free."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from cwa_engine.base.p_values import digits_of_p
from cwa_engine.base.table import Table
from cwa_engine.exchange.any_printed import any_printed
from cwa_engine.exchange.printed import Cell, Number, PrintedTable, Strong, columns_with_cells
from cwa_engine.questions.tasks import TaskComparison
from cwa_engine.records.run_report import RunReport
from cwa_engine.records.run_summary import DamageSummary
from cwa_engine.reports.methods import file_name, protocol_line
from cwa_engine.rows import SHOWN, DamagePoint, TopWeight

DAMAGE, WEIGHTS, TASKS = "damage", "weights_", "task_results"
_DAMAGE_COLUMNS = (
    "Ranking", "Perturbation", "k", "Change of loss", "Perplexity ratio", "Worst control", "Its change of loss", "p", "Verdict",
)  # fmt: skip
_WEIGHT_COLUMNS = ("Rank", "Weight", "Layer", "Component", "Value", "Score")


def printed_of_run(report: RunReport, metric: str | None = None, k: int | None = None) -> dict[str, PrintedTable]:
    """Name -> table, of all that there is to print; of one metric alone, and of its first `k` weights, where given."""
    found = [
        *_damage(report, metric),
        *(_weights(report, name, k or SHOWN) for name in report.metrics if metric in (None, name)),
        *_tasks(report, metric),
    ]
    return {table.name: table for table in found}


def _damage(report: RunReport, metric: str | None) -> Iterator[PrintedTable]:
    groups = [group for group in report.summary.damage if group.critical and metric in (None, group.metric)]
    if not groups:
        return
    rows = [_damage_row(group, group.critical) for group in groups if group.critical]
    kept = [place for place in columns_with_cells(rows) if place > 1 or len({row[place] for row in rows}) > 1]
    common = [
        f"{_DAMAGE_COLUMNS[place].lower()} {rows[0][place]}" for place in range(2) if place not in kept
    ]  # what all rows have in common is said once
    bold = any(isinstance(cell, Strong) for row in rows for cell in row)
    caption = (
        f"Damage by the k highest ranked {report.spec.structure}s of {_model(report)}"
        + (f" ({', '.join(common)})" if common else "")
        + f", whose perplexity is {report.baseline.perplexity:.4g} when intact. The change of the loss is in nats per token, "
        "paired per text, with 95 % intervals (jackknife over texts, Student's t). The worst control is the one whose "
        f"leading draw, of as many as stand in brackets, changes the loss most{_texts_of_draws(groups)}; p is of the exact "
        f"rank test against its draws. Bold: distinguishable from its controls{_none_is(bold)}. {_protocol(report)}"
    )
    yield PrintedTable(
        DAMAGE,
        caption,
        tuple(_DAMAGE_COLUMNS[place] for place in kept),
        tuple(tuple(row[place] for place in kept) for row in rows),
    )


def _texts_of_draws(groups: Sequence[DamageSummary]) -> str:
    """On how many texts the leading draws of the worst controls were measured; nothing for runs of early versions."""
    worst = [group.worst_control for group in groups if group.worst_control]
    known = sorted({control.largest_texts for control in worst if control.largest_texts is not None})
    return f", measured on {' or '.join(f'{texts:,}' for texts in known)} texts" if known else ""


def _damage_row(group: DamageSummary, point: DamagePoint) -> tuple[Cell, ...]:
    change: Number | str = f"collapsed at {point.collapsed_at}"
    ratio: Cell = None
    if point.collapsed_at is None:
        change = Number(point.delta_nll, point.delta_low, point.delta_high)
        ratio = Number(point.perplexity_ratio, digits=4)
    worst = group.worst_control
    others: tuple[Cell, ...] = (None, None, None)
    if worst:
        p = None if worst.p_value is None else Number(worst.p_value, digits=digits_of_p(worst.p_value))
        collapsed = worst.largest is None or not math.isfinite(worst.largest)
        control: Cell = "collapsed" if collapsed else Number(worst.largest, worst.largest_low, worst.largest_high)
        others = f"{worst.control} ({worst.draws:,})", control, p
    judged = group.judged
    bold = judged is not None and judged.distinguishable
    return (
        group.metric, group.perturbation, group.k, Strong(change) if bold else change, ratio, *others,
        group.outcome or "no controls",
    )  # fmt: skip


def _weights(report: RunReport, metric: str, k: int) -> PrintedTable:
    ranked = report.topk(metric)
    weights = [weight for weight in ranked if weight.rank <= k]
    asked = any(weight.stable is not None for weight in weights)
    bold = any(weight.stable for weight in weights)
    rows = [_weight_row(weight) for weight in weights]
    kept = columns_with_cells(rows)
    stable = f"Bold: in the top list of every repeat by other texts{_none_is(bold)}. " if asked else ""
    caption = (
        f"The {len(weights):,} {report.spec.structure}s of {_model(report)} that {metric} ranks first, of "
        f"{len(ranked):,} in the run's table; indices are (out, in). {stable}{_protocol(report)}"
    )
    return PrintedTable(
        f"{WEIGHTS}{metric}",
        caption,
        tuple(_WEIGHT_COLUMNS[place] for place in kept),
        tuple(tuple(row[place] for place in kept) for row in rows),
    )


def _tasks(report: RunReport, metric: str | None) -> Iterator[PrintedTable]:
    """Scores of the intact model and of the damaged one, paired by document."""
    rows = [row for row in report.task_comparisons if metric in (None, row.metric)]
    if not rows:
        return
    several = len({row.task for row in rows}) > 1 or len({row.measure for row in rows}) > 1
    what = "tasks" if several else f"{rows[0].measure} of {rows[0].task}"
    caption = (
        f"Downstream {what}, {_model(report)}: mean score before and after each change of weights, and their difference, "
        "paired by document, with its 95 % interval; p is by random signs. `against` says what the change is compared with: "
        "the intact model, or a control. Cells are empty where the model collapsed on a document, which counts as lost. "
        f"{_protocol(report)}"
    )
    yield any_printed(TASKS, Table("task_results.csv", TaskComparison), rows, caption)


def _weight_row(weight: TopWeight) -> tuple[Cell, ...]:
    score = None if weight.score is None else Number(weight.score, digits=4)
    target: Cell = Strong(weight.target) if weight.stable else weight.target
    return weight.rank, target, weight.layer, weight.component, Number(weight.value, digits=4), score


def _none_is(bold: bool) -> str:
    return "" if bold else ", which none is"


def _model(report: RunReport) -> str:
    commit = f" at {report.model.revision[:12]}" if report.model.revision else ""
    return f"{file_name(report.model.name)}{commit}"


def _protocol(report: RunReport) -> str:
    return (
        f"Texts and protocol: {protocol_line(report)}. Run {report.run_id}, cwtool {report.versions.get('cwtool', '')}."
    )
