"""What is computed in parts is what is computed whole: resumed damage, gradients of a batch's sequences, pieces of logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cwa_engine.base import events
from cwa_engine.damage import measurement
from cwa_engine.damage.patch import patched
from cwa_engine.evaluation import perplexity
from cwa_engine.evaluation.batch_size import BatchSize
from cwa_engine.evaluation.perplexity import evaluate
from cwa_engine.evaluation.resume import cache_states
from cwa_engine.methods.metrics import Needs
from cwa_engine.methods.perturbations import PERTURBATIONS
from cwa_engine.models.chain import NotAChain, chain_of
from cwa_engine.pipeline import analyze
from cwa_engine.records.export import run_tables
from cwa_engine.sensitivity import gradients
from cwa_engine.sensitivity.by_sequence import check_separable
from cwa_engine.sensitivity.gradients import resident
from cwa_engine.sensitivity.totals import Totals
from cwa_engine.spec import RunSpec
from tests.architectures import tiny_architecture
from tests.engine.conftest import wrap
from tests.engine.test_evaluation import sequences_of

BOTH = Needs.GRADIENT | Needs.FISHER | Needs.TOKEN_FISHER
SEPARABLE = ("gpt2", "gpt_neox", "opt", "llama")


# Resume


@pytest.mark.parametrize("batch_size", [1, 3])
def test_damage_measured_from_the_first_changed_block_is_the_same_to_the_last_bit(loaded: Any, batch_size: int) -> None:
    sequences = sequences_of(loaded)
    kept = cache_states(loaded, sequences, batch_size)
    for name, parameter in loaded.anatomy.parameters.items():
        with patched(loaded.model, {name: np.arange(min(5, parameter.numel))}, PERTURBATIONS["zero"]):
            resumed, whole = kept.evaluate([name]), evaluate(loaded, sequences, batch_size)
        assert resumed.nll_sums.tolist() == whole.nll_sums.tolist()


def test_damage_of_several_blocks_begins_at_the_first_of_them(llama: Any) -> None:
    chain = chain_of(llama)
    first, second = "model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight"
    assert chain.first_block(llama, [first, second]) == 0
    assert chain.first_block(llama, [second, "model.norm.weight"]) == 1
    assert chain.first_block(llama, ["model.norm.weight", "lm_head.weight"]) == 2
    assert chain.first_block(llama, ["model.embed_tokens.weight", second]) == 0


def test_a_tied_embedding_changes_the_model_from_its_beginning() -> None:
    gpt2 = wrap(tiny_architecture("gpt2"))
    assert chain_of(gpt2).first_block(gpt2, ["transformer.wte.weight"]) == 0


def test_where_memory_is_short_fewer_states_are_kept_and_the_loss_is_the_same(
    loaded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sequences = sequences_of(loaded)
    monkeypatch.setattr("cwa_engine.evaluation.resume.free_bytes", lambda device: 1)
    kept = cache_states(loaded, sequences, 2)
    assert kept.blocks == (0,)
    name = next(n for n, p in loaded.anatomy.parameters.items() if p.layer == 1)
    with patched(loaded.model, {name: np.arange(3)}, PERTURBATIONS["zero"]):
        assert kept.evaluate([name]).nll == evaluate(loaded, sequences, 2).nll


def test_a_run_finds_the_same_whether_damage_is_resumed_or_not(
    loaded: Any, data_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = RunSpec(model="tiny", data_file=data_file, topk=(1, 3), individually=True, control_seeds=1)
    resumed = dict(run_tables(analyze(loaded, asked)))
    monkeypatch.setattr(measurement, "cache_states", _refuse)
    assert dict(run_tables(analyze(loaded, asked))) == resumed


def _refuse(*args: object) -> None:
    raise NotAChain("told not to")


# Gradients of each sequence of a batch


@pytest.mark.parametrize("family", SEPARABLE)
@pytest.mark.parametrize("size", [2, 5, 8])
def test_fisher_of_a_batch_is_that_of_its_sequences_one_by_one(family: str, size: int) -> None:
    model = wrap(tiny_architecture(family))
    sequences = sequences_of(model)
    batches = gradients.batches_for(model, sequences, BOTH, size)
    assert len(batches[0]) == size
    assert_same_statistics(resident(model, sequences, BOTH, size), resident(model, sequences, BOTH, 1))
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.model.parameters())


def test_a_sequence_that_occurs_twice_in_a_batch_counts_twice(llama: Any) -> None:
    twice = [sequence for sequence in sequences_of(llama)[:3] for _ in range(2)]
    assert_same_statistics(resident(llama, twice, BOTH, 4), resident(llama, twice, BOTH, 1))


def test_rows_made_a_few_at_a_time_are_those_made_at_once(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sequences = sequences_of(llama)
    whole = resident(llama, sequences, BOTH, 4)
    monkeypatch.setattr("cwa_engine.sensitivity.by_sequence.CACHED", 1000)
    assert_same_statistics(resident(llama, sequences, BOTH, 4), whole)


def test_only_the_parameters_in_view_get_gradients_of_sequences(llama: Any) -> None:
    some = llama.with_parameters(["model.layers.1.mlp.down_proj.weight", "model.norm.weight"])
    sequences = sequences_of(llama)
    whole = resident(llama, sequences, BOTH, 1)
    found = resident(some, sequences, BOTH, 4)
    assert_same_statistics(found, {name: whole[name] for name in found})


def test_experts_share_tokens_in_no_order_so_each_sequence_goes_alone() -> None:
    mixtral = wrap(tiny_architecture("mixtral"))
    with pytest.raises(Exception, match="called with more than one tensor"):
        check_separable(mixtral)
    assert {len(batch) for batch in gradients.batches_for(mixtral, sequences_of(mixtral), BOTH, 4)} == {1}
    assert {len(batch) for batch in gradients.batches_for(mixtral, sequences_of(mixtral), Needs.GRADIENT, 4)} == {4}


def assert_same_statistics(found: Any, expected: Any, tolerance: float = 1e-4) -> None:
    assert found.keys() == expected.keys()
    for name, stats in expected.items():
        for field in ("gradient", "fisher", "token_fisher"):
            right = getattr(stats, field)
            # Keys' biases have no gradient but what rounding leaves of it.
            least = max(1e-7, tolerance * float(right.abs().max()))
            torch.testing.assert_close(getattr(found[name], field), right, rtol=tolerance, atol=least)


def test_what_is_in_view_decides_whether_sequences_can_be_told_apart() -> None:
    mixtral = wrap(tiny_architecture("mixtral"))
    attention = mixtral.with_parameters([n for n, p in mixtral.anatomy.parameters.items() if p.component in ("q", "o")])
    sequences = sequences_of(mixtral)
    assert {len(batch) for batch in gradients.batches_for(attention, sequences, BOTH, 4)} == {4}
    assert {len(batch) for batch in gradients.batches_for(mixtral, sequences, BOTH, 4)} == {1}
    whole = resident(mixtral, sequences, BOTH, 1)
    found = resident(attention, sequences, BOTH, 4)
    assert_same_statistics(found, {name: whole[name] for name in found})


# Logits in pieces


@pytest.mark.parametrize("batch_size", [1, 3])
def test_losses_and_gradients_are_the_same_with_the_logits_of_few_tokens_at_a_time(
    loaded: Any, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sequences = sequences_of(loaded)
    losses, statistics = evaluate(loaded, sequences, batch_size), resident(loaded, sequences, BOTH, batch_size)
    monkeypatch.setattr(perplexity, "LOGITS", 3000)
    np.testing.assert_allclose(evaluate(loaded, sequences, batch_size).nll_sums, losses.nll_sums, rtol=1e-6)
    assert_same_statistics(resident(loaded, sequences, BOTH, batch_size), statistics)


@pytest.mark.parametrize("needs", [Needs.NOTHING, Needs.GRADIENT, BOTH])
def test_no_more_logits_are_made_at_once_than_are_allowed(
    llama: Any, needs: Needs, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    monkeypatch.setattr(perplexity, "LOGITS", 3000)
    chain_of(llama)
    handle = llama.model.lm_head.register_forward_hook(lambda module, args, output: made.append(output.numel()))
    sequences = sequences_of(llama)
    evaluate(llama, sequences, 2) if needs is Needs.NOTHING else resident(llama, sequences, needs, 2)
    handle.remove()
    assert max(made) <= 3000 < max(len(s.ids) for s in sequences) * 300


# Memory that runs out


class FullAbove:
    """Makes a model run out of memory with more than `size` sequences at once."""

    def __init__(self, model: Any, size: int) -> None:
        self.handle = model.register_forward_pre_hook(self._check, with_kwargs=True)
        self.size = size

    def _check(self, module: Any, args: Any, kwargs: Any) -> None:
        if len(kwargs["input_ids"]) > self.size:
            raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize("gradient_source", ["resident", "sweep"])
def test_a_run_whose_batches_are_too_large_goes_on_with_half_of_them_and_says_so(
    llama: Any, data_file: Path, gradient_source: Any
) -> None:
    asked = RunSpec(
        model="tiny", data_file=data_file, topk=(3,), batch_size=4, gradients=gradient_source, control_seeds=1
    )
    fits = analyze(llama, asked.model_copy(update={"batch_size": 1}))
    said: list[Any] = []
    full = FullAbove(llama.model, 1)
    found = analyze(llama, asked, lambda event: said.append(events.to_dict(event)))
    full.handle.remove()
    notes = [event["text"] for event in said if event["kind"] == "note" and event["text"].startswith("out of memory")]
    assert notes == [
        "out of memory with 4 sequences at once: going on with 2",
        "out of memory with 2 sequences at once: going on with 1",
    ]
    assert dict(run_tables(found)) == dict(run_tables(fits))


def test_memory_that_runs_out_in_the_middle_of_scoring_leaves_no_trace_in_the_scores(llama: Any) -> None:
    sequences = sequences_of(llama)
    calls = 0

    def fail_at_the_third(module: Any, args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise torch.OutOfMemoryError("CUDA out of memory")

    handle = llama.model.lm_head.register_forward_pre_hook(fail_at_the_third)
    size = BatchSize(2)
    found = size.run(lambda number: resident(llama, sequences, Needs.GRADIENT, number))
    handle.remove()
    assert size.size == 1
    expected = resident(llama, sequences, Needs.GRADIENT, 1)
    for name, stats in expected.items():
        gradient = found[name].gradient
        assert gradient is not None and stats.gradient is not None
        assert torch.equal(gradient, stats.gradient)


@pytest.mark.parametrize("name", ["lm_head.weight", "model.embed_tokens.weight"])
def test_memory_that_runs_out_while_gradients_are_added_leaves_none_behind(
    llama: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    sequences, usual = sequences_of(llama), Totals.add
    calls: list[str] = []

    def fail_at_the_second(self: Totals, of: str, gradient: torch.Tensor, batch: Any) -> None:
        calls.extend([of] * (of == name))
        if len(calls) == 2:
            calls.append("")
            raise torch.OutOfMemoryError("CUDA out of memory")
        usual(self, of, gradient, batch)

    monkeypatch.setattr(Totals, "add", fail_at_the_second)
    size = BatchSize(2)
    found = size.run(lambda number: resident(llama, sequences, BOTH, number))
    assert size.size == 1 and len(calls) > 2
    assert_same_statistics(found, resident(llama, sequences, BOTH, 1), tolerance=1e-6)


def test_where_one_sequence_is_too_much_the_error_is_passed_on() -> None:
    def fail(size: int) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        BatchSize(4).run(fail)


def test_other_errors_are_not_tried_again() -> None:
    calls: list[int] = []

    def fail(size: int) -> None:
        calls.append(size)
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        BatchSize(4).run(fail)
    assert calls == [4]
