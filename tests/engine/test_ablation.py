"""Exact ablation against zeroing one weight after the other, and the race against measuring everything."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cwa_engine.base import events
from cwa_engine.base.errors import Cancelled, InvalidInput, RunFailed
from cwa_engine.damage.cases import zeroed_together
from cwa_engine.damage.copies import Zeroed, owners_of, zeroed_in_copies
from cwa_engine.damage.patch import patched
from cwa_engine.damage.race import chances, race, survivors
from cwa_engine.damage.single_zeros import SingleZeros
from cwa_engine.damage.smallest_set import smallest_set
from cwa_engine.evaluation.perplexity import evaluate
from cwa_engine.methods.metrics import Needs
from cwa_engine.methods.perturbations import PERTURBATIONS
from cwa_engine.pipeline import analyze
from cwa_engine.questions.ablation import Ablated, ablate
from cwa_engine.questions.critical_set import CriticalSet
from cwa_engine.records.export import run_tables
from cwa_engine.rows import Ranking
from cwa_engine.sensitivity.candidates import propose
from cwa_engine.sensitivity.gradients import resident
from cwa_engine.sensitivity.ranking import rank
from cwa_engine.spec import RunSpec
from tests.architectures import tiny_architecture
from tests.engine.conftest import fingerprint, wrap
from tests.engine.test_evaluation import sequences_of
from tests.engine.test_science import taught
from tests.models import tiny_model


def some_weights(loaded: Any, each: int = 2) -> list[Zeroed]:
    rng = np.random.default_rng(0)
    return [Zeroed(p, int(i)) for p in loaded.anatomy.parameters.values() for i in rng.integers(0, p.numel, each)]


def zeroed_alone(loaded: Any, weight: Zeroed, sequences: Any) -> list[float]:
    chosen = {weight.parameter.name: np.array([weight.flat_index])}
    with patched(loaded.model, chosen, PERTURBATIONS["zero"]):
        return [float(nll) for nll in evaluate(loaded, sequences, 1).nll_sums]


def assert_measures_what_zeroing_does(loaded: Any) -> SingleZeros:
    zeros, weights = SingleZeros(loaded, sequences_of(loaded)[:4]), some_weights(loaded)
    found = np.stack([zeros.nll(weights, number) for number in range(4)], axis=1)
    expected = [zeroed_alone(loaded, weight, zeros.texts) for weight in weights]
    np.testing.assert_allclose(found, expected, rtol=2e-6)
    for weight, row in list(zip(weights, expected, strict=True))[:: len(weights) // 5]:
        assert zeros.really_zeroed(weight).tolist() == row
    return zeros


def test_many_weights_zeroed_in_copies_are_as_each_zeroed_alone(loaded: Any) -> None:
    before = fingerprint(loaded.model)
    zeros = assert_measures_what_zeroing_does(loaded)
    assert fingerprint(loaded.model) == before
    assert zeros.spent > 1


@pytest.mark.parametrize("model_type", ["mamba", "gpt_oss", "openai-gpt", "bert", "qwen3_moe"])
def test_weights_that_copies_cannot_have_zeroed_are_zeroed_one_by_one(model_type: str) -> None:
    assert_measures_what_zeroing_does(wrap(tiny_architecture(model_type)))


def test_work_is_counted_from_the_first_changed_block_and_not_where_a_token_does_not_occur(llama: Any) -> None:
    zeros = SingleZeros(llama, sequences_of(llama)[:4])
    parameters, number = llama.anatomy.parameters, 0
    unused = next(token for token in range(300) if token not in zeros.texts[number].ids)
    share = len(zeros.texts[number].ids) / sum(len(text.ids) for text in zeros.texts)

    def cost(name: str, flat_index: int) -> float:
        before = zeros.spent
        zeros.nll([Zeroed(parameters[name], flat_index)], number)
        return (zeros.spent - before) / share

    assert cost("model.embed_tokens.weight", 32 * zeros.texts[number].ids[0]) == pytest.approx(1)
    assert cost("model.embed_tokens.weight", 32 * unused) == 0
    block = sum(p.numel for p in parameters.values() if p.layer == 1 and not p.is_vector)
    tail = parameters["lm_head.weight"].numel
    assert cost("model.layers.1.mlp.up_proj.weight", 0) == pytest.approx((block + tail) / (2 * block + tail))
    assert cost("lm_head.weight", 5) == pytest.approx(tail / (2 * block + tail))


def test_zeros_in_copies_stand_beside_what_is_damaged_already(llama: Any) -> None:
    base = {"model.layers.0.mlp.up_proj.weight": np.arange(40)}
    with patched(llama.model, base, PERTURBATIONS["zero"]):
        assert_measures_what_zeroing_does(llama)


def test_copies_end_with_the_hooks_that_made_them(llama: Any) -> None:
    weights = some_weights(llama)[:3]
    with pytest.raises(KeyboardInterrupt), zeroed_in_copies(owners_of(llama.model), weights):
        raise KeyboardInterrupt
    assert not any(module._forward_hooks for module in llama.model.modules())


# The race


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(5, 40))
def test_what_is_dropped_has_at_most_the_chance_allowed_and_k_remain(seed: int, k: int, candidates: int) -> None:
    rng = np.random.default_rng(seed)
    chance = rng.random(candidates) ** 20
    kept = survivors(chance, k, 0.01).tolist()
    dropped = sorted(set(range(candidates)) - set(kept))
    assert len(kept) >= min(k, candidates)
    assert chance[dropped].sum() <= 0.01 + 1e-12
    assert not dropped or max(chance[dropped]) <= min(chance[kept])


def test_chances_are_certain_where_nothing_is_unknown() -> None:
    change = np.array([[1.0, 2.0], [5.0, 0.0], [0.0, 0.5], [np.inf, 1.0]])
    assert chances(change, np.ones_like(change, bool), 2, np.random.default_rng(0)).tolist() == [0, 1, 0, 1]


def test_the_race_keeps_the_true_top_with_99_percent_on_losses_with_heavy_tails() -> None:
    """200 races of 300 candidates whose changes over 48 texts differ by orders of magnitude, with noise as large."""
    lost = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        change = rng.lognormal(-6, 2, (300, 1)) * rng.gamma(2, 0.5, (300, 48)) * rng.gamma(4, 0.25, (1, 48))
        raced = race(_Known(change), list(range(300)), 20, seed)  # type: ignore[arg-type]
        lost += len(set(np.argsort(-change.sum(1))[:20]) - set(raced.finalists[:20]))
        assert sum(r.candidates for r in raced.rounds[1:]) < 300
    assert lost <= 0.01 * 200


class _Known:
    """Measures by looking up."""

    def __init__(self, change: Any) -> None:
        self.change, self.texts, self.intact = change, [None] * change.shape[1], np.zeros(change.shape[1])
        self.measured = 0

    def reaches(self, weight: int, number: int) -> bool:
        return True

    def nll(self, weights: Any, number: int) -> Any:
        self.measured += len(weights)
        return self.change[weights, number]


@pytest.fixture(scope="module")
def learnt() -> Any:
    return taught(wrap(tiny_model("llama")), 40)


def candidates_of(loaded: Any, sequences: Any, many: int) -> Any:
    statistics = resident(loaded, sequences, Needs.GRADIENT | Needs.TOKEN_FISHER)
    return propose([rank(loaded, statistics, name, many) for name in ("grad_x_weight", "taylor")], many)


def test_the_exact_ranking_is_that_of_zeroing_every_candidate_on_every_text(learnt: Any) -> None:
    sequences = sequences_of(learnt)
    candidates = candidates_of(learnt, sequences, 120)
    found = ablate(learnt, sequences, candidates, 10, seed=0)
    intact, parameters = evaluate(learnt, sequences, 1), learnt.anatomy.parameters
    costs = {}
    for unit in candidates:
        nll_sums = zeroed_alone(learnt, Zeroed(parameters[unit.parameter], unit.flat_index), sequences)
        costs[unit.target] = (sum(nll_sums) - intact.nll_sums.sum()) / intact.tokens.sum()
    expected = sorted(costs, key=lambda target: -costs[target])[:10]
    assert [weight.target for weight in found.ranking.weights] == expected
    for weight, row in zip(found.ranking.weights, found.rows, strict=False):
        assert (weight.rank, weight.target) == (row.place, row.target)
        assert weight.score == row.delta_nll == pytest.approx(costs[weight.target], rel=1e-6)
        assert row.delta_low <= row.delta_nll <= row.delta_high
    assert sorted(row.target for row in found.rows) == sorted(costs)
    assert [row.place for row in found.rows] == list(range(1, 121))
    assert found.cost.spent < found.cost.naive == 121
    assert [entry.texts for entry in found.cost.rounds] == [6, 8]


def test_in_turns_each_ranking_names_its_best_weight_that_none_has_named(llama: Any) -> None:
    statistics = resident(llama, sequences_of(llama), Needs.GRADIENT | Needs.FISHER)
    one, two = (rank(llama, statistics, name, 40) for name in ("grad_x_weight", "magnitude"))
    named = [unit.target for unit in propose([one, one, two], 30)]
    assert len(named) == len(set(named)) == 30
    assert named[:3] == [one.weights[0].target, one.weights[1].target, two.weights[0].target]
    assert [unit.target for unit in propose([one, two], 2)] == [one.weights[0].target, two.weights[0].target]
    tops = [{unit.target for unit in ranking.top(k)} for ranking, k in ((one, 20), (two, 10))]
    assert tops[0] | tops[1] <= set(named)  # twenty turns for one, ten for two
    assert propose([one], 1000) == list(one.weights)
    assert propose([Ranking("magnitude", ()), one], 5) == list(one.weights[:5])


def test_a_copy_that_disagrees_with_the_written_zero_ends_the_run(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sequences = sequences_of(llama)
    monkeypatch.setattr(SingleZeros, "really_zeroed", lambda self, weight: self.intact + 1)
    with pytest.raises(RunFailed, match="otherwise than writing a zero"):
        ablate(llama, sequences, candidates_of(llama, sequences, 10), 2, seed=0)


# Critical sets


def test_the_smallest_set_is_found_as_by_trying_every_pair(learnt: Any) -> None:
    sequences = sequences_of(learnt)
    pool = ablate(learnt, sequences, candidates_of(learnt, sequences, 40), 8, seed=0).ranking.weights
    intact = evaluate(learnt, sequences, 1).nll

    def ratio(units: Any) -> float:
        with zeroed_together(learnt, units):
            return math.exp(evaluate(learnt, sequences, 1).nll - intact)

    alone = max(ratio([unit]) for unit in pool)
    by_pairs = max(ratio(pair) for pair in itertools.combinations(pool, 2))
    assert alone < by_pairs
    found = smallest_set(learnt, sequences, pool, (alone + by_pairs) / 2, seed=0)
    assert len(found) == 2
    for size, (_, said) in enumerate(found, start=1):
        assert said == pytest.approx(ratio([unit for unit, _ in found[:size]]), rel=1e-5)
    everything = smallest_set(learnt, sequences, pool, 1e9, seed=0)
    assert {unit.target for unit, _ in everything} == {unit.target for unit in pool}
    assert len(smallest_set(learnt, sequences, pool, 1 + (alone - 1) / 2, seed=0)) == 1


def test_a_run_by_ablation_writes_what_it_found_and_leaves_the_weights_alone(learnt: Any, data_file: Path) -> None:
    before = fingerprint(learnt.model)
    asked = RunSpec(
        model="tiny",
        data_file=data_file,
        metrics=("magnitude", "ablation"),
        topk=(2, 5),
        candidates=30,
        critical_set=1.2,
        matrices=False,
    )
    said: list[Any] = []
    result = analyze(learnt, asked, lambda event: said.append(events.to_dict(event)))
    assert [ranking.metric for ranking in result.rankings] == ["magnitude", "ablation"]
    assert all(len(ranking.weights) == 5 for ranking in result.rankings)
    assert result.answer(CriticalSet).reached
    assert {"topk_ablation.csv", "ablation.csv", "critical_set.csv"} <= set(dict(run_tables(result)))
    assert {point.metric for point in result.damage} == {"magnitude", "ablation"}
    assert any("30 candidates" in event.get("text", "") for event in said)
    assert fingerprint(learnt.model) == before
    again = analyze(learnt, asked)
    assert dict(run_tables(again)) == dict(run_tables(result))


@pytest.mark.parametrize("stage", ["ablate", "critical set"])
def test_a_cancelled_ablation_ends_at_once_and_leaves_the_weights_alone(
    learnt: Any, data_file: Path, stage: str
) -> None:
    before, seen = fingerprint(learnt.model), []

    def cancel(event: Any) -> None:
        if event.kind == "progress" and event.stage == stage:
            seen.append(event)
            if len(seen) == 40:
                raise Cancelled("the run was cancelled")

    asked = RunSpec(
        model="tiny", data_file=data_file, metrics=("ablation",), topk=(5,), candidates=30, critical_set=1e6
    )
    with pytest.raises(Cancelled):
        analyze(learnt, asked, cancel)
    assert len(seen) == 40
    assert fingerprint(learnt.model) == before
    assert not any(module._forward_hooks for module in learnt.model.modules())


def test_ablation_alone_takes_its_candidates_from_metrics_that_are_not_reported(llama: Any, data_file: Path) -> None:
    asked = RunSpec(
        model="tiny", data_file=data_file, metrics=("ablation",), topk=(3,), candidates=20, perturbations=()
    )
    result = analyze(llama, asked)
    assert [ranking.metric for ranking in result.rankings] == ["ablation"]
    assert len(result.answer(Ablated).rows) == 20


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"metrics": ("ablation",), "structure": "row"}, "single weights"),
        ({"metrics": ("ablation",), "scope": "per_layer"}, "single weights"),
        ({"metrics": ("ablation",), "topk": (50,), "candidates": 20}, "20 candidates"),
        ({"metrics": ("ablation",), "controls": ("bottom",)}, "does not measure"),
        ({"metrics": ("ablation",), "stability": "halves"}, "gives scores"),
        ({"critical_set": 10.0}, "measured"),
        ({"metrics": ("ablation",), "critical_set": 1.0}, "greater than 1"),
    ],
)
def test_what_ablation_cannot_do_is_said_before_anything_is_loaded(fields: dict[str, Any], said: str) -> None:
    from cwa_engine.spec import parse_spec

    with pytest.raises(InvalidInput, match=said):
        parse_spec({"model": "tiny", "topk": (5,), **fields})
