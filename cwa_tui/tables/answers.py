"""What a run answered beside its rankings and damage, as rich tables: the command line and the run screen show them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cwa_engine.base.p_values import shown_p
from cwa_engine.questions.critical_set import CriticalSet
from cwa_engine.questions.fidelity import Fidelity
from cwa_engine.questions.interactions import Interaction
from cwa_engine.questions.spike_removal import SpikeRemoval, SpikeRemovalStep, removal_sentence
from cwa_engine.questions.stability import StabilityMean
from cwa_engine.questions.tasks import TaskComparison
from cwa_engine.rows import NumericalFloor, Spike, to_plain
from cwa_tui.text import format as fmt
from cwa_tui.text.visible import words

TABLE: dict[str, Any] = {"box": box.SIMPLE_HEAD, "title_justify": "left", "title_style": "bold", "pad_edge": False}
SHOWN_ROWS = 30  # of tables that may be long; the whole is in the run's files
VERDICT_STYLES = {
    "harmful": "bold green",
    "helpful": "bold green",
    "indistinguishable": "bold yellow",
    "not tested": "yellow",
}


def floor_sentence(floor: NumericalFloor) -> str:
    """Below which changes of the loss mean nothing."""
    return (
        f"numerical floor: rounding changes the loss by up to {floor.rounding:.2g}, the baseline repeated by "
        f"{floor.repeat:+.2g} nats per token"
    )


def interactions_table(rows: Sequence[Interaction]) -> RenderableType:
    """What each unit does alone, and what it adds to the set; those that matter come first."""
    table = Table(title="each weight alone, and its share of the set", **TABLE)
    for name in ("metric", "k", "change", "weight", "alone", "share of the set", "matters"):
        table.add_column(
            name, justify="right" if name in ("k", "alone", "share of the set") else "left", overflow="fold"
        )
    roles = ("together", "alone", "inert")
    for row in sorted(rows, key=lambda row: roles.index(row.role))[:SHOWN_ROWS]:
        figures = (fmt.finite_delta(value) for value in (row.alone, row.share))
        table.add_row(row.metric, str(row.k), row.perturbation, row.target, *figures, _ROLES[row.role])
    counts = {role: sum(row.role == role for row in rows) for role in roles}
    said = f"{counts['alone']} matter alone, {counts['together']} only together, {counts['inert']} not at all"
    more = f"; {len(rows) - SHOWN_ROWS} more in interactions.csv" if len(rows) > SHOWN_ROWS else ""
    return Group(table, Text(f"{said}{more}"))


_ROLES = {"together": "only together", "alone": "alone", "inert": "no"}


def stability_table(rows: Sequence[StabilityMean]) -> Table:
    """How far rankings by other texts agree, mean over all pairs of repeats."""
    pairs = rows[0].pairs
    said = "two halves of the texts" if pairs == 1 else f"mean of {pairs} pairs of repeats"
    table = Table(title=f"stability, {said}", **TABLE)
    for name in ("metric", "k", "Jaccard", "by chance", "rank-biased overlap", "Spearman", "in every repeat"):
        table.add_column(name, justify="left" if name == "metric" else "right")
    for row in rows:
        spearman = "-" if row.spearman is None else f"{row.spearman:.3f}"
        figures = f"{row.jaccard:.3f}", f"{row.chance:.2g}", f"{row.rbo:.3f}", spearman
        table.add_row(row.metric, str(row.k), *figures, str(row.in_every_repeat))
    return table


def fidelity_table(rows: Sequence[Fidelity]) -> Table:
    """How well scores foretell the measured |loss change| of zeroing one unit."""
    table = Table(title="what metrics foretell of single weights", **TABLE)
    for name in ("metric", "measured", "Spearman", "top overlap"):
        table.add_column(name, justify="left" if name == "metric" else "right")
    for row in rows:
        spearman = "-" if row.spearman is None else f"{row.spearman:.3f}"
        table.add_row(row.metric, str(row.units), spearman, f"{row.overlap} of {row.top}")
    return table


def tasks_table(rows: Sequence[TaskComparison]) -> Table:
    """Scores of tasks in every case, beside the intact model's and those of the leading draw of a control."""
    table = Table(title="tasks of lm-evaluation-harness, paired by document", **TABLE)
    left = ("task", "change", "case", "beside", "95 % interval")
    for name in ("task", "change", "case", "beside", "before", "after", "difference", "95 % interval", "p"):
        table.add_column(name, justify="left" if name in left else "right", overflow="fold")
    for row in rows[:SHOWN_ROWS]:
        case = row.selection if row.seed is None else f"{row.selection} {row.seed}"
        change = f"{row.metric} {row.k} {row.perturbation}"
        if row.difference is None or row.low is None or row.high is None or row.p_value is None:
            figures = [_share(row.before), "collapsed" if row.lost else _share(row.after), "-", "-", "-"]
        else:
            interval = f"{row.low:+.3f} to {row.high:+.3f}"
            figures = [_share(row.before), _share(row.after), f"{row.difference:+.3f}", interval, shown_p(row.p_value)]
        table.add_row(*(words(text) for text in (f"{row.task} {row.measure}", change, case, row.against, *figures)))
    if len(rows) > SHOWN_ROWS:
        table.caption = f"{len(rows) - SHOWN_ROWS} more in summary.json"
    return table


