"""The card of a weight as rich tables: the command line and the screen of a weight show them. No Textual in it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cwa_engine.rows import DamagePoint, WeightFacts
from cwa_engine.weight_rows import BitFlip, ChannelActivity, MetricRank, NeighbourDamage, TokenShift, WeightCard
from cwa_tui.tables.answers import TABLE, floor_sentence
from cwa_tui.text import format as fmt
from cwa_tui.text.visible import words

_PARTS = {"sign": "sign", "exponent": "exp.", "fraction": "frac."}


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
    if card.bits:
        found.append(bits_table(card))
    if card.activity:
        found.append(activity_table(card.activity))
    if card.raised or card.lowered:
        found.append(tokens_table(card))
    if card.life:
        found.append(life_table(card))
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
    table = _table("rank among all weights", "metric", "score>", "rank>", "equal>", "of>", "in matrices>")
    for row in rows:
        table.add_row(
            row.metric,
            "-" if row.score is None else fmt.number(row.score),
            "-" if row.rank is None else f"{row.rank:,}",
            f"{row.equal:,}" if row.equal else "",
            f"{row.of:,}",
            "-" if row.rank_in_matrices is None else f"{row.rank_in_matrices:,}",
        )
    notes = []
    if any(row.rank_in_matrices is not None for row in rows):
        sizes = ", ".join(f"{of:,} ({' '.join(names)})" for of, names in _by(rows, "of_matrices").items())
        notes.append(f"in matrices: its rank among the weights of the decoder blocks' matrices, {sizes}")
    notes += [f"{', '.join(names)}: {why}" for why, names in _by(rows, "why").items() if why]
    return Group(table, *(words(note, "dim") for note in notes))


def _by(rows: Sequence[MetricRank], field: str) -> dict[Any, list[str]]:
    """The metrics by what a field of their rows says."""
    found: dict[Any, list[str]] = {}
    for row in rows:
        found.setdefault(getattr(row, field), []).append(row.metric)
    return found


def damage_table(card: WeightCard) -> RenderableType:
    """What zeroing the weight does, and its multiples."""
    table = _table("the weight changed", "change", "texts>", "perplexity>", "ratio>", "Δ nats/token>", "95 % interval>")
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


def _figures(point: DamagePoint) -> tuple[str, ...]:
    if point.collapsed_at:
        return str(point.sequences), "-", "-", "collapse", "-"
    return (
        str(point.sequences),
        fmt.perplexity(point.perplexity),
        fmt.ratio(point.perplexity_ratio),
        delta(point.delta_nll),
        interval(point.delta_low, point.delta_high),
    )


def delta(value: float | None) -> str:
    """A change in nats per token in four digits, however small: most weights do little. Or that it is beyond a float."""
    return f"{value:+.4g}" if fmt.is_known(value) else fmt.NOT_FINITE


def interval(low: float | None, high: float | None) -> str:
    """`[-0.0018, +0.0013]`."""
    return f"[{low:+.2g}, {high:+.2g}]" if fmt.is_known(low) and fmt.is_known(high) else "-"


def neighbours_table(rows: Sequence[NeighbourDamage]) -> RenderableType:
    """The weight zeroed together with the largest others, beside the sum of what each does alone."""
    table = _table(
        "zeroed together with the largest others of its row, column or tensor",
        "others",
        "together>",
        "summed>",
        "difference>",
        "95 % interval>",
    )
    for row in rows:
        table.add_row(
            f"{len(row.targets) - 1} in {row.group}",
            delta(row.joint.delta_nll),
            delta(row.sum_alone),
            delta(row.excess),
            interval(row.excess_low, row.excess_high),
        )
    lines = []
    for row in rows:
        alone = (f"{t} {delta(d)}" for t, d in zip(row.targets[1:], row.alone[1:], strict=False))
        lines += [f"  {other}" for other in alone]
    return Group(
        table,
        words(f"nats per token on {rows[0].joint.sequences} texts; each alone:", "dim"),
        words("\n".join(dict.fromkeys(lines)), "dim"),
    )


def bits_table(card: WeightCard) -> RenderableType:
    """What flipping each stored bit does: a line for each bit of each dtype that changes the loss most, by range."""
    table = _table(
        "one stored bit flipped; Δ in nats per token",
        "dtype",
        "bit",
        "becomes>",
        "range",
        "Δ>",
        "95 % interval>",
    )
    for dtype in dict.fromkeys(row.dtype for row in card.bits):
        rows = [row for row in card.bits if row.dtype == dtype]
        for row in _telling(rows):
            table.add_row(
                dtype,
                f"{row.bit:>2} {_PARTS[row.part]}",
                f"{row.flipped:.4g}" if row.becomes == "finite" else row.becomes,
                "in" if row.in_range else "out",
                _bit_damage(row),
                interval(row.delta_low, row.delta_high),
            )
    return Group(table, words("\n".join(_bit_notes(card.bits)), "dim"))


def _telling(rows: Sequence[BitFlip]) -> list[BitFlip]:
    """The flips of sign and exponent, and of the others the one that changes the loss most; the highest bit first."""
    fraction = [row for row in rows if row.part == "fraction"]
    most = max(fraction, key=lambda row: abs(row.delta_nll or 0.0), default=None)
    return [row for row in reversed(rows) if row.part != "fraction" or row is most]


def _bit_damage(row: BitFlip) -> str:
    if not row.held:
        return "not held"
    return delta(row.delta_nll) if row.delta_nll is not None else "collapse"


def _bit_notes(bits: Sequence[BitFlip]) -> list[str]:
    texts = max(row.sequences for row in bits)
    notes = [f"measured on {texts} of the evaluation texts; of the fraction the bit that does most is shown"]
    for is_in, name in ((True, "in range of the layer"), (False, "out of range")):
        rows = [row for row in bits if row.held and row.in_range is is_in]
        collapsed = sum(row.delta_nll is None for row in rows)
        largest = max((abs(row.delta_nll) for row in rows if row.delta_nll is not None), default=None)
        said = "" if largest is None else f", the largest change {largest:.4g} nats per token"
        if rows:
            notes.append(f"{name}: {len(rows)} flips{said}" + (f", {collapsed} collapses" if collapsed else ""))
    places = Counter(row.collapsed_at for row in bits if row.collapsed_at)
    notes += [f"collapse first at {place}: {number} flips" for place, number in places.items()]
    if missing := sum(not row.held for row in bits):
        notes.append(f"not held: {missing} flipped values that the model's dtype cannot hold exactly; not measured")
    return notes


def activity_table(rows: Sequence[ChannelActivity]) -> RenderableType:
    """What its channels carry: the largest activation, where it is, and the usual size."""
    table = _table("what its channels carry", "side", "channel>", "largest>", "usual size>", "times>", "at")
    for row in rows:
        times = f"x{abs(row.largest) / row.typical:,.4g}" if row.typical else "-"
        table.add_row(
            row.side, str(row.channel), fmt.number(row.largest), fmt.number(row.typical), times, words(_at(row))
        )
    lines = []
    for row in rows:
        lines.append(
            f"{row.side} of {row.module}" if row.side != "residual" else f"residual stream behind {row.module}"
        )
        lines.append("  " + ", ".join(f"{_token(top.token)} {fmt.number(top.value)}" for top in row.top_tokens))
    return Group(table, words("\n".join(lines), "dim"))


def _at(row: ChannelActivity) -> str:
    where = f"text {row.text}"
    return f"{_token(row.token)} at {row.position}, {where}" if row.token is not None else where


def _token(token: str | None) -> str:
    return "?" if token is None else f"'{token}'"


def tokens_table(card: WeightCard) -> RenderableType:
    """Tokens whose mean probability the weight raises, and those that it lowers."""
    table = _table("mean probability of tokens", "raised", "without>", "with>", "lowered", "without>", "with>")
    for raised, lowered in zip_longest(card.raised, card.lowered):
        table.add_row(*_shift(raised), *_shift(lowered))
    notes = []
    if card.stopwords:
        mass = card.stopwords
        notes.append(
            f"{mass.words} English stopwords ({mass.tokens} tokens) together: {fmt.number(mass.intact)} with the weight, "
            f"{fmt.number(mass.damaged)} without it"
        )
    return Group(table, *(words(note, "dim") for note in notes))


def _shift(row: TokenShift | None) -> tuple[Text, str, str]:
    if row is None:
        return Text(), "", ""
    return words(_token(row.token)), fmt.number(row.damaged), fmt.number(row.intact)


def life_table(card: WeightCard) -> RenderableType:
    """The channel from block to block, where its spike is born and cancelled, and which weights make it."""
    table = _table(
        f"channel {card.channel} of the residual stream, at the token where it is largest",
        "behind block>", "value>", "without the weight>", "written>", "spike",
    )  # fmt: skip
    for row in card.life:
        name = "input" if row.layer < 0 else str(row.layer)
        cells = (fmt.number(row.value), fmt.number(row.damaged), fmt.number(row.written))
        table.add_row(name, *cells, row.event, style="bold" if row.event else "")
    if not card.shares:
        return table
    shares = _table("who writes the spike where it is born", "weight", "share>", "x w>")
    for share in card.shares:
        is_own = share.target == card.facts.target
        shares.add_row(
            words(share.target),
            f"{100 * share.share:.2f} %",
            fmt.number(share.contribution),
            style="bold" if is_own else "",
        )
    return Group(table, "", shares)


def _table(title: str, *columns: str) -> Table:
    """A table; columns that end in > are flushed right."""
    table = Table(title=title, **TABLE)
    for column in columns:
        is_right = column.endswith(">")
        table.add_column(column.removesuffix(">"), justify="right" if is_right else "left", overflow="fold")
    return table
