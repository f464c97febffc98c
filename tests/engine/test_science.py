"""What a run says beyond scores and damage: verdicts, interactions, stability, fidelity, doses, reproducibility."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cwa_engine.base.errors import DataError, InvalidInput, RunFailed
from cwa_engine.damage.patch import patched
from cwa_engine.data.corpus import load_texts
from cwa_engine.data.tokens import tokenize
from cwa_engine.evaluation.divergence import divergence
from cwa_engine.evaluation.perplexity import evaluate
from cwa_engine.methods.controls import CONTROLS
from cwa_engine.methods.perturbations import PERTURBATIONS
from cwa_engine.pipeline import analyze
from cwa_engine.questions.fidelity import Predictions
from cwa_engine.questions.interactions import Interactions
from cwa_engine.questions.stability import Stability
from cwa_engine.records.export import run_tables
from cwa_engine.rows import SequenceNll
from cwa_engine.spec import RunSpec
from tests.engine.conftest import TEXTS, fingerprint, wrap
from tests.models import tiny_model


def spec(data_file: Path | None, **fields: Any) -> RunSpec:
    return RunSpec(
        model="tiny", **{"data_file": data_file, "topk": (3,), "control_seeds": 2, "matrices": False, **fields}
    )


def taught(loaded: Any, epochs: int) -> Any:
    """The model after it has learnt its texts, so that it has something to lose. Its final norm stays as it is."""
    learning = [p for name, p in loaded.model.named_parameters() if name != "model.norm.weight"]
    optimizer = torch.optim.AdamW(learning, lr=1e-2)
    sequences = [torch.tensor([loaded.tokenizer(text)["input_ids"]]) for text in TEXTS]
    for _ in range(epochs):
        for ids in sequences:
            (loaded.model(input_ids=ids, labels=ids).loss / len(sequences)).backward()
        optimizer.step()
        optimizer.zero_grad()
    loaded.model.zero_grad()
    return loaded


@pytest.fixture(scope="module")
def trained() -> Any:
    return taught(wrap(tiny_model("llama")), 40)


@pytest.fixture
def learnt(trained: Any) -> Any:
    return wrap(copy.deepcopy(trained.model))


# What else is measured


def test_kl_and_top1_agreement_are_those_of_the_two_models_side_by_side(learnt: Any, data_file: Path) -> None:
    result = analyze(learnt, spec(data_file, kl=True, batch_size=3))
    point = next(p for p in result.damage if p.selection == "critical")
    damaged = copy.deepcopy(learnt.model)
    for row in result.rankings[0].weights:
        damaged.get_parameter(row.parameter).data.view(-1)[row.flat_index] = 0
    kl, same, tokens = 0.0, 0, 0
    for text in TEXTS[1::2]:
        ids = torch.tensor([learnt.tokenizer(text)["input_ids"]])
        with torch.no_grad():
            p, q = (model(input_ids=ids).logits[0, :-1].double().softmax(-1) for model in (learnt.model, damaged))
        kl += float((p * (p / q).log()).sum())
        same += int((p.argmax(-1) == q.argmax(-1)).sum())
        tokens += len(p)
    assert point.kl == pytest.approx(kl / tokens, rel=1e-4)
    assert point.top1_agreement == pytest.approx(same / tokens)


def test_an_unchanged_model_diverges_by_nothing(learnt: Any, data_file: Path) -> None:
    sequences = tokenize(learnt.tokenizer, load_texts(data_file), 512)
    same = divergence(learnt, sequences, lambda: patched(learnt.model, {}, PERTURBATIONS["zero"]))
    assert same.kl == pytest.approx(0, abs=1e-9)
    assert same.top1_agreement == 1.0


def test_every_statistic_can_be_redone_from_the_losses_of_the_sequences(learnt: Any, data_file: Path) -> None:
    result = analyze(learnt, spec(data_file))

    def mean(rows: list[SequenceNll]) -> float:
        return sum(row.nll_sum for row in rows) / sum(row.tokens for row in rows)

    rows = sorted(result.evaluations, key=lambda row: (row.metric, row.selection, row.seed or 0))
    by_case = {
        case: mean(list(members))
        for case, members in itertools.groupby(rows, lambda r: (r.metric, r.selection, r.seed))
    }
    assert by_case["", "intact", None] == pytest.approx(result.baseline.nll, rel=1e-12)
    for point in result.damage:
        assert by_case[point.metric, point.selection, point.seed] == pytest.approx(point.nll, rel=1e-12)


def test_two_weights_that_stand_in_for_each_other_matter_only_together(learnt: Any, data_file: Path) -> None:
    # One column of the MLP's output is shared between two equal hidden units: without one the other still does its half;
    # so each is worth half alone, and what a third, unread unit does is nothing.
    block = learnt.model.model.layers[1].mlp
    block.down_proj.weight.data[:, 5] = 0
    block.gate_proj.weight.data[5] = 0
    name = "model.layers.1.mlp.down_proj.weight"
    result = analyze(
        learnt, spec(data_file, weights=(f"{name}[:,5]", f"{name}[:,6]", f"{name}[:,7]"), metrics=(), individually=True)
    )
    rows = {row.target: row for row in result.answer(Interactions).rows}
    inert = rows[f"{name}[:,5]"]
    assert (inert.alone, inert.share, inert.role) == (0.0, 0.0, "inert")
    joint = next(p.delta_nll for p in result.damage if p.selection == "critical")
    sequences = tokenize(learnt.tokenizer, load_texts(data_file)[1::2], 512)
    for target, column, other in ((f"{name}[:,6]", 6, 7), (f"{name}[:,7]", 7, 6)):
        for gone, expected in ((column, rows[target].alone), (other, rows[target].without)):
            kept = block.down_proj.weight.data[:, gone].clone()
            block.down_proj.weight.data[:, gone] = 0
            assert evaluate(learnt, sequences).nll - result.baseline.nll == pytest.approx(expected, abs=1e-9)
            block.down_proj.weight.data[:, gone] = kept
        assert rows[target].share == pytest.approx(joint - rows[target].without, abs=1e-12)


def test_a_dose_multiplies_and_the_dose_of_one_changes_nothing(learnt: Any, data_file: Path) -> None:
    before = fingerprint(learnt.model)
    result = analyze(learnt, spec(data_file, dose=(0.0, 1.0, -1.0), perturbations=("zero", "sign_flip")))
    delta = {p.perturbation: p.delta_nll for p in result.damage if p.selection == "critical"}
    assert delta["scale 0"] == pytest.approx(delta["zero"], abs=1e-12)
    assert delta["scale -1"] == pytest.approx(delta["sign_flip"], abs=1e-12)
    assert delta["scale 1"] == 0
    assert {p.selection for p in result.damage if p.perturbation.startswith("scale")} == {"critical"}
    assert fingerprint(learnt.model) == before


def test_the_position_test_writes_the_same_values_over_other_weights_of_the_same_parameter(
    learnt: Any, data_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    receipts: list[Any] = []

    def listening(*args: Any, **kwargs: Any) -> Any:
        manager = patched(*args, **kwargs)
        receipts.append((args[2].name, manager))
        return manager

    before = fingerprint(learnt.model)
    result = analyze(learnt, spec(data_file, perturbations=(), position_test=True))
    assert [(p.selection, p.seed, p.weights) for p in result.damage] == [("elsewhere", 0, 3), ("elsewhere", 1, 3)]
    assert fingerprint(learnt.model) == before
    critical = result.rankings[0].weights
    chosen = {name: np.array(sorted(w.flat_index for w in critical if w.parameter == name)) for name in
              {w.parameter for w in critical}}  # fmt: skip
    values = {
        n: learnt.model.get_parameter(n).detach().view(-1)[torch.from_numpy(i)].clone() for n, i in chosen.items()
    }
    from cwa_engine.methods.controls import Population

    drawn = CONTROLS["random_matched"].draw(
        chosen,
        Population(learnt.anatomy.parameters, lambda name: np.empty(0, np.float32)),
        np.random.default_rng([0, 3]),
    )
    for name, places in drawn.items():
        assert not set(places.tolist()) & set(chosen[name].tolist())
        learnt.model.get_parameter(name).data.view(-1)[torch.from_numpy(places)] = values[name]
    sequences = tokenize(learnt.tokenizer, load_texts(data_file)[1::2], 512)
    assert evaluate(learnt, sequences).nll == pytest.approx(result.damage[0].nll, abs=1e-9)


@pytest.mark.parametrize(("dtype", "bits"), [(torch.float32, 32), (torch.bfloat16, 16), (torch.float16, 16)])
def test_every_bit_of_the_top_weights_can_be_tried(learnt: Any, data_file: Path, dtype: torch.dtype, bits: int) -> None:
    half = wrap(learnt.model.to(dtype))
    before = fingerprint(half.model)
    result = analyze(half, spec(data_file, perturbations=("bit_flip",), bit="all", topk=(1,)))
    labels = [p.perturbation for p in result.damage]
    assert labels == [f"bit_flip {bit}" for bit in range(bits)]
    by_bit = {p.perturbation: p for p in result.damage}
    worst = max((p for p in result.damage), key=lambda p: float("inf") if p.collapsed_at else p.delta_nll)
    assert abs(by_bit["bit_flip 0"].delta_nll) < 0.01
    assert worst.collapsed_at or worst.delta_nll > abs(by_bit["bit_flip 0"].delta_nll)
    assert fingerprint(half.model) == before


# Stability and fidelity


def test_stability_compares_rankings_by_disjoint_halves(learnt: Any, data_file: Path) -> None:
    result = analyze(learnt, spec(data_file, topk=(5, 20), stability="halves", perturbations=()))
    scored = tokenize(learnt.tokenizer, load_texts(data_file)[0::2], 512)
    tops = []
    for half in (scored[0::2], scored[1::2]):
        gradient = {name: torch.zeros_like(p) for name, p in learnt.model.named_parameters()}
        for sequence in half:
            learnt.model.zero_grad()
            ids = torch.tensor([sequence.ids])
            (learnt.model(input_ids=ids, labels=ids).loss * (len(sequence.ids) - 1)).backward()
            for name, p in learnt.model.named_parameters():
                gradient[name] += p.grad
        learnt.model.zero_grad()
        scores = torch.cat([(p.detach() * gradient[n]).abs().flatten() for n, p in learnt.model.named_parameters()])
        tops.append(scores.topk(20).indices.tolist())
    rows = {row.k: row for row in result.answer(Stability).agreements}
    for k in (5, 20):
        shared = set(tops[0][:k]) & set(tops[1][:k])
        assert rows[k].jaccard == pytest.approx(len(shared) / (2 * k - len(shared)))
        assert rows[k].chance == pytest.approx(k / (2 * learnt.anatomy.numel - k))
    ranked = {row.target: row.stable for row in result.rankings[0].weights}
    assert 0 < sum(bool(stable) for stable in ranked.values()) <= len(set(tops[0]) & set(tops[1]))


def test_resamples_are_compared_in_pairs_and_a_metric_without_texts_always_agrees(learnt: Any, data_file: Path) -> None:
    result = analyze(
        learnt, spec(data_file, stability=3, perturbations=(), metrics=("magnitude", "grad_squared"), seed=5)
    )
    pairs = [(row.metric, row.first, row.second) for row in result.answer(Stability).agreements]
    assert pairs == [(m, *p) for m in ("magnitude", "grad_squared") for p in ((1, 2), (1, 3), (2, 3))]
    same = [row for row in result.answer(Stability).agreements if row.metric == "magnitude"]
    assert {(row.jaccard, round(row.rbo, 12), round(row.spearman or 0, 12)) for row in same} == {(1.0, 1.0, 1.0)}
    assert all(row.stable for row in result.rankings[0].weights)


def test_stability_of_too_few_texts_is_refused(learnt: Any, data_file: Path) -> None:
    with pytest.raises(DataError, match="at least two scoring texts"):
        analyze(learnt, spec(data_file, stability="halves", eval_limit=2, perturbations=()))


def test_fidelity_measures_every_sampled_weight_alone(learnt: Any, data_file: Path) -> None:
    result = analyze(learnt, spec(data_file, metrics=("grad_x_weight", "magnitude"), fidelity=60, perturbations=()))
    sequences = tokenize(learnt.tokenizer, load_texts(data_file)[1::2], 512)
    for row in result.answer(Predictions).rows[::10]:
        name, _, inside = row.target.partition("[")
        place = tuple(int(number) for number in inside.rstrip("]").split(","))
        weight = learnt.model.get_parameter(name).data
        kept = float(weight[place])
        weight[place] = 0
        assert row.delta_nll == pytest.approx(evaluate(learnt, sequences).nll - result.baseline.nll, abs=1e-9)
        weight[place] = kept
    gradient, _ = result.answer(Predictions).fidelity
    assert (gradient.metric, gradient.units) == ("grad_x_weight", len(result.answer(Predictions).rows))
    scores = np.array([row.scores[0] for row in result.answer(Predictions).rows])
    changes = np.array([abs(row.delta_nll) for row in result.answer(Predictions).rows])
    ranks = [side.argsort().argsort() for side in (scores, changes)]
    assert gradient.spearman == pytest.approx(np.corrcoef(ranks[0], ranks[1])[0, 1], abs=0.01)  # few are equal
    assert gradient.spearman and gradient.spearman > 0.6
    assert gradient.overlap == len(set((-scores).argsort()[:20].tolist()) & set((-changes).argsort()[:20].tolist()))
    strata = {row.stratum for row in result.answer(Predictions).rows}
    assert {"top 20 of grad_x_weight", "ranks 21 to 100 of magnitude", "all of grad_x_weight"} <= strata


# Texts


def test_a_text_that_occurs_twice_is_never_on_both_sides(learnt: Any, tmp_path: Path) -> None:
    path = tmp_path / "twice.txt"
    path.write_text("\n\n".join([TEXTS[0], TEXTS[0], *TEXTS[1:4], TEXTS[1]]))
    result = analyze(learnt, spec(path, topk=(1,)))
    assert (result.texts.texts, result.texts.repeated, result.texts.overlap) == (4, 2, 0)
    assert result.texts.scoring_sha256 != result.texts.evaluation_sha256


def test_windows_are_cut_from_the_joined_texts(learnt: Any, data_file: Path) -> None:
    result = analyze(learnt, spec(data_file, packed=True, seq_len=16, topk=(1,)))
    ids = learnt.tokenizer("\n\n".join(TEXTS[1::2]))["input_ids"]
    windows = len(ids) // 16
    assert (result.baseline.sequences, result.baseline.tokens) == (windows, 15 * windows)
    assert "windows of 16 tokens" in result.baseline.protocol
    losses = [
        learnt.model(input_ids=w, labels=w).loss.item() * 15
        for w in torch.tensor(ids[: 16 * windows]).view(windows, 1, 16)
    ]
    assert result.baseline.nll == pytest.approx(sum(losses) / (15 * windows), rel=1e-5)
    with pytest.raises(DataError, match="less than one window of 512"):
        analyze(learnt, spec(data_file, packed=True))


def test_a_baseline_that_is_not_finite_names_the_text_and_the_layer(learnt: Any, data_file: Path) -> None:
    learnt.model.model.layers[0].mlp.up_proj.weight.data[0, 0] = float("inf")
    with pytest.raises(RunFailed, match=r"evaluation sequence 1 of 4, first at model\.layers\.0\.mlp\.up_proj"):
        analyze(learnt, spec(data_file))


# Given weights, filters, structures


def test_given_weights_are_damaged_as_they_are_and_compared_with_the_same_controls(
    learnt: Any, data_file: Path
) -> None:
    targets = ("model.layers.0.mlp.down_proj.weight[3,:]", "model.layers.1.mlp.down_proj.weight[4,:]")
    result = analyze(learnt, spec(data_file, weights=targets, metrics=()))
    (ranking,) = result.rankings
    assert (ranking.metric, ranking.structure, [w.target for w in ranking.weights]) == ("given", "row", list(targets))
    assert {(p.k, p.weights) for p in result.damage if p.selection in ("critical", "random_matched")} == {(2, 128)}
    learnt.model.model.layers[0].mlp.down_proj.weight.data[3] = 0
    learnt.model.model.layers[1].mlp.down_proj.weight.data[4] = 0
    sequences = tokenize(learnt.tokenizer, load_texts(data_file)[1::2], 512)
    critical = next(p for p in result.damage if p.selection == "critical")
    assert evaluate(learnt, sequences).nll == pytest.approx(critical.nll, rel=1e-9)


@pytest.mark.parametrize("structure", ["row", "column", "head"])
def test_structures_are_damaged_whole_with_whole_ones_for_controls(
    loaded: Any, data_file: Path, structure: str
) -> None:
    before = fingerprint(loaded.model)
    controls = ("random", "random_matched", "magnitude_matched", "bottom", "top_magnitude")
    result = analyze(loaded, spec(data_file, structure=structure, topk=(2,), controls=controls))
    assert fingerprint(loaded.model) == before
    assert {p.selection for p in result.damage} == {"critical", *controls}
    parameters = loaded.anatomy.parameters
    of_critical = sum(
        parameters[w.parameter].numel
        // {"row": parameters[w.parameter].out_features * (parameters[w.parameter].experts or 1),
            "column": parameters[w.parameter].in_features * (parameters[w.parameter].experts or 1), "head": 2}[structure]
        for w in result.rankings[0].weights
    )  # fmt: skip
    assert {p.weights for p in result.damage if p.selection in ("critical", "random_matched")} == {of_critical}
    with pytest.raises(InvalidInput, match="single weights"):
        analyze(loaded, spec(data_file, structure=structure, topk=(2,), controls=("same_row",)))


def test_a_masked_head_is_one_whose_output_is_gone(learnt: Any, data_file: Path) -> None:
    target = "model.layers.1.self_attn.o_proj.weight[:,16:32]"
    result = analyze(learnt, spec(data_file, weights=(target,), metrics=()))
    projection = learnt.model.model.layers[1].self_attn.o_proj

    def mask(module: Any, args: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        kept = args[0].clone()
        kept[..., 16:32] = 0
        return (kept,)

    projection.register_forward_pre_hook(mask)
    sequences = tokenize(learnt.tokenizer, load_texts(data_file)[1::2], 512)
    critical = next(p for p in result.damage if p.selection == "critical")
    assert (result.rankings[0].structure, critical.weights) == ("head", 512)
    assert evaluate(learnt, sequences).nll == pytest.approx(critical.nll, rel=1e-6)


def test_filters_keep_rankings_and_controls_to_what_is_in_view(learnt: Any, data_file: Path) -> None:
    result = analyze(learnt, spec(data_file, include=("down",), exclude=("*.layers.0.*",)))
    assert {w.parameter for w in result.rankings[0].weights} == {"model.layers.1.mlp.down_proj.weight"}
    assert result.eligible == 32 * 64 < result.parameters
    drawn = [row for row in result.damage if row.selection == "random"]
    assert len(drawn) == 2


# Reproducibility


def test_the_same_run_gives_the_same_bytes_and_another_seed_does_not(learnt: Any, data_file: Path) -> None:
    asked = spec(
        data_file,
        metrics=("grad_x_weight", "hutchinson_diag"),
        probes=2,
        perturbations=("resample", "gaussian_noise", "bit_flip"),
        individually=True,
        stability=2,
        fidelity=20,
        kl=True,
        position_test=True,
    )
    first, again = (dict(run_tables(analyze(learnt, asked))) for _ in range(2))
    assert first == again
    assert set(first) >= {"perturbation.csv", "evaluation.csv", "interactions.csv", "stability.csv", "fidelity.csv"}
    other = dict(run_tables(analyze(learnt, asked.model_copy(update={"seed": 1}))))
    assert other["topk_grad_x_weight.csv"].count(b"\n") == first["topk_grad_x_weight.csv"].count(b"\n")
    assert other["perturbation.csv"] != first["perturbation.csv"]
