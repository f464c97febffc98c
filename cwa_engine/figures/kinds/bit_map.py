"""What flipping each stored bit does: of critical sets, and of one weight in three dtypes. torch-free."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cwa_engine.figures.captions import NATS, card_model, finite, linear_within, measured_on, model_of, ranking_of
from cwa_engine.figures.figure import Axis, Figure, FigureKind, Layer, distinct, figure_name, table_of
from cwa_engine.questions.bits import BIT_FLIP
from cwa_engine.records.run_report import RunReport
from cwa_engine.rows import DamagePoint
from cwa_engine.weight_rows import BitFlip, WeightCard

FLIP = f"{BIT_FLIP} "  # single bits are called `bit_flip 3`
IN_RANGE, OUT_OF_RANGE = "in range", "out of range"


@dataclass(frozen=True, slots=True)
class SetBit:
    """One bit of every weight of a critical set flipped; bit 0 is the lowest. Changes of the loss are nats per token."""

    bit: str
    top: str  # "top 10"
    change: float | None
    low: float | None
    high: float | None
    texts: int
    collapsed: bool


@dataclass(frozen=True, slots=True)
class WeightBit:
    """One bit of the weight flipped in a dtype, which makes `value` `flipped`. Changes of the loss are nats per token."""

    bit: str
    case: str  # "bfloat16, in range of the layer"
    part: str
    value: float
    flipped: float
    change: float | None
    low: float | None
    high: float | None
    texts: int
    collapsed: bool


def run_bits(report: RunReport) -> Iterator[Figure]:
    """A figure for each ranking of which every bit was flipped."""
    points = [group.critical for group in report.summary.damage if group.critical]
    flips = [point for point in points if point.perturbation.startswith(FLIP)]
    for metric in dict.fromkeys(point.metric for point in flips):
        rows = [_of_set(point) for point in flips if point.metric == metric]
        name = figure_name("bit_map", metric)
        yield Figure(
            name=name,
            title=f"Each bit of the top k by {ranking_of(metric)} flipped",
            caption=f"{model_of(report)}. {measured_on(report)} The same bit of all weights of a critical set was "
            "flipped; the highest is the sign, 0 the lowest of the fraction.",
            table=table_of(name, SetBit, rows),
            x=Axis("bit", "bit", "category", _descending([row.bit for row in rows])),
            y=Axis("top", "weights", "category", distinct([row.top for row in rows])),
            colour=Axis("change", NATS, "symlog", linear_within=linear_within(report)),
            layers=(Layer("cell"), Layer("beyond", where=(("collapsed", True),))),
        )


def _of_set(point: DamagePoint) -> SetBit:
    known = point.collapsed_at is None
    change, low, high = (finite(n) if known else None for n in (point.delta_nll, point.delta_low, point.delta_high))
    bit = point.perturbation.removeprefix(FLIP)
    return SetBit(bit, f"top {point.k:,}", change, low, high, point.sequences, not known)


def card_bits(card: WeightCard) -> Iterator[Figure]:
    """One figure of the weight: each dtype twice, in range of the layer and out of it."""
    if not card.bits:
        return
    rows = [_of_weight(flip) for flip in card.bits]
    texts = max(row.texts for row in rows)
    cases = [
        f"{dtype}, {which}" for dtype in distinct([f.dtype for f in card.bits]) for which in (IN_RANGE, OUT_OF_RANGE)
    ]
    not_held = sum(not flip.held for flip in card.bits)
    yield Figure(
        name="bit_map",
        title=f"Each bit of {card.facts.target} flipped",
        caption=f"{card_model(card)}. The value {card.facts.value:.6g} was rounded to each dtype and one bit of it "
        "flipped; in range: no larger than the largest |value| of its layer. Measured on "
        f"{texts:,} evaluation texts."
        + (f" {not_held:,} flipped values cannot be held by {card.dtype} and were not measured." if not_held else ""),
        table=table_of("bit_map", WeightBit, rows),
        x=Axis("bit", "bit", "category", _descending([row.bit for row in rows])),
        y=Axis("case", "dtype", "category", tuple(case for case in cases if any(row.case == case for row in rows))),
        colour=Axis("change", NATS, "symlog", linear_within=max(card.floor.largest if card.floor else 0.0, 1e-3)),
        layers=(Layer("cell"), Layer("beyond", where=(("collapsed", True),))),
    )


def _of_weight(flip: BitFlip) -> WeightBit:
    return WeightBit(
        str(flip.bit), f"{flip.dtype}, {IN_RANGE if flip.in_range else OUT_OF_RANGE}", flip.part, flip.value, flip.flipped,
        flip.delta_nll, flip.delta_low, flip.delta_high, flip.sequences, flip.collapsed_at is not None,
    )  # fmt: skip


def _descending(bits: Sequence[str]) -> tuple[str, ...]:
    """The highest bit first, as numbers are written."""
    return tuple(sorted(set(bits), key=int, reverse=True))


FIGURES = (
    FigureKind(
        "bit_map", 25, "run", "the change of the loss by flipping each stored bit of the critical sets", run_bits
    ),
    FigureKind(
        "bit_map", 20, "weight", "the change of the loss by flipping each bit of the weight, in three dtypes", card_bits
    ),
)
