"""What a run says of its critical sets: by which rule, with which errors, and from which draws."""

from __future__ import annotations

import copy
import csv
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cwa_engine.data.corpus import load_texts
from cwa_engine.data.tokens import tokenize
from cwa_engine.evaluation.perplexity import evaluate
from cwa_engine.methods.controls import CONTROLS
from cwa_engine.models.fan_out import fan_out
from cwa_engine.pipeline import analyze
from cwa_engine.records.export import run_tables
from cwa_engine.spec import RunSpec
from tests.architectures import tiny_architecture
from tests.engine.conftest import wrap
from tests.engine.eliminated_by_hand import by_hand, parts_of
from tests.models import tiny_model

TEXTS = [f"Text {number}: {phrase}, and {number * 7 % 10} more of the like." for number in range(40) for phrase in
         (("the harbour was quiet", "copper and tin", "nobody told the clock")[number % 3],)]  # fmt: skip


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.txt"
    path.write_text("\n\n".join(TEXTS))
    return path


def spec(texts: Path | None, **fields: Any) -> RunSpec:
    return RunSpec(model="tiny", **{"data_file": texts, "topk": (3,), "matrices": False, "seq_len": 32, **fields})


def taught(model: Any, epochs: int = 40) -> Any:
    """A model that has learnt the texts, so that it has something to lose. Its final norm stays as it is."""
    loaded = wrap(model)
    learning = [p for name, p in model.named_parameters() if name != "model.norm.weight"]
    optimizer = torch.optim.AdamW(learning, lr=1e-2)
    sequences = [torch.tensor([loaded.tokenizer(text)["input_ids"][:32]]) for text in TEXTS[:8]]
    for _ in range(epochs):
        for ids in sequences:
            (model(input_ids=ids, labels=ids).loss / len(sequences)).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.zero_grad()
    return loaded


def planted_model(epochs: int = 60) -> Any:
    """A model in which all that was learnt must go through channel 9 of the final norm."""
    model = tiny_model("llama")
    model.model.norm.weight.data[9] = 40.0
    return taught(model, epochs).model


@pytest.fixture(scope="module")
def trained() -> Any:
    return taught(tiny_model("llama")).model


@pytest.fixture
def learnt(trained: Any) -> Any:
    return wrap(copy.deepcopy(trained))


@pytest.fixture(scope="module")
def planted() -> Any:
    return planted_model()


def test_a_planted_critical_weight_is_distinguishable_and_the_sentence_says_what_it_costs(
    planted: Any, texts: Path
) -> None:
    result = analyze(wrap(planted), spec(texts, topk=(1,)))
    assert result.rankings[0].weights[0].target.endswith(("[9]", ",9]"))
    (verdict,) = result.verdicts
    assert verdict.outcome == "harmful"
    said = "The critical set is distinguishable from its controls: zeroing the weight with the largest grad_x_weight"
    assert verdict.sentence.startswith(said)
    assert verdict.sentence.count("p = 0.05") == 2
    assert {(row.draws, row.as_extreme, row.p_value) for row in result.separations} == {(19, 0, 1 / 20)}


def test_a_removal_that_helps_is_told_from_one_that_harms(learnt: Any, texts: Path) -> None:
    head = learnt.model.lm_head.weight
    with torch.no_grad():
        head[7] = 0.0
        head[7, 3] = 20.0  # a token that is never right is likely wherever feature 3 is large
    result = analyze(learnt, spec(texts, weights=("lm_head.weight[7,3]",), metrics=()))
    (verdict,) = result.verdicts
    assert result.damage[0].delta_nll < -0.1
    assert verdict.outcome == "helpful"
    assert "the model is better without it" in verdict.sentence


