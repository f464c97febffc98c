"""The card of a weight made by hand: numbers that are the same everywhere, and that are found again on screen."""

from __future__ import annotations

import math
from dataclasses import replace

from cwa_engine.base.plain import from_plain
from cwa_engine.rows import Baseline, DamagePoint, NumericalFloor, Quantile, TextUse, ValueDistribution, WeightFacts
from cwa_engine.weight_rows import (
    BitFlip,
    ChannelActivity,
    ChannelLayer,
    ChannelShare,
    MetricRank,
    NeighbourDamage,
    StopwordMass,
    TokenActivation,
    TokenShift,
    WeightCard,
)
from tests.tui.fake_client import BASELINE, point

TARGET = "model.layers.1.mlp.down_proj.weight[34,46]"
ALONE = from_plain(DamagePoint, point(1, weights=1))
BITS = {"bfloat16": (16, 7), "float16": (16, 10), "float32": (32, 23)}  # dtype -> bits, and how many are the fraction


def card() -> WeightCard:
    """Of a weight whose removal costs +1.8791 nats per token."""
    facts = WeightFacts(
        TARGET, "model.layers.1.mlp.down_proj.weight", "weight", 1, "down", None, (64, 170), False, "float32", 5826,
        0.297, 32, 0, 0.997, _values(), (),
    )  # fmt: skip
    return WeightCard(
        model="smollm2-135m",
        revision=None,
        fingerprint="",
        dtype="float32",
        facts=facts,
        texts=TextUse("built-in passages", "", 132, 66, 66, False, 0),
        baseline=from_plain(Baseline, BASELINE),
        ranks=(
            MetricRank("grad_x_weight", 0.25, 3, 10_880, 0, 1, 10_240),
            MetricRank("wanda", 21.57, 1, 10_240, 0, 1, 10_240),
            MetricRank("super_weight", None, None, 2048, why="only weights of down projections are ranked"),
        ),
        alone=replace(ALONE, kl=0.25, top1_agreement=0.75),
        neighbours=(NeighbourDamage("row", (TARGET, "b"), ALONE, 1.5, (1.8791, -0.3791), 0.3791, 0.2, 0.5),),
        doses=tuple(
            replace(ALONE, perturbation=f"scale {factor}", delta_nll=change, delta_low=change - 0.2, delta_high=change + 0.2)
            for factor, change in ((0.0, 1.8791), (0.5, 0.4), (0.9, 0.01), (1.1, -0.01), (2.0, 0.6), (-1.0, 2.5))
        ),
        bits=tuple(_flip(dtype, bit) for dtype, (bits, _) in BITS.items() for bit in range(bits)),
        activity=(
            ChannelActivity(
                "output", "model.layers.1.mlp.down_proj", 34, -19.7, 0.4, " the", 262, 0, 1,
                (TokenActivation(-19.7, " the", 262, 0, 1), TokenActivation(-3.1, ",", 11, 4, 2)),
            ),
        ),
        raised=(TokenShift(" the", 262, 0.05, 0.02),),
        lowered=(TokenShift("!", 0, 0.01, 0.03),),
        stopwords=StopwordMass(127, 210, 0.31, 0.12),
        channel=34,
        life=(
            ChannelLayer(-1, -0.2, -0.2, -0.2, ""),
            ChannelLayer(0, -0.3, -0.3, -0.1, ""),
            ChannelLayer(1, -400.0, -10.0, -399.7, "born"),
            ChannelLayer(2, -401.0, -11.0, -1.0, ""),
            ChannelLayer(3, -2.0, -1.5, 399.0, "cancelled"),
        ),
        shares=(ChannelShare(TARGET, 0.975, -389.7),),
        floor=NumericalFloor(0.0, 1e-6),
    )  # fmt: skip


def _values() -> ValueDistribution:
    return ValueDistribution(
        10_880, 0, 0.0, 0.1, (Quantile(0.0, -0.3), Quantile(1.0, 0.3)), (-0.3, 0.0, 0.3), (5440, 5440)
    )


def _flip(dtype: str, bit: int) -> BitFlip:
    """The highest bit of the exponent makes the model collapse; the lower a bit, the less it does."""
    bits, fraction = BITS[dtype]
    part = "sign" if bit == bits - 1 else "fraction" if bit < fraction else "exponent"
    if bit == bits - 2:
        return BitFlip(dtype, bit, part, 0.297, math.inf, False, None, None, "model.layers.1", "infinity", sequences=3)
    change = 2.0 ** (bit - bits + 3)
    return BitFlip(
        dtype, bit, part, 0.297, 0.3, bit % 4 > 0, change, math.exp(change), None, delta_low=change / 2,
        delta_high=2 * change, sequences=3,
    )  # fmt: skip
