"""The page of one weight: what it is, what it does, and what it carries."""

from __future__ import annotations

from collections.abc import Iterator

from cwa_engine.reports.page_figures import figure_section
from cwa_engine.reports.page_parts import Block, Facts, Headline, Page, Section, Statement, Statements
from cwa_engine.reports.page_tables import Column, ends, interval, number, percent, ratio, signed, table, text
from cwa_engine.weight_rows import WeightCard

NATS, INTERVAL = "Δ loss (nats/token)", "95 % interval"


def card_parts(card: WeightCard) -> Page:
    """All that the page of a weight says."""
    return Page(
        subject=f"weight {card.facts.target} of {card.model}",
        kicker=f"Weight of {card.model}",
        title=card.facts.target,
        question="What does the model lose with this weight, and what does the weight carry?",
        answer=tuple(_answer(card)),
        headlines=tuple(_headlines(card)),
        sections=(
            figure_section(card, "weight", card.facts.target),
            Section("damage", "Damage", tuple(_damage(card))),
            Section("ranks", "Rank under every metric", tuple(_ranks(card))),
            Section("carries", "What it carries", tuple(_carries(card))),
            Section("life", "Life of its channel", tuple(_life(card))),
            Section("tokens", "Tokens", tuple(_tokens(card))),
            Section("method", "Method", (Facts("", tuple(_method(card))),)),
            Section("limits", "Limits", tuple(_unknown(card))),
        ),
    )


def _answer(card: WeightCard) -> Iterator[Statement]:
    alone = card.alone
    if alone.collapsed_at:
        yield Statement(f"Without it the loss is not finite, from {alone.collapsed_at} on.")
    else:
        yield Statement(
            f"Without it the loss changes by {signed(alone.delta_nll)} nats per token, 95 % interval "
            f"{interval(alone.delta_low, alone.delta_high)}."
        )


def _headlines(card: WeightCard) -> Iterator[Headline]:
    facts = card.facts
    of = f"rank {facts.rank:,} by |value| of its tensor" if facts.rank is not None else ""
    yield Headline("Value", number(facts.value), of)
    if facts.smaller_share is not None:
        yield Headline("Larger than", percent(facts.smaller_share), "of the |values| of its tensor")
    inside = f"{interval(card.alone.delta_low, card.alone.delta_high)} nats per token, 95 % interval"
    yield Headline("Change of the loss without it", signed(card.alone.delta_nll), inside)
    yield Headline("Perplexity, over that of the intact model", f"× {ratio(card.alone.perplexity_ratio)}")
    yield Headline(
        "Perplexity of the intact model", number(card.baseline.perplexity), f"{card.baseline.tokens:,} tokens"
    )


def _damage(card: WeightCard) -> Iterator[Block]:
    if card.neighbours:
        yield table(
            "Together with its neighbours",
            card.neighbours,
            (
                text("the largest of its", "group"),
                Column("weights", lambda row: len(row.targets)),
                Column("joint Δ", lambda row: row.joint.delta_nll, signed),
                Column(INTERVAL, lambda row: (row.joint.delta_low, row.joint.delta_high), lambda pair: interval(*pair)),
                Column("sum of each alone", "sum_alone", signed),
                Column("joint less the sum", "excess", signed),
                ends("95 % interval of that", "excess_low", "excess_high"),
                text("with", lambda row: ", ".join(row.targets[1:])),
            ),
            note="All of them zeroed at once, beside the sum of what each does by itself; nats per token.",
        )
    if card.doses:
        columns = (
            text("change", "perturbation"), Column(NATS, "delta_nll", signed), ends(INTERVAL, "delta_low", "delta_high"),
            Column("perplexity ratio", "perplexity_ratio", ratio), text("not finite from", "collapsed_at"),
        )  # fmt: skip
        yield table("Dose response", card.doses, columns)
    if card.bits:
        yield table("Each bit of the stored value, flipped", card.bits, _BITS, note=_BIT_NOTE, most=len(card.bits))


