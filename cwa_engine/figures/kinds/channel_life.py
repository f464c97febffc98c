"""The life of one channel of the residual stream: where its spike is born, and where it is cancelled. torch-free."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from cwa_engine.figures.captions import card_model
from cwa_engine.figures.figure import Axis, Figure, FigureKind, Layer, table_of
from cwa_engine.weight_rows import WeightCard

INTACT, DAMAGED, WRITTEN = "intact", "without the weight", "written by the block"


@dataclass(frozen=True, slots=True)
class ChannelValue:
    """The channel behind one decoder block, at the token where it is largest."""

    layer: int  # -1 for what the first block is given
    series: str  # INTACT, DAMAGED or WRITTEN
    value: float
    event: str  # "born", "cancelled" or ""


def channel_life(card: WeightCard) -> Iterator[Figure]:
    """One figure, of a weight that has to do with a channel of the residual stream."""
    if not card.life:
        return
    rows = [
        ChannelValue(at.layer, series, value, at.event)
        for series, values in (
            (INTACT, [at.value for at in card.life]),
            (DAMAGED, [at.damaged for at in card.life]),
            (WRITTEN, [at.written for at in card.life]),
        )
        for at, value in zip(card.life, values, strict=True)
    ]
    events = [at for at in card.life if at.event]
    said = (
        ", ".join(f"it is {at.event} in layer {at.layer}" for at in events) or "no layer makes or cancels a spike in it"
    )
    yield Figure(
        name="channel_life",
        title=f"Channel {card.channel} of the residual stream, and {card.facts.target}",
        caption=f"{card_model(card)}. The channel behind each decoder block (-1: what the first is given), at the "
        f"token where it is largest in the intact model; {said}. What a block writes is added to what it is given.",
        table=table_of("channel_life", ChannelValue, rows),
        x=Axis("layer", "layer"),
        y=Axis("value", "activation", "symlog", linear_within=1.0),
        colour=Axis("series", "", "category", (INTACT, DAMAGED, WRITTEN)),
        layers=(
            Layer("rule", at=0.0, dashed=True),
            *(Layer("rule", at=float(at.layer), upright=True, dashed=True) for at in events),
            Layer("line"),
            Layer("point"),
        ),
    )


FIGURES = (
    FigureKind(
        "channel_life", 30, "weight", "the channel of the weight behind each block, intact and without it", channel_life
    ),
)