@pytest.mark.parametrize("metric", ["grad_x_weight", "magnitude"])
def test_p_values_come_from_an_elimination_and_the_draw_ahead_is_measured_until_it_is_clear(
    metric: str, learnt: Any, texts: Path
) -> None:
    asked = spec(texts, controls=("random_matched", "magnitude_matched"), control_seeds=20, metrics=(metric,))
    result = analyze(learnt, asked)
    losses: dict[tuple[str, int | None], dict[int, float]] = {}
    tokens: dict[int, int] = {}
    for loss in result.evaluations:
        losses.setdefault((loss.selection, loss.seed), {})[loss.sequence] = loss.nll_sum
        tokens[loss.sequence] = loss.tokens
    intact = losses["intact", None]
    assert len(intact) == len(losses["critical", None]) == 20

    def change(case: Any, where: Any) -> float:
        return sum(losses[case][n] - intact[n] for n in where) / sum(tokens[n] for n in where)

    assert result.floor
    for row in result.separations:
        drawn = [case for case in losses if case[0] == row.control]
        order, measured = by_hand(change, ("critical", None), drawn, parts_of(20), tokens)
        ahead = order.index(("critical", None))
        assert (row.draws, row.texts, row.as_extreme) == (len(drawn), 8, ahead)
        assert row.p_value == (1 + ahead) / (1 + len(drawn))
        assert row.critical == pytest.approx(change(("critical", None), parts_of(20)[2]), rel=1e-9)
        first = next(case for case in order if case[0] == row.control)  # type: ignore[index]
        if row.p_value <= 0.05:
            measured[first] = 20  # with 20 texts the first look is the last
        assert {case: len(losses[case]) for case in drawn} == {case: measured[case] for case in drawn}
        assert row.median == pytest.approx(float(np.median([change(case, losses[case]) for case in drawn])), rel=1e-9)
        assert row.largest_texts == measured[first]
        assert row.largest == pytest.approx(change(first, losses[first]), rel=1e-9)  # type: ignore[index]
        size = max(abs(row.largest or 0), result.floor.rounding)
        assert row.ratio == pytest.approx(abs(change(("critical", None), set(intact))) / size, rel=1e-9)
    assert {row.control: row.draws for row in result.separations} == {"random_matched": 20, "magnitude_matched": 50}


def test_every_draw_can_be_measured_again_from_its_targets(learnt: Any, texts: Path) -> None:
    result = analyze(learnt, spec(texts, controls=("random",), control_seeds=2))
    rows = list(csv.DictReader(io.StringIO(dict(run_tables(result))["controls.csv"].decode())))
    assert {(row["metric"], row["k"], row["control"]) for row in rows} == {("grad_x_weight", "3", "random")}
    evaluation = tokenize(learnt.tokenizer, load_texts(texts)[1::2], 32)
    for point in (point for point in result.damage if point.selection == "random"):
        model = copy.deepcopy(learnt.model)
        for row in (row for row in rows if row["seed"] == str(point.seed)):
            name, _, place = row["target"].rstrip("]").partition("[")
            model.get_parameter(name).data[tuple(int(number) for number in place.split(","))] = 0.0
        sums = {r.sequence: r.nll_sum for r in result.evaluations if (r.selection, r.seed) == ("random", point.seed)}
        again = evaluate(wrap(model), evaluation).nll_sums
        assert len(sums) == point.sequences
        assert [sums[n] for n in sorted(sums)] == pytest.approx([again[n - 1] for n in sorted(sums)], rel=1e-6)


@pytest.mark.parametrize(
    ("fields", "missing"),
    [
        ({"control_seeds": 3}, "3 draws of random are too few for a p-value, 19 can show 0.05"),
        ({"eval_limit": 24}, "12 texts were measured, 16 are needed"),
        ({"controls": ("top_magnitude",)}, "no control is drawn at random"),
    ],
)
def test_without_what_a_test_needs_nothing_is_claimed(
    fields: dict[str, Any], missing: str, planted: Any, texts: Path
) -> None:
    result = analyze(wrap(planted), spec(texts, topk=(1,), **fields))
    (verdict,) = result.verdicts
    assert verdict.outcome == "not tested"
    assert missing in verdict.sentence and "p =" not in verdict.sentence
    if "control_seeds" in fields:
        assert {row.p_value for row in result.separations} == {None}
        assert "(0 of 3 draws of random came out ahead" in verdict.sentence


def test_sets_are_tested_from_the_largest_on_until_one_fails(learnt: Any, texts: Path) -> None:
    asked = spec(texts, weights=(), topk=(1, 40), metrics=("magnitude",), controls=("random_matched",))
    result = analyze(learnt, asked)
    outcomes = {verdict.k: verdict.outcome for verdict in result.verdicts}
    by_k = {row.k: row for row in result.separations}
    assert by_k[40].p_value is not None
    if by_k[40].p_value > 0.05 or not by_k[40].beyond:
        assert outcomes == {40: "indistinguishable", 1: "not tested"}
        (small,) = (verdict for verdict in result.verdicts if verdict.k == 1)
        assert "the larger set of 40 is not distinguishable" in small.sentence
    else:
        assert outcomes[40] in ("harmful", "helpful")


@pytest.mark.parametrize("model_type", ["gpt2", "llama", "gpt_neox", "opt", "mixtral", "bloom"])
@pytest.mark.parametrize("metric", ["grad_x_weight", "magnitude"])
def test_a_model_that_is_no_better_than_guessing_has_no_critical_set(model_type: str, metric: str, texts: Path) -> None:
    loaded = wrap(tiny_architecture(model_type))
    said: list[Any] = []
    result = analyze(loaded, spec(texts, metrics=(metric,), topk=(5, 20), control_seeds=19), said.append)
    assert result.baseline.nll > math.log(result.baseline.vocabulary) - 0.1
    assert {verdict.outcome for verdict in result.verdicts} == {"not tested"}
    assert any("no better than guessing" in getattr(event, "text", "") for event in said)


