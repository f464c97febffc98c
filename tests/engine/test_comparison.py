"""Runs beside each other: every figure by hand, and a reason for every figure that is not given."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest

import cwa_engine as cwa
from cwa_engine.base.errors import InvalidInput
from cwa_engine.base.statistics import paired_delta
from cwa_engine.records.comparison import rank_pairs
from cwa_engine.records.run_report import RunReport
from cwa_engine.rows import to_plain
from tests.engine.conftest import TEXTS, wrap
from tests.models import tiny_model, tiny_tokenizer

MANY = [f"{text} This is number {number} of its kind." for number in range(2) for text in TEXTS]
OTHERS = [f"{text} It was written on day {number}, at noon." for number in range(2) for text in TEXTS]
ASKED: dict[str, Any] = {"metrics": ["grad_x_weight"], "topk": [5, 20], "control_seeds": 2}


def analyzed(model: Any, texts: list[str] = MANY, **options: Any) -> RunReport:
    return cwa.analyze(wrap(model), texts=texts, **{**ASKED, **options})


@pytest.fixture(scope="module")
def llama() -> Any:
    return tiny_model("llama")


@pytest.fixture(scope="module")
def first(llama: Any) -> RunReport:
    return analyzed(llama, metrics=["grad_x_weight", "magnitude"])


@pytest.fixture(scope="module")
def other_texts(llama: Any) -> RunReport:
    return analyzed(llama, OTHERS)


@pytest.fixture(scope="module")
def other_metric(llama: Any) -> RunReport:
    """The same texts as the first, and another set under the name of the same metric."""
    return analyzed(llama, metrics=["grad_x_weight"], seq_len=512, control_seeds=3, seed=4)


@pytest.fixture(scope="module")
def gpt2() -> RunReport:
    return analyzed(tiny_model("gpt2"))


def table(report: RunReport, name: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(report.files.read(name).decode())))


def test_the_overlap_of_two_rankings_is_that_of_their_files(first: RunReport, other_texts: RunReport) -> None:
    tops = [[row["target"] for row in table(report, "topk_grad_x_weight.csv")][:20] for report in (first, other_texts)]
    common = set(tops[0]) & set(tops[1])
    assert len(common) > 0
    row = next(row for row in cwa.compare(first, other_texts).overlaps if (row.metric, row.k) == ("grad_x_weight", 20))
    assert (row.common, row.of_first, row.of_second) == (len(common), 20, 20)
    assert row.jaccard == len(common) / (40 - len(common))
    weights = first.model.parameters
    tail = sum(math.comb(20, x) * math.comb(weights - 20, 20 - x) for x in range(len(common), 21))
    assert row.p_value == pytest.approx(tail / math.comb(weights, 20), rel=1e-9)
    assert row.population == weights
    assert row.expected == pytest.approx(400 / weights)
    places = [np.argsort(np.argsort([top.index(target) for target in sorted(common)])) for top in tops]
    assert row.spearman == pytest.approx(np.corrcoef(places[0], places[1])[0, 1])


def test_chance_within_parameters_is_of_sets_with_as_many_weights_of_each(
    first: RunReport, other_texts: RunReport, llama: Any
) -> None:
    sizes = {name: parameter.numel() for name, parameter in llama.named_parameters()}
    counts = [
        Counter(row["parameter"] for row in table(report, "topk_grad_x_weight.csv")[:20])
        for report in (first, other_texts)
    ]
    expected = sum(counts[0][name] * counts[1][name] / sizes[name] for name in sizes)
    row = cwa.compare(first, other_texts, metric="grad_x_weight", k=20).overlaps[0]
    assert row.expected_within == pytest.approx(expected)
    assert row.expected is not None and row.expected_within is not None and row.expected < row.expected_within
    assert row.p_value is not None and row.p_within is not None and row.p_value < row.p_within


def test_the_ranking_of_matrices_has_chance_among_matrices_alone(first: RunReport, other_texts: RunReport) -> None:
    rows = {row.metric: row for row in cwa.compare(first, other_texts, k=5).overlaps}
    matrices = [row for row in first.ranked if "grad_x_weight_matrices" in row.metrics]
    assert rows["grad_x_weight_matrices"].population == sum(row.units for row in matrices) < first.model.parameters
    assert all(row.layer is not None and "norm" not in row.component for row in matrices)


def test_places_of_both_rankings_are_paired(first: RunReport, other_texts: RunReport) -> None:
    pairs = rank_pairs(first, other_texts, "grad_x_weight", 20)
    ours, theirs = ({w.target: w.rank for w in report.topk("grad_x_weight")} for report in (first, other_texts))
    assert {pair.target: (pair.first, pair.second) for pair in pairs} == {
        target: (ours.get(target), theirs.get(target)) for target in {**ours, **theirs}
    }


def test_one_model_and_the_same_texts_give_one_ranking_which_says_nothing_of_other_texts(
    first: RunReport, other_metric: RunReport
) -> None:
    found = cwa.compare(first, other_metric)
    row = found.overlaps[-1]
    assert (row.common, row.jaccard, row.spearman, row.kendall) == (20, 1, 1, 1)
    assert row.rbo == pytest.approx(1)
    assert any("says nothing of other texts" in sentence for sentence in found.sentences)
    assert all(row.difference == row.low == row.high == 0 for row in found.damage_differences)
    assert {entry.what for entry in found.differences} == {"--metric", "--control-seeds", "--seed"}
    assert found.differing == "the runs differ in --metric, --control-seeds and --seed"


def test_texts_of_one_source_may_be_the_same_in_part_and_the_answer_says_so(llama: Any, first: RunReport) -> None:
    fewer = [
        cwa.analyze(wrap(llama), eval_limit=limit, metrics=["grad_x_weight"], topk=[5], perturbations=[])
        for limit in (8, 12)
    ]
    assert not cwa.compare(*fewer).pairs[0].same_scoring
    assert any("some may be the same" in sentence for sentence in cwa.compare(*fewer).sentences)
    assert not any("some may be the same" in sentence for sentence in cwa.compare(first, fewer[0]).sentences)


def test_a_metric_that_reads_no_texts_is_said_to(first: RunReport, llama: Any) -> None:
    other = analyzed(llama, OTHERS, metrics=["magnitude"], perturbations=[])
    found = cwa.compare(first, other)
    assert {row.metric for row in found.overlaps} == {"magnitude", "magnitude_matrices"}
    assert not any("reads no texts" in said for said in found.sentences)  # of models in memory nobody knows
    files = {"model.safetensors": "0" * 64}
    same = [
        dataclasses.replace(
            report, summary=dataclasses.replace(report.summary, model=dataclasses.replace(report.model, files=files))
        )
        for report in (first, other)
    ]
    assert all("reads no texts" in said for said in cwa.compare(*same).sentences if "share" in said)


def test_models_of_other_sizes_are_compared_by_component_and_depth_and_not_by_weight(
    first: RunReport, gpt2: RunReport
) -> None:
    found = cwa.compare(first, gpt2)
    assert found.overlaps == ()
    assert "the models differ in size" in found.pairs[0].other_weights
    assert any("not compared weight by weight" in sentence for sentence in found.sentences)
    assert {row.by for row in found.distances} == {"component", "depth"}
    with pytest.raises(InvalidInput, match="the models differ in size"):
        rank_pairs(first, gpt2, "grad_x_weight", 5)


def test_models_of_one_size_and_other_vocabularies_are_not_compared_by_weight(first: RunReport) -> None:
    baseline = dataclasses.replace(first.baseline, vocabulary=7)
    other = renamed(first, baseline=baseline, model=dataclasses.replace(first.model, name="b"))
    assert "vocabulary" in cwa.compare(first, other).pairs[0].other_weights


def test_a_tokenizer_that_makes_other_tokens_of_the_same_texts_is_found_out(first: RunReport) -> None:
    baseline = dataclasses.replace(first.baseline, tokens=first.baseline.tokens + 1)
    other = renamed(first, baseline=baseline, model=dataclasses.replace(first.model, name="b"))
    pair = cwa.compare(first, other).pairs[0]
    assert "the tokenizers differ" in pair.other_weights
    assert any("tokens measured" in reason for reason in pair.other_measuring)


def test_shares_of_components_and_depth_are_those_of_the_ranking(first: RunReport, gpt2: RunReport) -> None:
    found = cwa.compare(first, gpt2, metric="grad_x_weight", k=20)
    rows = table(first, "topk_grad_x_weight.csv")[:20]
    by_component = Counter(row["component"] for row in rows)
    shares = {row.part: row for row in found.shares if row.run == first.run_id and row.by == "component"}
    assert {part: row.count for part, row in shares.items() if row.count} == by_component
    assert all(row.share == row.count / 20 for row in shares.values())
    assert sum(row.eligible or 0 for row in shares.values()) == pytest.approx(1)
    layers = 2  # of the tiny model: the first is in the second quarter by its middle, the second in the last
    names = {"": "outside the blocks", "0": "second quarter", "1": "last quarter"}
    by_depth = Counter(names[row["layer"]] for row in rows)
    depth = {row.part: row.count for row in found.shares if row.run == first.run_id and row.by == "depth"}
    assert first.layers == layers and {part: count for part, count in depth.items() if count} == by_depth
    distance = next(row for row in found.distances if row.by == "component")
    parts = {row.part for row in found.shares if row.by == "component"}
    theirs = Counter(row["component"] for row in table(gpt2, "topk_grad_x_weight.csv")[:20])
    assert distance.distance == pytest.approx(sum(abs(by_component[p] - theirs[p]) / 20 for p in parts) / 2)


def test_damage_is_the_logarithm_of_the_perplexity_ratio_with_the_interval_of_the_run(
    first: RunReport, gpt2: RunReport
) -> None:
    found = cwa.compare(first, gpt2)
    for report in (first, gpt2):
        for row in table(report, "perturbation.csv"):
            if row["selection"] != "critical" or row["metric"] != "grad_x_weight":
                continue
            level = next(
                level
                for level in found.damage
                if (level.run, level.metric, level.k, level.selection)
                == (report.run_id, row["metric"], int(row["k"]), "critical")
            )
            assert level.log_ratio == pytest.approx(math.log(float(row["perplexity_ratio"])))
            assert (level.low, level.high) == (float(row["delta_low"]), float(row["delta_high"]))
            assert level.bits_per_byte is not None and level.log_ratio is not None
            bits = report.baseline.bits_per_byte or math.nan
            assert level.bits_per_byte / level.log_ratio == pytest.approx(bits / report.baseline.nll)


def test_the_difference_of_damage_is_paired_text_by_text(first: RunReport, gpt2: RunReport) -> None:
    found = next(row for row in cwa.compare(first, gpt2, k=20).damage_differences if row.metric == "grad_x_weight")
    changes = []
    for report in (first, gpt2):
        rows = table(report, "evaluation.csv")
        intact = {row["sequence"]: row for row in rows if row["selection"] == "intact"}
        critical = [
            row for row in rows if (row["metric"], row["k"], row["selection"]) == ("grad_x_weight", "20", "critical")
        ]
        changes.append([float(row["nll_sum"]) - float(intact[row["sequence"]]["nll_sum"]) for row in critical])
        tokens = [float(row["tokens"]) for row in critical]
    difference = (sum(changes[0]) - sum(changes[1])) / sum(tokens)
    assert found.difference == pytest.approx(difference)
    assert found.low < difference < found.high and found.texts == len(tokens)


def test_curves_on_other_texts_are_never_mixed_without_a_word(first: RunReport, other_texts: RunReport) -> None:
    found = cwa.compare(first, other_texts)
    assert found.damage_differences == ()
    assert any("other texts measured" in reason for reason in found.pairs[0].other_measuring)
    assert any("must not be read against each other" in sentence for sentence in found.sentences)


def test_a_perturbation_with_other_settings_is_never_mixed_without_a_word(llama: Any) -> None:
    asked = {"topk": [5], "control_seeds": 1, "perturbations": ["zero", "quantize"]}
    runs = [analyzed(llama, MANY, bits=bits, **asked) for bits in (4, 2)]
    found = cwa.compare(*runs)
    assert {row.perturbation for row in found.damage_differences} == {"zero"}
    assert found.pairs[0].unlike("quantize") == ("other --bits: 4 and 2",)
    assert found.pairs[0].unlike("zero") == ()
    assert any("quantize is not the same in both" in sentence for sentence in found.sentences)


def test_two_sets_of_the_same_effect_differ_clearly_at_most_one_time_in_twenty() -> None:
    """Skewed changes of 33 texts, as damage has them; both runs have the same expected change."""
    rng, wrong, trials = np.random.default_rng(11), 0, 2000
    for _ in range(trials):
        tokens = rng.integers(20, 60, 33).astype(float)
        shared = rng.lognormal(0, 0.8, 33)  # some texts suffer more from either set
        changes = [tokens * shared * rng.lognormal(0, 0.5, 33) for _ in range(2)]
        _, low, high = paired_delta(changes[0], changes[1], tokens)
        wrong += low > 0 or high < 0
    assert wrong / trials <= 0.055


def test_runs_that_ranked_other_parameters_have_chance_within_these_alone(first: RunReport, llama: Any) -> None:
    only_mlp = analyzed(llama, include=["*.mlp.*"], perturbations=[])
    row = cwa.compare(first, only_mlp, metric="grad_x_weight").overlaps[-1]
    assert (row.population, row.p_value) == (None, None) and row.p_within is not None
    assert "--include" in row.unknown


def test_a_top_k_of_every_layer_has_chance_within_parameters_alone(llama: Any) -> None:
    runs = [analyzed(llama, texts, scope="per_layer", topk=[3], perturbations=[]) for texts in (MANY, OTHERS)]
    row = cwa.compare(*runs).overlaps[0]
    assert row.of_first > 3 and row.p_value is None and row.p_within is not None and "per_layer" in row.unknown
    assert (row.rbo, row.kendall) == (None, None)


def test_lists_of_other_things_are_refused_and_their_damage_is_subtracted_by_force_alone(
    first: RunReport, llama: Any
) -> None:
    only_ranked = analyzed(llama, structure="row", perturbations=[])
    with pytest.raises(InvalidInput, match="one by weight, the other by row") as refused:
        cwa.compare(first, only_ranked)
    assert "--force" not in refused.value.hint
    rows = analyzed(llama, structure="row")
    with pytest.raises(InvalidInput, match="one by weight, the other by row") as refused:
        cwa.compare(first, rows)
    assert "--force" in refused.value.hint
    found = cwa.compare(first, rows, force=True)
    assert not found.overlaps and not found.distances
    assert {row.reasons for row in found.damage_differences} == {
        ("the runs rank by structure: one by weight, the other by row",)
    }
    with pytest.raises(InvalidInput, match="the other by row"):
        cwa.compare(first, only_ranked, force=True)


def test_runs_with_nothing_in_common_are_refused(first: RunReport, llama: Any) -> None:
    with pytest.raises(InvalidInput, match="they share no ranking"):
        cwa.compare(first, analyzed(llama, metrics=["taylor"], perturbations=[]))


def test_damage_on_other_texts_is_subtracted_by_force_with_the_reasons_beside_it(
    first: RunReport, other_texts: RunReport
) -> None:
    found = cwa.compare(first, other_texts, metric="grad_x_weight", k=20, force=True)
    (row,) = found.damage_differences
    points = [
        next(p for p in report.damage if (p.metric, p.k, p.selection) == ("grad_x_weight", 20, "critical"))
        for report in (first, other_texts)
    ]
    halves = [point.delta_high - point.delta_nll for point in points]
    assert row.difference == pytest.approx(points[0].delta_nll - points[1].delta_nll)
    assert row.high - row.difference == pytest.approx(math.sqrt(halves[0] ** 2 + halves[1] ** 2))
    assert not row.paired and row.unit == "nats per token"
    assert any("other texts measured" in reason for reason in row.reasons)
    said = next(
        sentence for sentence in found.sentences if sentence.startswith("forced, although other texts measured")
    )
    assert f"{row.difference:+.4f}" in said and "as of unrelated texts" in said


def test_another_dtype_is_a_reason_and_force_pairs_its_damage_text_by_text(
    first: RunReport, other_metric: RunReport
) -> None:
    half = renamed(other_metric, model=dataclasses.replace(other_metric.model, dtype="bfloat16"))
    assert cwa.compare(first, half).damage_differences == ()
    forced = cwa.compare(first, half, force=True).damage_differences
    assert {row.reasons for row in forced} == {("other dtype: float32 and bfloat16",)}
    assert [(row.difference, row.low, row.high, row.paired) for row in forced] == [
        (row.difference, row.low, row.high, True) for row in cwa.compare(first, other_metric).damage_differences
    ]


def test_models_with_other_tokenizers_are_compared_in_bits_per_byte_of_the_same_texts(
    first: RunReport, llama: Any
) -> None:
    """The bytes are counted here: all of the measured texts but those of the first token, which has no prediction."""
    words = _tokenizer_of_words()
    other = cwa.analyze(dataclasses.replace(wrap(llama), tokenizer=words), texts=MANY, **ASKED)
    (row,) = cwa.compare(first, other, metric="grad_x_weight", k=20).damage_differences
    measured = MANY[1::2]
    bits = []
    for report, tokenizer in ((first, tiny_tokenizer()), (other, words)):
        firsts = [tokenizer.convert_ids_to_tokens(tokenizer(text).input_ids[0]) for text in measured]
        scored = sum(len(text.encode()) for text in measured) - sum(map(len, firsts))  # byte-level: a sign a byte
        rows = table(report, "evaluation.csv")
        intact = sum(float(line["nll_sum"]) for line in rows if line["selection"] == "intact")
        key = ("grad_x_weight", "20", "critical")
        damaged = sum(float(line["nll_sum"]) for line in rows if (line["metric"], line["k"], line["selection"]) == key)
        bits.append((damaged - intact) / math.log(2) / scored)
    assert first.baseline.tokens != other.baseline.tokens
    assert row.difference == pytest.approx(bits[0] - bits[1], rel=1e-6)
    assert (row.unit, row.paired, row.reasons) == ("bits per byte", True, ())
    assert row.low < row.difference < row.high


def _tokenizer_of_words() -> Any:
    """Byte-level as the usual one of tests, with other merges."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<|end|>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(MANY, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>")


