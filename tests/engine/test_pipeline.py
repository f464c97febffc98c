"""A whole analysis on small models: what it finds, what it says, and that the model is as before."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from cwa_engine.base import events
from cwa_engine.base.errors import Cancelled, InvalidInput, ModelBroken, OutOfMemory, RunFailed, WeightsNotRestored
from cwa_engine.data.corpus import load_texts
from cwa_engine.data.tokens import tokenize
from cwa_engine.evaluation.collapse import first_non_finite_layer
from cwa_engine.evaluation.perplexity import evaluate
from cwa_engine.methods.controls import CONTROLS
from cwa_engine.methods.perturbations import PERTURBATIONS, Perturbation
from cwa_engine.pipeline import analyze
from cwa_engine.rows import to_plain
from cwa_engine.spec import RunSpec
from tests.engine.conftest import fingerprint, wrap
from tests.models import tiny_model


def spec(data_file: Path | None, **fields: Any) -> RunSpec:
    few = {"topk": (2, 5), "control_seeds": 3, "matrices": False}
    return RunSpec(model="tiny", **{"data_file": data_file, **few, **fields})


def run(loaded: Any, asked: RunSpec) -> tuple[Any, list[dict[str, Any]]]:
    said: list[dict[str, Any]] = []
    return analyze(loaded, asked, lambda event: said.append(events.to_dict(event))), said


@pytest.fixture
def overflowing() -> Iterator[str]:
    """A perturbation that writes infinity."""
    PERTURBATIONS.add("overflow", Perturbation("overflow", lambda old, edit: old.new_full(old.shape, math.inf)))
    yield "overflow"
    del PERTURBATIONS._entries["overflow"]


def test_every_architecture_is_analysed_and_left_as_it_was(loaded: Any, data_file: Path) -> None:
    before = fingerprint(loaded.model)
    result, _ = run(loaded, spec(data_file, metrics=("grad_x_weight", "grad_squared", "magnitude")))
    assert fingerprint(loaded.model) == before
    assert result.floor.repeat == 0
    assert len(result.damage) == 3 * 2 * (1 + 3 + 3)
    assert all(len(ranking.weights) == 5 for ranking in result.rankings)


def test_a_planted_critical_weight_is_found_and_stands_out_from_its_controls(llama: Any, data_file: Path) -> None:
    norm = llama.model.model.norm.weight.data
    norm[9] = 40.0
    result, _ = run(llama, spec(data_file, topk=(1,)))
    top = result.rankings[0].weights[0]
    assert (top.parameter, top.flat_index, top.value) == ("model.norm.weight", 9, 40.0)
    separation = {s.control: s for s in result.separations}
    assert set(separation) == {"random", "random_matched"}
    assert all(s.ratio is not None and s.ratio > 10 for s in separation.values())
    perplexity = {(point.selection, point.seed): point.perplexity for point in result.damage}
    drawn = [value for case, value in perplexity.items() if case != ("critical", None)]
    assert abs(perplexity["critical", None] / result.baseline.perplexity - 1) > 0.5
    assert drawn == pytest.approx([result.baseline.perplexity] * 6, rel=0.05)


def test_every_control_is_measured_and_those_without_chance_once(llama: Any, data_file: Path) -> None:
    result, _ = run(llama, spec(data_file, topk=(4,), controls=tuple(CONTROLS), control_seeds=2))
    measured = [(point.selection, point.seed) for point in result.damage]
    assert ("bottom", None) in measured and ("same_row", 1) in measured
    draws = [max(2, control.least_draws) if control.is_random else 1 for _, control in CONTROLS.items()]
    assert len(measured) == 1 + sum(draws)
    assert {point.weights for point in result.damage} == {4}


def test_the_bottom_control_holds_the_lowest_scores_of_all(llama: Any, data_file: Path) -> None:
    result, _ = run(llama, spec(data_file, metrics=("magnitude",), topk=(4,), controls=("bottom",)))
    everything = torch.cat([p.detach().abs().flatten() for p in llama.model.parameters()])
    assert [row.score for row in result.rankings[0].lowest] == everything.sort().values[:4].tolist()


def test_damage_is_the_loss_of_a_model_whose_weights_are_really_gone(llama: Any, data_file: Path) -> None:
    result, _ = run(llama, spec(data_file, topk=(3,)))
    sequences = tokenize(llama.tokenizer, load_texts(data_file)[1::2], 512)
    for weight in result.rankings[0].weights:
        llama.model.get_parameter(weight.parameter).data.view(-1)[weight.flat_index] = 0.0
    critical = next(point for point in result.damage if point.selection == "critical")
    assert critical.nll == pytest.approx(evaluate(llama, sequences).nll, rel=1e-7)
    assert critical.perplexity_ratio == pytest.approx(critical.perplexity / result.baseline.perplexity, rel=1e-9)


@pytest.mark.parametrize(("texts", "evaluated", "fast"), [(48, 24, 6), (50, 25, 7), (12, 6, 4), (5, 2, 2)])
def test_fast_perturbation_measures_baseline_and_damage_on_the_same_quarter_of_four_at_least(
    llama: Any, tmp_path: Path, texts: int, evaluated: int, fast: int
) -> None:
    path = tmp_path / "texts.txt"
    path.write_text("\n\n".join(f"Text {number} of many, and no two are alike." for number in range(texts)))
    asked = spec(path, topk=(1,), control_seeds=1)
    slow_run, _ = run(llama, asked)
    fast_run, _ = run(llama, asked.model_copy(update={"fast_perturbation": True}))
    assert (slow_run.texts.damage, fast_run.texts.damage) == (evaluated, fast)
    assert fast_run.rankings == slow_run.rankings
    few = evaluate(llama, tokenize(llama.tokenizer, load_texts(path)[1::2][:fast], 512))
    assert (fast_run.baseline.nll, fast_run.baseline.sequences) == (few.nll, fast)
    for point in fast_run.damage:
        assert point.nll - few.nll == pytest.approx(point.delta_nll, abs=1e-12)


def test_without_perturbation_weights_are_ranked_and_nothing_is_damaged(llama: Any, data_file: Path) -> None:
    result, said = run(llama, spec(data_file, perturbations=()))
    assert (result.damage, result.separations, result.floor, result.texts.damage) == ((), (), None, 0)
    assert "perturb" not in {event.get("stage") for event in said}


def test_one_text_alone_is_scored_and_measured_and_that_is_said(llama: Any, data_file: Path) -> None:
    result, said = run(llama, spec(data_file, eval_limit=1))
    assert (result.texts.shared, result.texts.overlap) == (True, 1)
    assert any("only one text" in event.get("text", "") for event in said)


def test_texts_that_were_cut_are_counted_and_that_is_said(llama: Any, data_file: Path) -> None:
    result, said = run(llama, spec(data_file, seq_len=8))
    assert result.texts.truncated == 8
    assert any("8 of 8 texts are longer than 8 tokens" in event.get("text", "") for event in said)


def test_more_weights_than_there_are_is_refused_with_their_number(llama: Any, data_file: Path) -> None:
    with pytest.raises(InvalidInput, match=f"{llama.anatomy.numel:,} weights"):
        run(llama, spec(data_file, topk=(llama.anatomy.numel + 1,)))


def test_a_tokenizer_that_belongs_to_another_model_is_named_before_anything_is_computed(data_file: Path) -> None:
    model = tiny_model("llama")
    model.resize_token_embeddings(100)
    with pytest.raises(ModelBroken, match=r"the tokenizer of tiny gives token \d+, but the model has only 100"):
        run(wrap(model), spec(data_file))


def test_all_weights_may_be_asked_for(llama: Any, data_file: Path) -> None:
    result, _ = run(llama, spec(data_file, topk=(llama.anatomy.numel,), eval_limit=2, control_seeds=1))
    places = {(w.parameter, w.flat_index) for w in result.rankings[0].weights}
    assert len(places) == llama.anatomy.numel


def test_a_collapse_is_named_by_its_first_layer_and_never_averaged_away(
    llama: Any, data_file: Path, overflowing: str
) -> None:
    llama.model.model.layers[1].mlp.down_proj.weight.data.view(-1)[3] = 500.0
    before = fingerprint(llama.model)
    result, said = run(llama, spec(data_file, metrics=("magnitude",), topk=(1,), perturbations=(overflowing,)))
    critical = result.damage[0]
    assert critical.collapsed_at == "model.layers.1.mlp.down_proj"
    assert not math.isfinite(critical.nll)
    assert {(s.ratio, s.critical, s.largest) for s in result.separations} == {(None, None, None)}
    json.dumps([to_plain(result.damage), said], allow_nan=False)
    assert fingerprint(llama.model) == before


def test_a_baseline_that_is_not_finite_stops_the_run(llama: Any, data_file: Path) -> None:
    llama.model.model.norm.weight.data[0] = math.inf
    with pytest.raises(RunFailed, match="the intact model's loss"):
        run(llama, spec(data_file))


def in_stage(stage: str) -> Callable[[events.Event], bool]:
    """Whether an event says that a batch of this stage is done."""
    return lambda event: isinstance(event, events.Progress) and event.stage == stage and event.done > 0


def between_two_texts(event: events.Event) -> bool:
    """Whether the event comes while some weights are damaged: each set is measured on two texts, and then on two more."""
    return isinstance(event, events.Progress) and event.stage == "perturb" and event.done % 2 > 0


@pytest.mark.parametrize(
    "moment",
    [
        in_stage("baseline"),
        in_stage("score"),
        lambda event: event.kind == "topk" and not event.partial,
        between_two_texts,  # of the critical set
        lambda event: between_two_texts(event) and event.done > event.total / 2,  # of a control
        lambda event: event.kind == "damage",
    ],
    ids=["baseline", "scoring", "selected", "damaged", "control damaged", "measured"],
)
@pytest.mark.parametrize("reason", [Cancelled, KeyboardInterrupt])
def test_a_cancel_ends_the_run_at_once_with_the_model_as_it_was(
    llama: Any, data_file: Path, moment: Callable[[events.Event], bool], reason: type[BaseException]
) -> None:
    before = fingerprint(llama.model)
    heard: list[bool] = []

    def cancel(event: events.Event) -> None:
        heard.append(moment(event))
        if heard[-1]:
            raise reason("enough")

    with pytest.raises(reason):
        analyze(llama, spec(data_file), cancel)
    assert heard.count(True) == 1 and heard[-1]
    assert fingerprint(llama.model) == before
    assert all(parameter.grad is None for parameter in llama.model.parameters())
    result, _ = run(llama, spec(data_file, topk=(1,), eval_limit=2, control_seeds=1))  # and it is fit for the next run
    assert result.floor.largest == 0


def test_weights_are_damaged_while_the_damage_is_measured(llama: Any, data_file: Path) -> None:
    before, inside = fingerprint(llama.model), []

    def listen(event: events.Event) -> None:
        if between_two_texts(event):
            inside.append(fingerprint(llama.model) != before)

    analyze(llama, spec(data_file), listen)
    assert len(inside) == 2 * 2 * (1 + 3 + 3)  # places between two texts; two sizes; critical and two controls
    assert all(inside)
    assert fingerprint(llama.model) == before


def test_a_model_that_is_not_restored_is_noticed(llama: Any, data_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(*args: Any) -> Any:
        llama.model.model.norm.weight.data[0] += 1
        return []

    monkeypatch.setattr("cwa_engine.pipeline.measure_damage", careless)
    with pytest.raises(WeightsNotRestored, match="the baseline differs"):
        run(llama, spec(data_file))


def test_rounding_beside_other_texts_of_a_batch_is_not_taken_for_weights_that_were_not_restored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "texts.txt"
    path.write_text("\n\n".join(f"Text {n} of many" + f", and {n * n} more" * (n * 7 % 13) for n in range(36)))
    asked = spec(path, topk=(1,), control_seeds=1, batch_size=3)
    llama = wrap(tiny_model("llama").bfloat16())
    result, _ = run(llama, asked)
    assert 0 < abs(result.floor.repeat) < 0.01

    def careless(*args: Any) -> Any:
        llama.model.model.norm.weight.data[0] += 1
        return []

    monkeypatch.setattr("cwa_engine.pipeline.measure_damage", careless)
    with pytest.raises(WeightsNotRestored, match="the baseline differs"):
        run(llama, asked)


def test_running_out_of_memory_says_what_to_change(
    llama: Any, data_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def greedy(*args: Any) -> Any:
        return torch.empty(2**60)  # what torch itself raises, not an imitation

    monkeypatch.setattr("cwa_engine.sensitivity.scoring.resident", greedy)
    with pytest.raises(OutOfMemory) as raised:
        run(llama, spec(data_file, batch_size=8))
    assert "--batch-size 4" in raised.value.hint


def test_an_edit_that_changes_nothing_is_reported(llama: Any, data_file: Path) -> None:
    for parameter in llama.model.parameters():
        parameter.data[parameter.data.abs() < 1e9] = 0.0
    _, said = run(llama, spec(data_file, metrics=("magnitude",), topk=(1,), eval_limit=2))
    assert any("changed none of the 1 critical weights" in event.get("text", "") for event in said)


def test_events_tell_the_stages_in_order_and_progress_only_grows(llama: Any, data_file: Path) -> None:
    result, said = run(llama, spec(data_file))
    borders = [(event["kind"], event["stage"]) for event in said if event["kind"].startswith("stage_")]
    stages = ["texts", "baseline", "score", "select", "prepare", "rounding", "perturb", "check"]
    assert borders == [(kind, stage) for stage in stages for kind in ("stage_started", "stage_finished")]
    assert list(result.timings) == stages
    for stage in ("baseline", "score", "prepare", "rounding", "perturb", "check"):
        places = [place for place, event in enumerate(said) if event.get("stage") == stage]
        progress = [said[place] for place in places if said[place]["kind"] == "progress"]
        assert [said[places[0]]["kind"], said[places[-1]]["kind"]] == ["stage_started", "stage_finished"]
        assert len({(event["total"], event["unit"]) for event in progress}) == 1
        done = [event["done"] for event in progress]
        assert (done, done[0], done[-1]) == (sorted(done), 0, progress[0]["total"])


@pytest.mark.parametrize("batch_size", [1, 3])
def test_each_point_of_damage_is_told_as_soon_as_it_is_measured(llama: Any, data_file: Path, batch_size: int) -> None:
    result, said = run(llama, spec(data_file, batch_size=batch_size))
    told = [event["point"] for event in said if event["kind"] == "damage"]
    last_said = {(p["metric"], p["k"], p["perturbation"], p["selection"], p["seed"]): p for p in told}
    assert list(last_said.values()) == to_plain(result.damage)
    again = [point for point in told if point not in last_said.values()]  # on some texts, and later on more
    assert all(point["selection"] != "critical" and point["sequences"] in (2, 4, 8) for point in again)
    json.dumps(said, allow_nan=False)


def test_partial_rankings_are_shown_while_scoring_and_the_last_one_is_exact(llama: Any, data_file: Path) -> None:
    result, said = run(llama, spec(data_file))
    tables = [event for event in said if event["kind"] == "topk"]
    assert [table["partial"] for table in tables] == [True, False]
    assert tables[-1]["weights"] == to_plain(result.rankings[0].weights)


def test_the_first_layer_is_found_also_where_a_later_text_is_the_cause(llama: Any, data_file: Path) -> None:
    sequences = tokenize(llama.tokenizer, load_texts(data_file), 512)
    only_in_last = set(sequences[-1].ids) - {token for s in sequences[:-1] for token in s.ids}
    llama.model.model.embed_tokens.weight.data[next(iter(only_in_last))] = math.nan
    assert first_non_finite_layer(llama, sequences) == "model.embed_tokens"


def test_every_event_of_interest_has_its_line(llama: Any, data_file: Path) -> None:
    _, said = run(llama, spec(data_file))
    lines = [line for event in said if (line := events.describe(event))]
    assert any(line.startswith("baseline perplexity") for line in lines)
    assert any("k=5 zero random_matched seed 2" in line for line in lines)
