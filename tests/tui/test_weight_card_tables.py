"""The tables of a weight card: every number is on its own line at 80 columns, and what is not measured says so."""

from __future__ import annotations

import dataclasses
import math

import pytest
from rich.console import Console

from cwa_engine.rows import (
    Baseline,
    DamagePoint,
    NumericalFloor,
    Quantile,
    TextUse,
    ValueDistribution,
    WeightFacts,
)
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
from cwa_tui.tables.weight_card import card_report

DOWN = "model.layers.11.mlp.down_proj"
TARGET = "model.layers.11.mlp.down_proj.weight[507,1229]"


def point(**fields: object) -> DamagePoint:
    known = DamagePoint(
        metric="given", k=1, perturbation="zero", selection="critical", seed=None, weights=1, nll=3.1, perplexity=22.2,
        delta_nll=-0.000123, delta_low=-0.00023456, delta_high=-0.00001234, perplexity_ratio=0.9999, sequences=66,
    )  # fmt: skip
    return dataclasses.replace(known, **fields)  # type: ignore[arg-type]


COLLAPSE = point(
    perturbation="scale 1e+38", nll=math.nan, perplexity=math.nan, delta_nll=math.nan, delta_low=math.nan,
    delta_high=math.nan, perplexity_ratio=math.nan, collapsed_at="model.layers.11.mlp.down_proj",
)  # fmt: skip


def flip(bit: int, part: str, **fields: object) -> BitFlip:
    known = BitFlip(
        "bfloat16",
        bit,
        part,
        -0.5,
        -0.0000123456,
        True,
        -1.7714e-05,
        0.99,
        None,
        delta_low=-0.000152,
        delta_high=8.31e-05,
        sequences=4,
    )
    return dataclasses.replace(known, **fields)  # type: ignore[arg-type]


@pytest.fixture
def card() -> WeightCard:
    values = ValueDistribution(884_736, 0, 0.0, 0.1, (Quantile(0.0, -2.0), Quantile(1.0, 2.0)), (-2.0, 2.0), (884_736,))
    top = TokenActivation(29220.0, "\x1b[31mred", 7, 0, 17)
    return WeightCard(
        model="smollm2-135m", revision=None, fingerprint="0", dtype="bfloat16",
        facts=WeightFacts(TARGET, "model.layers.11.mlp.down_proj.weight", "weight", 11, "down", None, (576, 1536), False,
                          "bfloat16", 9, -0.5466309, 8586, 11, 0.99, values, ()),
        texts=TextUse("built-in passages", "0", 132, 66, 66, False, 0),
        baseline=Baseline(3.12, 22.76, 1.0, 66, 9385, "one text a sequence", 49152),
        ranks=(MetricRank("grad_x_weight", 2.679e-06, 44_936_075, 134_515_008, 992, 43_536_408, 106_168_320),
               MetricRank("super_weight", None, None, 26_542_080, why="it ranks weights of down projections alone")),
        alone=point(kl=1e-7, top1_agreement=0.9998),
        neighbours=(NeighbourDamage("column", (TARGET, "model.layers.11.mlp.down_proj.weight[514,1022]"), point(),
                                    -3.861e-05, (-1e-5, -2.861e-05), -1.23e-07, -6.9e-07, 6.9e-07),),
        doses=(point(perturbation="scale 0.5", sequences=8), COLLAPSE),
        bits=(flip(6, "fraction"),
              flip(7, "exponent", held=False, delta_nll=None, delta_low=None, delta_high=None, sequences=0),
              flip(14, "exponent", flipped=math.nan, becomes="NaN", in_range=False, delta_nll=None, collapsed_at=DOWN),
              flip(15, "sign")),
        activity=(ChannelActivity("output", DOWN, 507, 29220.0, 1.287, "\x1b[31mred", 7, 0, 17, (top,)),),
        raised=(TokenShift(" the", 1, 0.03425, 0.03424),), lowered=(),
        stopwords=StopwordMass(127, 299, 0.2682, 0.2683), channel=507,
        life=(ChannelLayer(-1, 0.25, 0.25, 0.25, ""), ChannelLayer(0, 29300.0, 8200.0, 29299.75, "born")),
        shares=(ChannelShare(TARGET, 0.7176, 20970.0),),
        unknown=("its tokens: without the weight the model's predictions are no numbers",),
        floor=NumericalFloor(0.0, 1.9e-7),
    )  # fmt: skip


def printed(card: WeightCard) -> str:
    console = Console(width=80, record=True, file=None)
    with console.capture() as captured:
        console.print(card_report(card))
    return captured.get()


def test_a_row_of_numbers_is_one_line_of_at_most_80_columns(card: WeightCard) -> None:
    lines = printed(card).splitlines()
    assert max(map(len, lines)) <= 80
    for row in (
        ("grad_x_weight", "2.679e-06", "44,936,075", "992", "134,515,008", "43,536,408"),
        ("zeroed", "66", "22.20", "x0.9999", "-0.000123", "[-0.00023, -1.2e-05]"),
        ("x 0.5", "8", "22.20"),
        ("1 in column", "-3.861e-05", "-1.23e-07", "[-6.9e-07, +6.9e-07]"),
        ("bfloat16", "15 sign", "-1.235e-05", "in", "-1.771e-05", "[-0.00015, +8.3e-05]"),
        ("output", "507", "2.922e+04", "x2.27e+04"),
        (TARGET, "71.76 %", "2.097e+04"),
        ("0", "2.93e+04", "8200", "born"),
    ):
        assert any(all(cell in line for cell in row) for line in lines), row


def test_collapse_what_is_not_held_and_what_is_not_known_are_said(card: WeightCard) -> None:
    said = " ".join(printed(card).split())
    assert "x 1e+38: the model collapses, first at model.layers.11.mlp.down_proj" in said
    assert "14 exp. NaN out collapse" in said and "collapse first at model.layers.11.mlp.down_proj: 1 flips" in said
    assert "not held: 1 flipped values that the model's dtype cannot hold exactly; not measured" in said
    assert "super_weight: it ranks weights of down projections alone" in said
    assert "not known: its tokens: without the weight the model's predictions are no numbers" in said


def test_the_text_of_a_token_cannot_reach_the_terminal(card: WeightCard) -> None:
    assert "\x1b" not in printed(card) and "\\x1b[31mred" in printed(card)