def test_random_sets_are_rarely_called_distinguishable(learnt: Any, texts: Path) -> None:
    """Weights named at random stand for a metric that knows nothing. By the rank test at most 5 % may be distinguishable."""
    rng = np.random.default_rng(0)
    name = "model.layers.0.mlp.down_proj.weight"
    rows, columns = learnt.model.get_parameter(name).shape
    called = 0
    for trial in range(40):
        places = rng.choice(rows * columns, 5, replace=False)
        targets = tuple(f"{name}[{place // columns},{place % columns}]" for place in places)
        asked = spec(texts, weights=targets, metrics=(), controls=("random_matched",), seed=1000 * trial, eval_limit=32)
        (verdict,) = analyze(learnt, asked).verdicts
        assert verdict.outcome != "not tested"
        called += verdict.distinguishable
    assert called <= 6  # more happen to a rule of 5 % in 1 of 100 series


def test_the_numerical_floor_is_what_rounding_does_and_grows_with_the_dtypes_steps(learnt: Any, texts: Path) -> None:
    fine = analyze(learnt, spec(texts, control_seeds=1)).floor
    coarse = analyze(wrap(copy.deepcopy(learnt.model).bfloat16()), spec(texts, control_seeds=1)).floor
    assert fine is not None and coarse is not None
    assert fine.repeat == 0.0
    assert 0 < fine.rounding < 1e-5
    assert 100 * fine.rounding < coarse.rounding < 0.05


def test_a_change_within_rounding_is_not_distinguishable(learnt: Any, texts: Path) -> None:
    loaded = wrap(copy.deepcopy(learnt.model).bfloat16())
    dead = loaded.model.model.layers[1].mlp.down_proj.weight
    with torch.no_grad():
        dead[5, 7] = 0.0
    result = analyze(loaded, spec(texts, weights=("model.layers.1.mlp.down_proj.weight[5,7]",), metrics=()))
    (verdict,) = result.verdicts
    assert verdict.outcome == "indistinguishable"
    assert "rounding alone changes the loss" in verdict.sentence


# The ranking beside the ranking: matrices alone, and by halves


def test_matrices_of_blocks_have_a_ranking_and_a_verdict_of_their_own(planted: Any, texts: Path) -> None:
    result = analyze(wrap(planted), spec(texts, matrices=True, topk=(2,)))
    whole, matrices = result.rankings
    assert (whole.metric, matrices.metric) == ("grad_x_weight", "grad_x_weight_matrices")
    assert all(row.layer is not None and row.in_feature is not None for row in matrices.weights)
    alone = analyze(wrap(planted), spec(texts, topk=(2,), include=("*_proj.weight",)))
    assert [(w.target, w.score) for w in matrices.weights] == [(w.target, w.score) for w in alone.rankings[0].weights]
    assert {row.control for row in result.separations if row.metric == matrices.metric} == {"random_matched"}
    assert [verdict.metric for verdict in result.verdicts] == [whole.metric, matrices.metric]
    assert "of the blocks' matrices with the largest grad_x_weight" in result.verdicts[1].sentence


@pytest.mark.parametrize("fields", [{"include": ("down",)}, {"structure": "row"}, {"metrics": ("wanda",)}])
def test_a_ranking_that_is_narrowed_already_has_no_second_one(fields: dict[str, Any], learnt: Any, texts: Path) -> None:
    result = analyze(learnt, spec(texts, matrices=True, control_seeds=1, **fields))
    assert len(result.rankings) == 1


@pytest.mark.parametrize("gradients", ["resident", "sweep"])
@pytest.mark.parametrize("metric", ["grad_x_weight", "grad_squared", "wanda"])
def test_the_halves_of_the_texts_rank_as_runs_over_them_would(
    gradients: str, metric: str, learnt: Any, tmp_path: Path
) -> None:
    def ranked(texts: list[str], **fields: Any) -> Any:
        path = tmp_path / "some.txt"
        path.write_text("\n\n".join(texts))
        asked = spec(path, metrics=(metric,), topk=(4, 12), perturbations=(), gradients=gradients, **fields)
        return analyze(learnt, asked)

    result = ranked(TEXTS[:32])
    scored = TEXTS[:32][0::2]
    # Every second text is scored, so each half of those is written twice as wide.
    halves = [
        [text for pair in zip(half, TEXTS[32:40], strict=True) for text in pair]
        for half in (scored[0::2], scored[1::2])
    ]
    tops = [ranked(half).rankings[0] for half in halves]
    ours = result.rankings[0]
    assert len(result.halves) == 3  # at 4, 10 and 12
    for row in result.halves:
        names = {w.target for w in ours.top(row.k)}
        first, second = ({w.target for w in top.top(row.k)} for top in tops)
        expected = len(names & first), len(names & second), len(names & first & second), len(first & second)
        assert (row.first, row.second, row.both, row.common) == expected
        assert row.chance == row.k**2 / sum(learnt.anatomy.parameters[name].numel for name in ours.parameters)


