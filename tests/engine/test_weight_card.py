"""The card of a weight: its ranks, what damaging it does, and that the model is afterwards as it was."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import cwa_engine as cwa
from cwa_engine.base.errors import Cancelled, InvalidInput
from cwa_engine.base.events import Event, Progress, StageStarted
from cwa_engine.base.plain import from_plain
from cwa_engine.methods.metrics import METRICS
from cwa_engine.rows import to_plain
from cwa_engine.spec import CARD_METRICS, RunSpec
from cwa_engine.weight_rows import WeightCard
from cwa_engine.weights.card import weight_card
from tests.engine.conftest import TEXTS, doubled, fingerprint, wrap
from tests.models import tiny_model, tiny_tokenizer

DOWN = "model.layers.1.mlp.down_proj.weight[3,5]"
A_WEIGHT_OF_EACH_KIND = {
    ("llama", DOWN),
    ("llama", "model.norm.weight[4]"),
    ("llama", "model.embed_tokens.weight[66,5]"),
    ("llama", "lm_head.weight[66,5]"),
    ("gpt2", "transformer.h.0.mlp.c_proj.weight[3,5]"),
    ("gpt2", "transformer.wte.weight[66,5]"),
    ("mixtral", "model.layers.1.mlp.experts.down_proj[2,3,5]"),
    ("neox", "gpt_neox.layers.0.mlp.dense_4h_to_h.bias[4]"),
}


def spec_for(target: str, **options: Any) -> RunSpec:
    return RunSpec(**{"model": "tiny", "weights": (target,), "metrics": ("magnitude",), "dose": (0.5,), **options})


def examined(family: str, target: str, **options: Any) -> WeightCard:
    return weight_card(wrap(tiny_model(family)), spec_for(target, **options), texts=TEXTS)


@functools.cache
def of_down(**options: Any) -> WeightCard:
    return examined("llama", DOWN, **options)


def ids_of(text: str) -> torch.Tensor:
    return torch.tensor([tiny_tokenizer()(text)["input_ids"]])


def plain_nll(model: Any, texts: list[str]) -> tuple[list[float], list[int]]:
    """NLL sums and scored tokens of texts, by nothing but the model's logits."""
    sums, tokens = [], []
    for text in texts:
        ids = ids_of(text)
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, :-1]
        sums.append(float(F.cross_entropy(logits, ids[0, 1:], reduction="sum")))
        tokens.append(ids.shape[1] - 1)
    return sums, tokens


def changed(model: Any, name: str, values: dict[tuple[int, ...], float]) -> Any:
    with torch.no_grad():
        for place, value in values.items():
            model.get_parameter(name)[place] = value
    return model


@pytest.mark.parametrize("gradients", ["resident", "sweep"])
def test_ranks_are_those_of_sorting_all_scores_in_float64(gradients: str) -> None:
    model = doubled(tiny_model("gpt2"))
    gradient = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    scoring = TEXTS[0::2]
    tokens = sum(ids_of(text).shape[1] - 1 for text in scoring)
    for text in scoring:
        ids = ids_of(text)
        loss = F.cross_entropy(model(input_ids=ids).logits[0, :-1], ids[0, 1:], reduction="sum") / tokens
        for name, part in zip(gradient, torch.autograd.grad(loss, list(model.parameters())), strict=True):
            gradient[name] += part
    scores = {
        "magnitude": {name: p.detach().abs() for name, p in model.named_parameters()},
        "grad_x_weight": {name: (p.detach() * gradient[name]).abs() for name, p in model.named_parameters()},
    }
    for target, name, place in (  # stored as [in, out]
        ("transformer.h.1.mlp.c_proj.weight[3,5]", "transformer.h.1.mlp.c_proj.weight", (5, 3)),
        ("transformer.h.0.attn.c_attn.weight[70,9]", "transformer.h.0.attn.c_attn.weight", (9, 70)),
        ("transformer.ln_f.weight[4]", "transformer.ln_f.weight", (4,)),
    ):
        spec = spec_for(target, metrics=("magnitude", "grad_x_weight"), gradients=gradients)
        card = weight_card(wrap(doubled(tiny_model("gpt2"))), spec, texts=TEXTS)
        for row in card.ranks:
            everything = torch.cat([part.flatten() for part in scores[row.metric].values()])
            own = scores[row.metric][name][place]
            assert row.score == pytest.approx(float(own), rel=1e-9)
            assert row.rank == 1 + int((everything > own * (1 + 1e-12)).sum())
            assert (row.of, row.equal) == (len(everything), int((everything == own).sum()) - 1)
            inside = torch.cat([p.flatten() for n, p in scores[row.metric].items() if ".h." in n and p.dim() > 1])
            expected = 1 + int((inside > own * (1 + 1e-12)).sum()) if len(place) > 1 else None
            assert (row.rank_in_matrices, row.of_matrices) == (expected, len(inside))


