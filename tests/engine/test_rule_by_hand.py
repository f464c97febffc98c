"""Runs judge critical sets by the words of docs/method.md, whatever the losses: held against code written from these alone."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from cwa_engine.damage.competition import compete
from cwa_engine.damage.measured import Damaged, Measured, MeasuredComparison, Reference, figures, sample_places
from cwa_engine.damage.separation import separations, verdicts
from cwa_engine.damage.treatments import ZERO, Comparison
from cwa_engine.evaluation.losses import Evaluation
from cwa_engine.questions.tasks import chosen_draws
from cwa_engine.rows import Baseline, DamagePoint, leading_draw
from tests.engine import rule_by_hand

CONTROLS = {"random": True, "bottom": False, "same_row": True}
BASELINE = Baseline(nll=1.0, perplexity=math.e, bits_per_byte=None, sequences=1, tokens=1, protocol="")
PER_TOKEN = st.sampled_from([0.0, 1.0, -1.0, 2.0, -3.0, 0.5, 1 / 32, -1 / 32, 1 / 1024, 64.0, -64.0])
COLLAPSES = st.sampled_from([math.nan, math.inf])


@st.composite
def losses(draw: st.DrawFn) -> tuple[list[int], list[float], dict[str, list[list[float]]]]:
    """(tokens of texts, changes by the critical set, those by the draws of each control), in nats, with many ties."""
    texts = draw(st.sampled_from([1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 66, 130]))
    tokens = draw(st.lists(st.sampled_from([1, 2, 16, 1024]), min_size=texts, max_size=texts))
    seed, alike = draw(st.integers(0, 2**32)), draw(st.booleans())
    rng = np.random.default_rng(seed)

    def changes() -> list[float]:
        base, wild = draw(PER_TOKEN), draw(st.integers(0, 3))
        noise = rng.integers(-wild, wild + 1, texts) / 16
        sums = [float((base + float(one)) * count) for one, count in zip(noise, tokens, strict=True)]
        if draw(st.integers(0, 19)) == 0:
            sums[draw(st.integers(0, texts - 1))] = draw(COLLAPSES)
        return sums

    drawn = {}
    for control in draw(st.sampled_from([("random",), ("bottom",), ("random", "bottom"), ("same_row", "random")])):
        count = draw(st.sampled_from([19, 19, 20, 39, 18, 1, 2])) if CONTROLS[control] else 1
        few = [changes() for _ in range(min(count, 6))]
        drawn[control] = [few[place % len(few)] if alike or place < len(few) else changes() for place in range(count)]
    return tokens, changes(), drawn


def on_all(draws: list[Damaged], draw: int, texts: int) -> Measured:
    return draws[draw].measured


def judged(
    tokens: list[int], critical: list[float], drawn: dict[str, list[list[float]]], floor: float
) -> tuple[Any, Any, Any]:
    """(texts and places by control, rows of the table, the verdict) as runs have them."""
    n = len(tokens)
    intact = Evaluation(np.arange(n, dtype=np.float64) / 2, np.array(tokens, dtype=np.float64))
    reference = Reference(intact, sample_places(n), floor)

    def damaged(selection: str, seed: int | None, changes: list[float], texts: int) -> Damaged:
        places = reference.first(texts)
        measured = Measured(places, Evaluation((intact.nll_sums + np.array(changes))[places], intact.tokens[places]))
        figured = figures(reference, measured)
        collapsed = None if math.isfinite(figured["nll"]) else "layer"
        point = DamagePoint("m", 1, "zero", selection, seed, 1, **figured, collapsed_at=collapsed)
        return Damaged(measured, point)

    ours = damaged("critical", None, critical, n)
    standings, draws = {}, {}
    for control, changes in drawn.items():
        whole = [damaged(control, number, each, n) for number, each in enumerate(changes)]
        found = compete(reference, control, ours.measured, len(whole), partial(on_all, whole))
        standings[control] = found
        draws[control] = [
            damaged(control, number, each, found.texts[number + 1]) for number, each in enumerate(changes)
        ]
    entry = MeasuredComparison(Comparison("m", 1, "weight", {}, ()), ZERO, ours, draws)
    rows = separations(reference, [entry])
    (verdict,) = verdicts(reference, BASELINE, [entry], rows)
    for control, of in draws.items():  # by the table of damage alone, as the interface and tasks tell it
        points = [draw.point for draw in of]
        assert points.index(leading_draw(points)) == chosen_draws(points)[0] == standings[control].first_draw
    measured = {
        control: [sorted(int(place) + 1 for place in draw.measured.places) for draw in of]
        for control, of in draws.items()
    }
    return measured, rows, verdict


LONG = (  # on texts of one token the set does most, on long ones a draw, which does a hundred times as much in all
    [1, 1024] * 10,
    [6.0, 0.0] * 10,
    {"random": [*[[4.0, 0.0] * 10] * 3, [0.0, 512.0] * 10, *[[0.0, 0.5] * 10] * 15]},
)


@settings(max_examples=250, deadline=None)
@given(losses(), st.sampled_from([0.0, 0.25]))
@example(LONG, 0.0)
def test_a_set_is_judged_by_the_words_of_the_method(case: Any, floor: float) -> None:
    tokens, critical, drawn = case
    try:
        expected = {
            control: rule_by_hand.told(critical, changes, tokens, CONTROLS[control])
            for control, changes in drawn.items()
        }
    except rule_by_hand.TooClose:
        assume(False)
        raise
    measured, rows, verdict = judged(tokens, critical, drawn, floor)
    for row in rows:
        told, draws = expected[row.control], len(drawn[row.control])
        assert row.as_extreme == told.ahead
        assert row.p_value == ((1 + told.ahead) / (1 + draws) if CONTROLS[row.control] and draws >= 19 else None)
        assert measured[row.control] == told.texts
        assert row.largest_texts == len(told.texts[told.leading])
        assert row.beyond == told.beyond
        changes = [drawn[row.control][told.leading][text - 1] for text in told.texts[told.leading]]
        change = sum(changes) / sum(tokens[text - 1] for text in told.texts[told.leading])
        assert row.largest == (change if math.isfinite(change) else None)
    total = sum(critical) / sum(tokens)
    of = [(CONTROLS[control], len(changes), expected[control]) for control, changes in drawn.items()]
    assert verdict.outcome == rule_by_hand.outcome(of, len(tokens), total, floor)


def test_a_set_that_is_ahead_on_few_texts_and_not_on_all_is_told_which_draw_does_as_much() -> None:
    """Not that p = 0.05 and no draw is ahead, which are reasons for the other verdict."""
    tokens, eight = [4] * 32, rule_by_hand.last_round(32)
    ours = [4.0 if text in eight else 0.0 for text in range(1, 33)]
    draw = [2.0 if text in eight else 12.0 for text in range(1, 33)]
    drawn = {"random": [draw, *[[0.0] * 32] * 18], "bottom": [draw]}
    _, rows, verdict = judged(tokens, ours, drawn, 0.0)
    assert [row.as_extreme for row in rows] == [0, 0]
    assert verdict.outcome == "indistinguishable"
    assert verdict.sentence.endswith(
        "; the draw of random that came out ahead of 18 others changes it by +1.75 on 16 texts, p = 0.05, but the set does no "
        "more than that draw, the draw of bottom changes it by +1.75 on 16 texts, but the set does no more than that draw."
    )


def test_a_p_above_the_level_does_not_read_as_the_level() -> None:
    draws = [[8.0] * 16] * 5 + [[1.0] * 16] * 113
    _, (row,), verdict = judged([4] * 16, [4.0] * 16, {"random": draws}, 0.0)
    assert row.p_value == 6 / 119
    assert verdict.sentence.endswith("5 of 118 draws of random came out ahead, p = 0.0504.")
