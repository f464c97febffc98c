"""Draws of controls are measured on growing parts of the texts: with which error, on which texts, and at what cost."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cwa_engine.base.statistics import Array
from cwa_engine.damage.competition import compete
from cwa_engine.damage.elimination import Standing
from cwa_engine.damage.measured import Measured, Reference, sample_places, text_order
from cwa_engine.evaluation.losses import Evaluation
from cwa_engine.pipeline import analyze
from cwa_engine.records.export import ModelRecord, RunRecord, write_run
from cwa_engine.records.verification import verify
from tests.engine.conftest import wrap
from tests.engine.eliminated_by_hand import by_hand, parts_of
from tests.engine.test_verdicts import planted_model, spec

TEXTS = 66
RANDOM = "random_matched"


def standing(changes: Array, critical: int = 0, control: str = RANDOM) -> Standing:
    """How changes of the loss, [entrants, texts], come out if one of them is the critical set's."""
    texts = changes.shape[1]
    reference = Reference(Evaluation(np.zeros(texts), np.full(texts, 4.0)), sample_places(texts))
    losses = [Measured(np.arange(texts), Evaluation(change, np.full(texts, 4.0))) for change in changes]
    ours = losses.pop(critical)
    return compete(reference, control, ours, len(losses), lambda draw, count: losses[draw])


@pytest.mark.parametrize("tail", [1, 2, 30], ids=["wild", "heavy", "mild"])
@pytest.mark.parametrize("entrants", [20, 51])
def test_of_sets_that_are_alike_each_comes_out_at_each_place_once(entrants: int, tail: int) -> None:
    """So that p is exact: of 20 sets of the same kind, each being the critical one in turn, one is ahead of the others."""
    rng = np.random.default_rng([entrants, tail])
    for _ in range(5):
        changes = rng.standard_t(tail, (entrants, TEXTS)) * rng.lognormal(0, 1, (entrants, 1))
        assert sorted(standing(changes, critical).ahead for critical in range(entrants)) == list(range(entrants))


def test_what_no_loss_tells_apart_counts_against_the_critical_set() -> None:
    assert standing(np.zeros((20, TEXTS))).ahead == 19
    collapsed = np.zeros((20, TEXTS))
    collapsed[[0, 7]] = np.nan
    assert standing(collapsed).ahead == 1  # both make the model collapse
    collapsed[7] = 1e9
    assert standing(collapsed).ahead == 0
    assert standing(-collapsed, critical=7).ahead == 1


@pytest.mark.parametrize("seed", range(6))
def test_places_and_texts_are_those_of_the_method(seed: int) -> None:
    """Also for a critical set that is far behind in the first round, or leaves in the second."""
    rng = np.random.default_rng(seed)
    changes = rng.standard_t(2, (20, TEXTS)) * rng.lognormal(0, 1.5, (20, 1))
    changes[0] *= (0.05, 0.2, 1, 5, 50, 1000)[seed]
    order, measured = by_hand(
        lambda entrant, where: float(sum(changes[entrant, n - 1] for n in where)), 0, range(1, 20), parts_of(TEXTS)
    )
    found = standing(changes)
    assert found.ahead == order.index(0)
    first = next(entrant for entrant in order if entrant)
    if found.ahead == 0:  # it may be measured on more
        assert found.texts[first] in (16, 33, 66)  # type: ignore[call-overload]
        measured[first] = found.texts[first]  # type: ignore[call-overload]
    assert list(found.texts) == [measured[entrant] for entrant in range(20)]


def test_texts_grow_evenly_over_all_and_each_part_holds_the_one_before() -> None:
    for texts in (1, 3, 8, 9, 20, 66, 1000):
        order = text_order(texts)
        assert sorted(order) == list(range(texts))
        for first in (2, 4, 8, 16, 33, 250):
            if first <= texts and (first <= 8 or (texts, first) in ((66, 16), (66, 33), (1000, 250))):
                gaps = np.diff(sorted(order[:first]))
                assert len(gaps) == 0 or max(gaps) <= 3.1 * texts / first
    assert [sorted(n + 1 for n in text_order(66)[:count]) for count in (2, 4, 8)] == parts_of(66)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """132 of them: 66 are measured, as of the built-in ones."""
    path = tmp_path_factory.mktemp("texts") / "texts.txt"
    phrases = ("the harbour was quiet", "copper and tin", "nobody told the clock")
    path.write_text("\n\n".join(f"Text {n}: {phrases[n % 3]}, and {n * 7 % 10} more." for n in range(132)))
    return path