def test_the_rank_by_every_metric_is_the_place_in_the_ranking_of_a_run() -> None:
    loaded = wrap(tiny_model("llama"))
    metrics = CARD_METRICS
    run = cwa.analyze(loaded, texts=TEXTS, metrics=list(metrics), topk=[3], perturbations=[])
    second = {metric: run.topk(metric)[1] for metric in metrics}
    for metric, weight in second.items():
        card = weight_card(loaded, spec_for(weight.target, metrics=metrics), texts=TEXTS)
        row = next(row for row in card.ranks if row.metric == metric)
        assert (row.rank, row.score) == (2 - (run.topk(metric)[0].score == weight.score), weight.score), metric


def test_equal_scores_are_counted_and_share_the_rank() -> None:
    model = tiny_model("llama")
    name = "model.layers.0.mlp.up_proj.weight"
    changed(model, name, {(0, 0): 100.0, (0, 1): -50.0, (0, 2): 50.0, (0, 3): 50.0})
    card = weight_card(wrap(model), spec_for(f"{name}[0,2]"), texts=TEXTS)
    assert (card.ranks[0].rank, card.ranks[0].equal, card.facts.rank, card.facts.equal) == (2, 2, 2, 2)


def test_a_metric_that_does_not_rank_a_weight_says_which_it_ranks() -> None:
    card = examined("llama", "model.norm.weight[4]", metrics=CARD_METRICS)
    by_name = {row.metric: row for row in card.ranks}
    assert by_name["magnitude"].rank and by_name["obd"].rank
    assert (by_name["super_weight"].rank, by_name["super_weight"].why) == (
        None,
        "it ranks weights of down projections alone",
    )
    assert by_name["wanda"].why == "it ranks weights of linear layers in the decoder blocks alone"


def test_the_hessian_diagonal_is_ranked_where_it_is_asked_for_and_called_an_estimate() -> None:
    (row,) = examined("llama", DOWN, metrics=("hutchinson_diag",), probes=2).ranks
    assert row.rank and row.why == "an estimate by 2 probes, as all it is ranked among"


def test_cards_rank_by_all_metrics_that_are_scored_but_one() -> None:
    assert set(METRICS) - set(CARD_METRICS) == {"ablation", "hutchinson_diag"}


@pytest.mark.parametrize(("family", "target"), sorted(A_WEIGHT_OF_EACH_KIND))
def test_damage_is_what_a_run_of_the_same_weight_measures(family: str, target: str) -> None:
    loaded = wrap(tiny_model(family))
    run = cwa.analyze(loaded, texts=TEXTS, metrics=[], weights=[target], controls=[], kl=True, dose=[0.5, -1.0])
    card = weight_card(loaded, spec_for(target, dose=(0.5, -1.0)), texts=TEXTS)
    expected = {point.perturbation: point for point in run.damage}
    assert dataclasses.replace(card.alone, kl=None) == dataclasses.replace(expected["zero"], kl=None)
    assert card.alone.kl == pytest.approx(expected["zero"].kl, rel=1e-9, abs=1e-15)
    assert [dose.perturbation for dose in card.doses] == ["scale -1", "scale 0.5"]
    for dose in card.doses:
        assert dataclasses.replace(dose, kl=None, top1_agreement=None) == dataclasses.replace(
            expected[dose.perturbation], kl=None, top1_agreement=None
        )
    assert card.baseline == run.baseline


def test_neighbours_are_the_largest_others_and_their_joint_damage_is_that_of_zeroing_all() -> None:
    card, name, texts = of_down(), "model.layers.1.mlp.down_proj.weight", TEXTS[1::2]
    weight = tiny_model("llama").get_parameter(name).detach()
    intact, tokens = plain_nll(tiny_model("llama"), texts)
    assert [row.group for row in card.neighbours] == ["row", "column", "tensor"]
    others = {"row": [(3, i) for i in range(64)], "column": [(o, 5) for o in range(32)],
              "tensor": [(o, i) for o in range(32) for i in range(64)]}  # fmt: skip
    for row in card.neighbours:
        order = sorted(others[row.group], key=lambda place: -abs(float(weight[place])))
        places = [(3, 5), *[place for place in order if place != (3, 5)][:2]]
        assert list(row.targets) == [f"{name}[{o},{i}]" for o, i in places]
        alone = [
            np.array(plain_nll(changed(tiny_model("llama"), name, {place: 0.0}), texts)[0]) - intact for place in places
        ]
        joint = np.array(plain_nll(changed(tiny_model("llama"), name, dict.fromkeys(places, 0.0)), texts)[0]) - intact
        assert row.joint.delta_nll == pytest.approx(joint.sum() / sum(tokens), abs=1e-6)
        assert row.alone == pytest.approx([change.sum() / sum(tokens) for change in alone], abs=1e-6)
        assert row.sum_alone == pytest.approx(sum(row.alone), abs=1e-9)
        assert row.excess == pytest.approx(row.joint.delta_nll - row.sum_alone, abs=1e-9)
        assert row.excess_low <= row.excess <= row.excess_high