def _share(mean: float | None) -> str:
    return "collapsed" if mean is None else f"{mean:.3f}"


def critical_set_table(found: CriticalSet) -> Table:
    """The weights of the smallest set found, one after the other, and what they do together."""
    few = "smallest set found that multiplies" if found.reached else "no set found multiplies"
    table = Table(title=f"{few} perplexity by {found.factor:g}", **TABLE)
    for name in ("weights", "with", "ratio, scoring texts", "ratio, others", "Δ nats/token", "95 % interval"):
        table.add_column(name, justify="left" if name in ("with", "95 % interval") else "right", overflow="fold")
    for step in found.steps:
        ratios = fmt.ratio(step.scoring_ratio), fmt.ratio(step.perplexity_ratio)
        is_finite = fmt.is_known(step.delta_nll)
        damage = fmt.finite_delta(step.delta_nll), fmt.interval(step.delta_low, step.delta_high) if is_finite else ""
        table.add_row(str(step.size), step.target, *ratios, *damage)
    return table


def spikes_table(rows: Sequence[Spike]) -> Table:
    """What each weight makes of its spike, and at which token that is."""
    table = Table(title="largest outputs that these weights make", **TABLE)
    for name in ("weight", "output", "times usual", "share", "token", "at", "text"):
        table.add_column(name, justify="left" if name in ("weight", "token") else "right", overflow="fold")
    for row in rows:
        figures = fmt.number(row.output), _size(row.times_typical), f"{row.share:.0%}"
        table.add_row(row.target, *figures, *_token_cells(row))
    return table


def spike_removal_table(found: SpikeRemoval) -> RenderableType:
    """The weights that were zeroed one after the other, and the largest spike before and after each."""
    said = Text(removal_sentence(to_plain(found)))
    if not found.steps:
        return said
    table = Table(title="weights behind the largest spike, zeroed one after the other", **TABLE)
    for name in ("step", "weight", "share", "times usual", "then", "Δ nats/token", "token", "at", "text"):
        table.add_column(name, justify="left" if name in ("weight", "token") else "right", overflow="fold")
    for step in found.steps:
        sizes = _size(step.times_typical), _size(step.largest_after)
        damage = fmt.finite_delta(step.delta_nll)
        table.add_row(str(step.step), step.target, f"{step.share:.0%}", *sizes, damage, *_token_cells(step))
    table.caption = "then: the largest output of any down projection after. Δ: on the scoring texts, all zeroed so far"
    return Group(table, said)


def _size(size: float) -> str:
    return fmt.NOT_FINITE if not fmt.is_known(size) else f"{size:,.0f}" if size >= 10 else f"{size:.1f}"


def _token_cells(row: Spike | SpikeRemovalStep) -> tuple[Text, str, str]:
    """Token, position and text of a spike. A token is whatever text it is: never markup."""
    token = "-" if row.token is None else f"'{row.token}'"
    position, text = ("-" if place is None else str(place) for place in (row.position, row.text))
    return Text(token), position, text
