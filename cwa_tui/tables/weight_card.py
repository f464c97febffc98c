"""The card of a weight as rich tables: the command line and the screen of a weight show them. No Textual in it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cwa_engine.rows import DamagePoint, WeightFacts
from cwa_engine.weight_rows import MetricRank, NeighbourDamage, WeightCard
from cwa_tui.tables.answers import TABLE, floor_sentence
from cwa_tui.text import format as fmt
from cwa_tui.text.visible import words

GROUPS = {"row": "of its row", "column": "of its column", "vector": "of its vector", "tensor": "of its tensor"}


def card_report(card: WeightCard) -> RenderableType:
    """All that is known of a weight, section by section."""
    parts: list[RenderableType] = [headline(card)]
    for section in sections(card):
        parts += ["", section]
    return Group(*parts)


def sections(card: WeightCard) -> list[RenderableType]:
    """The tables of a card that have something to say, in reading order."""
    found: list[RenderableType] = []
    if card.ranks:
        found.append(ranks_table(card.ranks))
    found.append(damage_table(card))
    if card.neighbours:
        found.append(neighbours_table(card.neighbours))
    if card.floor:
        found.append(Text(floor_sentence(card.floor), style="dim"))
    if card.unknown:
        found.append(words("\n".join(f"not known: {reason}" for reason in card.unknown), "yellow"))
    return found


def headline(card: WeightCard) -> Text:
    """Which weight of which model, its value, and what was measured."""
    facts = card.facts
    at = ["outside the decoder blocks" if facts.layer is None else f"decoder block {facts.layer}", facts.component]
    at += [f"expert {facts.expert}"] if facts.expert is not None else []
    shape = " x ".join(f"{size:,}" for size in facts.shape)
    revision = f" · {card.revision[:12]}" if card.revision else ""
    baseline = card.baseline
    said = (
        f"{card.model}{revision} · {card.dtype}\n"
        f"{' · '.join(at)} · tensor of {shape}\n"
        f"{_value(facts)}\n"
        f"intact: perplexity {fmt.perplexity(baseline.perplexity)} on {baseline.sequences} texts of {card.texts.source} "
        f"({baseline.tokens:,} tokens); ranked by {card.texts.scoring} others"
    )
    return Text.assemble(words(facts.target, "bold"), "\n", words(said))


def _value(facts: WeightFacts) -> str:
    if not math.isfinite(facts.value):
        return f"value {fmt.NOT_FINITE}"
    said = f"value {facts.value:.7g}"
    if facts.rank is None or facts.smaller_share is None:
        return said
    ties = f" ({facts.equal:,} equal)" if facts.equal else ""
    return f"{said}: rank {facts.rank:,} of {facts.distribution.count:,} by |value| in its tensor{ties}, {percentile(facts)}"


def percentile(facts: WeightFacts) -> str:
    """`larger than 99.9987 % of them`, with as many digits as tell it from all."""
    share = facts.smaller_share or 0.0
    missing = 100 * (1 - share)
    digits = 1 if missing >= 0.1 or missing <= 0 else min(9, 1 - math.floor(math.log10(missing)))
    return f"larger than {100 * share:.{digits}f} % of them"


def ranks_table(rows: Sequence[MetricRank]) -> RenderableType:
    """Score and rank by each metric, of all weights that it ranks and of the matrices of decoder blocks."""
    table = _table("rank among all weights", "metric", "score>", "rank>", "of>", "rank in matrices>", "of matrices>")
    for row in rows:
        table.add_row(
            row.metric,
            fmt.number(row.score) if row.score is not None else "-",
            _rank(row.rank, row.equal),
            f"{row.of:,}",
            "-" if row.rank_in_matrices is None else f"{row.rank_in_matrices:,}",
            f"{row.of_matrices:,}",
        )
    why: dict[str, list[str]] = {}
    for row in rows:
        if row.why:
            why.setdefault(row.why, []).append(row.metric)
    return Group(table, *(words(f"{', '.join(names)}: {reason}", "dim") for reason, names in why.items()))


def _rank(rank: int | None, equal: int) -> str:
    if rank is None:
        return "-"
    return f"{rank:,} (={equal:,})" if equal else f"{rank:,}"


def damage_table(card: WeightCard) -> RenderableType:
    """What zeroing the weight does, and its multiples."""
    table = _table("the weight changed", "change", "perplexity>", "ratio>", "Δ nats per token>", "95 % interval>")
    for point, name in ((card.alone, "zeroed"), *((dose, _dose(dose)) for dose in card.doses)):
        table.add_row(name, *_figures(point))
    notes = [f"{name}: the model collapses, first at {point.collapsed_at}" for point, name in _collapsed(card)]
    alone = card.alone
    if alone.kl is not None and alone.top1_agreement is not None:
        notes.append(
            f"zeroed: KL from the intact model {fmt.number(alone.kl)} nats per token, the same likeliest token at "
            f"{100 * alone.top1_agreement:.2f} % of all tokens"
        )
    return Group(table, *(words(note, "dim") for note in notes))


def _collapsed(card: WeightCard) -> Iterable[tuple[DamagePoint, str]]:
    rows = ((card.alone, "zeroed"), *((dose, _dose(dose)) for dose in card.doses))
    return [(point, name) for point, name in rows if point.collapsed_at]


def _dose(point: DamagePoint) -> str:
    return point.perturbation.replace("scale ", "x ")


def _figures(point: DamagePoint) -> tuple[str, str, str, str]:
    return (
        fmt.perplexity(point.perplexity),
        fmt.ratio(point.perplexity_ratio),
        fmt.finite_delta(point.delta_nll),
        fmt.interval(point.delta_low, point.delta_high),
    )


def neighbours_table(rows: Sequence[NeighbourDamage]) -> RenderableType:
    """The weight zeroed together with the largest others, beside the sum of what each does alone."""
    table = _table(
        "zeroed together with the largest others",
        "others",
        "together>",
        "sum of each>",
        "difference>",
        "95 % interval>",
    )
    for row in rows:
        table.add_row(
            f"{len(row.targets) - 1} {GROUPS.get(row.group, row.group)}",
            fmt.finite_delta(row.joint.delta_nll),
            fmt.finite_delta(row.sum_alone),
            fmt.finite_delta(row.excess),
            fmt.interval(row.excess_low, row.excess_high),
        )
    lines = []
    for row in rows:
        alone = (f"{t} {fmt.finite_delta(d)}" for t, d in zip(row.targets[1:], row.alone[1:], strict=False))
        lines += [f"  {other}" for other in alone]
    return Group(table, words("each alone, in nats per token:", "dim"), words("\n".join(dict.fromkeys(lines)), "dim"))


def _table(title: str, *columns: str) -> Table:
    """A table; columns that end in > are flushed right."""
    table = Table(title=title, **TABLE)
    for column in columns:
        is_right = column.endswith(">")
        table.add_column(column.removesuffix(">"), justify="right" if is_right else "left", overflow="fold")
    return table