def test_two_weights_that_cancel_each_other_do_much_alone_and_nothing_together() -> None:
    model, block = tiny_model("llama"), "model.layers.1.mlp"
    with torch.no_grad():
        for name in ("gate_proj", "up_proj"):  # in_features 5 and 6 of the down projection become the same
            rows = model.get_parameter(f"{block}.{name}.weight")
            rows[6] = rows[5]
    changed(model, f"{block}.down_proj.weight", {(3, 5): 60.0, (3, 6): -60.0})
    card = weight_card(wrap(model), spec_for(DOWN), texts=TEXTS)
    row = next(row for row in card.neighbours if row.group == "row")
    assert row.targets[:2] == (DOWN, f"{block}.down_proj.weight[3,6]")
    assert abs(card.alone.delta_nll) > 0.02 > 100 * abs(row.joint.delta_nll)
    assert row.excess == pytest.approx(-row.sum_alone, rel=0.05)


@pytest.mark.parametrize(("family", "target"), sorted(A_WEIGHT_OF_EACH_KIND))
def test_the_model_is_bit_for_bit_as_it_was(family: str, target: str) -> None:
    model = tiny_model(family)
    before = fingerprint(model)
    card = weight_card(wrap(model), spec_for(target, metrics=CARD_METRICS), texts=TEXTS)
    assert fingerprint(model) == before
    assert card.facts.target == target and card.floor is not None and card.floor.repeat == 0


def test_a_cancel_at_any_stage_leaves_the_model_as_it_was() -> None:
    model = tiny_model("llama")
    before, stages = fingerprint(model), []

    def listen(event: Event) -> None:
        if isinstance(event, StageStarted):
            stages.append(event.stage)

    weight_card(wrap(model), spec_for(DOWN), listen, TEXTS)
    assert stages == [
        "facts", "texts", "baseline", "score", "prepare", "alone", "neighbours", "doses", "bits", "activity", "tokens", "check",
    ]  # fmt: skip

    for stage in stages[2:]:

        def cancel(event: Event, stage: str = stage) -> None:
            if isinstance(event, Progress) and event.stage == stage and event.done:
                raise Cancelled("enough")

        with pytest.raises(Cancelled):
            weight_card(wrap(model), spec_for(DOWN), cancel, TEXTS)
        assert fingerprint(model) == before, stage


def test_a_card_comes_over_the_wire_as_it_was() -> None:
    card = of_down()
    back = from_plain(WeightCard, json.loads(json.dumps(to_plain(card))))
    assert to_plain(back) == to_plain(card)
    assert dataclasses.replace(back, bits=()) == dataclasses.replace(card, bits=())


def test_a_dose_that_makes_the_model_collapse_is_told_as_collapse() -> None:
    model = changed(tiny_model("llama"), "model.layers.1.mlp.down_proj.weight", {(3, 5): 2.0})
    card = weight_card(wrap(model), spec_for(DOWN, dose=(3e38,)), texts=TEXTS)
    (dose,) = card.doses
    assert dose.collapsed_at == "model.layers.1.mlp.down_proj" and not math.isfinite(dose.delta_nll)
    assert math.isnan(from_plain(WeightCard, to_plain(card)).doses[0].delta_nll)


@pytest.mark.parametrize(
    ("target", "said", "hint"),
    [
        ("model.layers.1.mlp.down_proj.weight[3,:]", "names 64 weights, and a card is of one", r"\[3,0\]"),
        ("model.layers.1.mlp.down_proj.weight[:,5]", "names 32 weights", "cwtool run --weights"),
        ("model.layers.1.mlp.down_prj.weight[3,5]", "no parameter", "model.layers.1.mlp.down_proj.weight"),
        ("model.layers.1.mlp.down_proj.weight[3,64]", "outside", "in 0 to 63"),
        ("model.layers.1.mlp.down_proj.weight[3]", "1 indices", "out 0 to 31"),
        ("down_proj", "names no weight", "out, in"),
    ],
)
def test_anything_but_one_weight_is_refused_with_the_next_step(target: str, said: str, hint: str) -> None:
    with pytest.raises(InvalidInput, match=said) as refused:
        examined("llama", target)
    assert re.search(hint, refused.value.hint)


def test_a_notebook_gets_the_card_of_a_model_in_memory() -> None:
    model = tiny_model("llama").train()
    before = fingerprint(model)
    card = cwa.weight_card(model, DOWN, tokenizer=tiny_tokenizer(), texts=TEXTS)
    assert fingerprint(model) == before and model.training
    assert {row.metric for row in card.ranks} == set(CARD_METRICS)
    assert card.alone.delta_nll == of_down().alone.delta_nll and len(card.fingerprint) == 64
    with pytest.raises(InvalidInput, match="unknown option 'topk'"):
        cwa.weight_card(model, DOWN, tokenizer=tiny_tokenizer(), topk=[3])