@pytest.fixture(scope="module")
def planted() -> Any:
    return planted_model(40)


def test_damage_of_a_default_run_takes_at_most_six_tenths_of_the_texts_that_all_draws_on_eight_take(
    planted: Any, texts: Path
) -> None:
    """Counted at the last block, through which every text passes that is measured."""
    passed: Counter[str] = Counter()
    stage = ["nothing"]

    def emit(event: Any) -> None:
        stage[0] = getattr(event, "stage", stage[0])

    def count(module: torch.nn.Module, args: Any, kwargs: Any) -> None:
        passed[stage[0]] += len(args[0] if args else kwargs["hidden_states"])

    handle = planted.model.layers[-1].register_forward_pre_hook(count, with_kwargs=True)
    found = analyze(wrap(planted), spec(texts, topk=(1,), matrices=True), emit)
    handle.remove()
    earlier = len(found.verdicts) * TEXTS + len(found.separations) * (19 * 8 + TEXTS - 8)
    assert passed["perturb"] == sum(point.sequences for point in found.damage)
    assert passed["perturb"] <= 0.6 * earlier
    others = passed["prepare"] + passed["rounding"] + passed["check"]
    assert others + passed["perturb"] <= 0.6 * (others + earlier)


def test_the_draw_ahead_is_measured_until_it_is_clear_and_the_files_show_that_it_had_to_be(
    planted: Any, texts: Path, tmp_path: Path
) -> None:
    asked = spec(texts, topk=(1,), controls=("random",))
    result = analyze(wrap(planted), asked)
    (row,), (verdict,) = result.separations, result.verdicts
    assert (verdict.outcome, row.largest_texts) == ("harmful", 16)
    assert (
        "the draw of random that came out ahead of 18 others changes it by" in verdict.sentence
        and " on 16 texts, p" in verdict.sentence
    )
    by_texts: dict[int, int] = {}
    for point in (point for point in result.damage if point.selection == "random"):
        by_texts[point.sequences] = by_texts.get(point.sequences, 0) + 1
    assert by_texts == {2: 16, 8: 2, 16: 1}  # four go on: the critical set and three draws
    source = ModelRecord("tiny", "/nowhere", "folder", None, {"w": "0"}, "float32", "cpu", "a cpu", 1)
    write_run(tmp_path / "run", RunRecord("run", asked, "cwtool run", source, result, 0.0, []))
    found = verify(tmp_path / "run")
    assert (found.agrees, found.disagreements) == (True, ())


def test_a_look_errs_no_more_often_than_it_says() -> None:
    """Whether the critical set does more is decided on 16, 33 or all of 66 texts as on all, but for one in a hundred."""
    rng = np.random.default_rng(5)
    wrong = early = 0
    trials = 1500
    for _ in range(trials):
        changes = np.zeros((2, TEXTS))
        changes[1] = rng.exponential(1, TEXTS) * rng.choice([-0.3, 1], TEXTS) + rng.normal(0.3, 1)
        changes[0] = rng.uniform(0.2, 2.5)  # the same on every text, so known exactly
        found = standing(changes, control="top_magnitude")  # one draw, which is looked at in any case
        where = list(text_order(TEXTS)[: found.texts[1]])
        says = abs(changes[0].mean()) > abs(changes[1, where].mean())
        wrong += says != (abs(changes[0].mean()) > abs(changes[1].mean()))
        early += found.texts[1] < TEXTS
    assert early > trials / 3  # else there would be nothing to err in
    assert wrong / trials <= 0.01 + 2 * math.sqrt(0.01 / trials)


def entrants(changes: Sequence[float]) -> Array:
    return np.outer(np.array(changes), np.ones(TEXTS))


def test_a_small_set_is_out_early_and_costs_little() -> None:
    found = standing(entrants([1e-6, *[1.0] * 19]))
    assert (found.ahead, found.texts[0], set(found.texts[1:])) == (19, 2, {8})
    found = standing(entrants([1.0, *[1e-6] * 19]))
    assert (found.ahead, sorted(set(found.texts[1:]))) == (0, [2, 8, 16])