def test_texts_cut_by_other_tokenizers_end_at_other_places_and_are_compared_by_force_alone(llama: Any) -> None:
    asked = {**ASKED, "seq_len": 12}
    other_tokens = dataclasses.replace(wrap(llama), tokenizer=_tokenizer_of_words())
    runs = [cwa.analyze(loaded, texts=MANY, **asked) for loaded in (wrap(llama), other_tokens)]
    assert cwa.compare(*runs).damage_differences == ()
    forced = cwa.compare(*runs, force=True).damage_differences
    assert {row.unit for row in forced} == {"bits per byte"}
    assert all("cut at 12 tokens" in " ".join(row.reasons) for row in forced)
    assert "the tokenizers differ" in cwa.compare(*runs).pairs[0].other_weights


def test_unrelated_texts_with_the_same_effect_differ_clearly_at_most_one_time_in_twenty() -> None:
    rng, wrong, trials = np.random.default_rng(12), 0, 2000
    for _ in range(trials):
        ends = []
        for texts in (16, 33):
            tokens = rng.integers(20, 60, texts).astype(float)
            ends.append(paired_delta(tokens * rng.lognormal(0, 0.8, texts), np.zeros(texts), tokens))
        (one, low, _), (other, other_low, _) = ends
        wrong += abs(one - other) > math.hypot(one - low, other - other_low)
    assert wrong / trials <= 0.05