_BITS = (
    text("dtype", "dtype"), Column("bit", "bit"), text("part", "part"), Column("value", "value"),
    Column("flipped", "flipped", number), text("becomes", "becomes"),
    text("in the layer's range", "in_range"), Column(NATS, "delta_nll", signed), ends(INTERVAL, "delta_low", "delta_high"),
    Column("perplexity ratio", "perplexity_ratio", ratio), text("not finite from", "collapsed_at"),
    text("held by the model's dtype", "held"), Column("texts", "sequences"),
)  # fmt: skip
_BIT_NOTE = "Measured on a few of the texts; what the loaded model's dtype cannot hold exactly is not measured."


def _ranks(card: WeightCard) -> Iterator[Block]:
    if card.ranks:
        columns = (
            text("metric", "metric"), Column("rank", "rank"), Column("of", "of"), Column("equal", "equal"),
            Column("rank in matrices", "rank_in_matrices"), Column("of matrices", "of_matrices"), Column("score", "score"),
            text("not known, as", "why"),
        )  # fmt: skip
        yield table("Rank among all weights that a metric ranks", card.ranks, columns)


def _carries(card: WeightCard) -> Iterator[Block]:
    if not card.activity:
        return
    columns = (
        text("channel", "side"), text("module", "module"), Column("number", "channel"), Column("largest", "largest"),
        Column("typical", "typical"), text("token", "token"), Column("at", "position"), Column("text", "text"),
        text("largest on", lambda row: ", ".join(f"{each.token or '?'} ({number(each.value)})" for each in row.top_tokens)),
    )  # fmt: skip
    yield table("Largest activations of its channels", card.activity, columns)


def _life(card: WeightCard) -> Iterator[Block]:
    if card.life:
        columns = (
            Column("layer", "layer"), Column("value", "value"), Column("without the weight", "damaged"),
            Column("written by the block", "written"), text("event", "event"),
        )  # fmt: skip
        yield table(f"Channel {card.channel} of the residual stream", card.life, columns, note=_LIFE_NOTE)
    if card.shares:
        yield table(
            "Who writes it where it is born", card.shares, (text("weight", "target"), Column("share", "share", percent))
        )


_LIFE_NOTE = "Behind each decoder block, at the token where it is largest; layer -1 is what the first block is given."


def _tokens(card: WeightCard) -> Iterator[Block]:
    columns = (
        text("token", "token"), Column("id", "token_id"), Column("intact", "intact"), Column("without the weight", "damaged"),
    )  # fmt: skip
    if card.raised:
        yield table("Tokens that it makes likelier", card.raised, columns, note="Mean probabilities over all places.")
    if card.lowered:
        yield table(
            "Tokens that it makes less likely", card.lowered, columns, note="Mean probabilities over all places."
        )
    if mass := card.stopwords:
        sentence = (
            f"All stopwords together have the mean probability {number(mass.intact)}, and {number(mass.damaged)} without the "
            f"weight ({mass.words:,} words, {mass.tokens:,} tokens)."
        )
        yield Statements((Statement(sentence),), "Stopwords")


def _method(card: WeightCard) -> Iterator[tuple[str, str]]:
    facts, texts = card.facts, card.texts
    yield "model", card.model
    if card.revision:
        yield "revision", card.revision
    yield "fingerprint of its files", card.fingerprint
    yield "tensor", f"{facts.parameter}, {' × '.join(f'{size:,}' for size in facts.shape)}, {facts.dtype}"
    yield "computed in", f"{card.dtype}{f' on {card.device}' if card.device else ''}"
    yield "texts", f"{texts.source}, SHA-256 {texts.sha256}"
    yield "protocol", card.baseline.protocol
    if card.version:
        yield "cwtool", card.version
    for stage, seconds in card.timings.items():
        yield f"time, {stage}", f"{number(seconds)} s"


def _unknown(card: WeightCard) -> Iterator[Block]:
    if card.unknown:
        yield Statements(tuple(map(Statement, card.unknown)), "Not found out")
    yield Statements(
        (
            Statement("One weight of one model, on one set of texts: others may differ."),
            Statement("No control was measured beside it: `cwtool run --weights` with --control does that."),
        )
    )