def test_joined_halves_score_as_all_texts_at_once(learnt: Any, texts: Path) -> None:
    from cwa_engine.methods.metrics import METRICS
    from cwa_engine.sensitivity.gradients import resident
    from cwa_engine.sensitivity.ranking import rank

    scoring = tokenize(learnt.tokenizer, load_texts(texts)[0::2], 32)
    for metric in ("grad_x_weight", "grad_squared", "obd", "wanda", "gblm", "super_weight"):
        at_once = rank(learnt, resident(learnt, scoring, METRICS[metric].needs, 1), metric, 20)
        by_halves = analyze(learnt, spec(texts, metrics=(metric,), topk=(20,), perturbations=())).rankings[0]
        assert [w.target for w in by_halves.weights] == [w.target for w in at_once.weights]
        assert [w.score for w in by_halves.weights] == pytest.approx([w.score for w in at_once.weights], rel=1e-4)
        found, expected = ([(s.target, s.position, s.text, s.token) for s in r.spikes] for r in (by_halves, at_once))
        assert found == expected
        assert bool(found) == (metric == "super_weight")


def test_fan_out_counts_the_weights_that_read_what_a_weight_writes(learnt: Any, texts: Path) -> None:
    found = {name: fan_out(learnt, parameter) for name, parameter in learnt.anatomy.parameters.items()}
    config = learnt.model.config
    heads = config.hidden_size * 3  # q, k and v of as many heads each
    assert found["model.norm.weight"] == config.vocab_size
    assert found["model.layers.0.input_layernorm.weight"] == heads
    assert found["model.layers.1.post_attention_layernorm.weight"] == 2 * config.intermediate_size
    assert found["model.layers.0.mlp.down_proj.weight"] == 1
    every_norm = 2 * (heads + 2 * config.intermediate_size) + config.vocab_size
    assert found["model.embed_tokens.weight"] == every_norm
    gain = copy.deepcopy(learnt.model)
    column = copy.deepcopy(learnt.model)
    with torch.no_grad():
        gain.model.norm.weight[3] = 0
        column.lm_head.weight[:, 3] = 0  # as many weights as the gain's fan-out
    ids = torch.arange(5, 20)[None]
    assert torch.equal(gain(ids).logits, column(ids).logits)


def test_a_run_says_beforehand_how_many_passes_damage_takes(learnt: Any, texts: Path) -> None:
    said: list[Any] = []
    analyze(learnt, spec(texts, topk=(3,), controls=("random", "random_matched")), said.append)
    notes = [event.text for event in said if event.kind == "note" and event.text.startswith("damage takes")]
    # 20 texts once for the set; 2 × 19 draws on 8, and the leading draw of each control on the other 12
    passes = (20 + 2 * 19 * 8 + 2 * 12) / 20
    assert notes == [
        f"damage takes at most {passes:.1f} passes over the evaluation texts (20), for 38 draws of controls on up to 8 of "
        "them and the leading draw of each control on up to all; draws that are far behind take less, and so do "
        "--fast-perturbation and fewer --control-seeds"
    ]


def test_fan_out_of_a_norm_that_experts_read_is_not_known() -> None:
    experts = wrap(tiny_model("mixtral"))
    found = {name: fan_out(experts, parameter) for name, parameter in experts.anatomy.parameters.items()}
    assert found["model.layers.0.post_attention_layernorm.weight"] is None
    assert found["model.embed_tokens.weight"] is None
    assert found["model.layers.0.input_layernorm.weight"]
    assert found["model.norm.weight"] == experts.model.config.vocab_size


def test_controls_are_as_many_as_their_registry_says(learnt: Any, texts: Path) -> None:
    result = analyze(learnt, spec(texts, controls=tuple(CONTROLS), control_seeds=2, topk=(2,)))
    for row in result.separations:
        control = CONTROLS[row.control]
        assert row.draws == (max(2, control.least_draws) if control.is_random else 1)
        assert (row.p_value is None) == (row.draws < 19)