def test_runs_of_early_versions_have_no_chance_level_and_no_depth_and_say_so(
    first: RunReport, other_texts: RunReport
) -> None:
    early = dataclasses.replace(other_texts, ranked=(), layers=0)
    found = cwa.compare(first, early)
    assert all(
        row.p_value is None and row.p_within is None and "early version" in row.unknown for row in found.overlaps
    )
    assert {row.by for row in found.distances} == {"component"}


def test_four_runs_are_compared_pair_by_pair_and_five_are_refused(
    first: RunReport, other_texts: RunReport, other_metric: RunReport, gpt2: RunReport
) -> None:
    found = cwa.compare(first, other_texts, other_metric, gpt2)
    assert len(found.pairs) == 6 and len(found.runs) == 4
    assert len({(row.first, row.second) for row in found.overlaps}) == 3  # without those of the other model
    assert to_plain(found)["pairs"][0]["first"] == first.run_id
    fifth = renamed(first)
    for runs in ((first,), (first, other_texts, other_metric, gpt2, fifth)):
        with pytest.raises(InvalidInput, match="cannot be compared"):
            cwa.compare(*runs)


def test_what_cannot_be_compared_is_refused_with_what_can(first: RunReport, other_texts: RunReport) -> None:
    with pytest.raises(InvalidInput, match="given twice"):
        cwa.compare(first, first)
    with pytest.raises(InvalidInput, match="by 'taylor'") as refused:
        cwa.compare(first, other_texts, metric="taylor")
    assert "grad_x_weight" in refused.value.hint
    with pytest.raises(InvalidInput, match="k 21") as refused:
        cwa.compare(first, other_texts, k=21)
    assert "1 to 20" in refused.value.hint


def test_two_collapsed_runs_have_no_made_up_figures(first: RunReport, other_metric: RunReport) -> None:
    group = first.summary.damage[0]
    assert group.critical
    point = dataclasses.replace(group.critical, nll=math.nan, delta_nll=math.nan, collapsed_at="model.layers.0")
    damage = (dataclasses.replace(group, critical=point), *first.summary.damage[1:])
    found = cwa.compare(renamed(first, damage=damage), other_metric)
    level = found.damage[0]
    assert (level.log_ratio, level.low, level.high, level.bits_per_byte, level.collapsed) == (*[None] * 4, True)


def renamed(report: RunReport, **changes: Any) -> RunReport:
    """The same run under another id, with other figures in its summary."""
    summary = dataclasses.replace(report.summary, run_id=f"{report.run_id}x", **changes)
    return dataclasses.replace(report, summary=summary)
