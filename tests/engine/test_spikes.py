"""Super weights against two plain passes, and spikes that were planted."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from cwa_engine.base import events
from cwa_engine.base.errors import Cancelled, InvalidInput
from cwa_engine.data.token_text import token_text, visible
from cwa_engine.methods.metrics import CANDIDATE_METRICS, Needs, PartShares, joined
from cwa_engine.pipeline import analyze
from cwa_engine.questions.ablation import Ablated
from cwa_engine.questions.spike_removal import SpikeRemoval, removal_sentence, remove_spikes
from cwa_engine.records.export import ModelRecord, RunRecord, run_files, run_tables
from cwa_engine.records.run_summary import summary_from_plain
from cwa_engine.rows import to_plain
from cwa_engine.sensitivity.gradients import resident
from cwa_engine.sensitivity.ranking import Ranker, rank
from cwa_engine.sensitivity.score_cache import ScoreCache
from cwa_engine.sensitivity.sweep import sweep
from cwa_engine.spec import RunSpec, parse_spec
from cwa_tui.cli.report import run_report
from tests.architectures import tiny_architecture
from tests.engine.conftest import TEXTS, doubled, fingerprint, wrap
from tests.engine.test_metrics import activations_by_hand, ids_of, sequences_of
from tests.models import tiny_model, tiny_tokenizer

DOWN = "model.layers.0.mlp.down_proj.weight"
PLANTED_TOKEN = "J"  # stands in one text alone: "Ja, nein, vielleicht."
PLANTED_TEXT = 6


def planted(shares: dict[int, float], height: float = 3000.0) -> Any:
    """A LLaMA in which out_feature 5 of the first block's down projection is large at one token, and alone by `shares`.

    The gate and up rows of these in_features look along the token's own embedding.
    """
    loaded = wrap(tiny_model("llama"))
    block = loaded.model.model.layers[0]
    (token,) = loaded.tokenizer(PLANTED_TOKEN)["input_ids"]
    with torch.no_grad():
        loaded.model.model.embed_tokens.weight[token] = 50.0 * torch.eye(32)[0]
        block.post_attention_layernorm.weight[0] = 1.0
        for feature, share in shares.items():
            for projection in (block.mlp.gate_proj, block.mlp.up_proj):
                projection.weight[feature] = torch.eye(32)[0]
            block.mlp.down_proj.weight[:, feature] = 0.0
            block.mlp.down_proj.weight[5, feature] = share * height / 32  # gate and up give 32 along the embedding
    return loaded


# Exactness


def spikes_by_two_passes(loaded: Any) -> dict[str, tuple[Any, Any, list[tuple[int, int]]]]:
    """x [experts, tokens, in] and y [experts, tokens, out] of all texts in float64, and (text, position) of each token."""
    exact = wrap(doubled(loaded.model))
    reads, writes = activations_by_hand(exact)
    places = [(number, place) for number, ids in enumerate(ids_of(loaded), 1) for place in range(len(ids))]
    return {name: (torch.cat(reads[name], -2), torch.cat(writes[name], -2), places) for name in reads}


@pytest.mark.parametrize("source", ["resident", "sweep"])
def test_spike_share_and_token_of_each_weight_are_those_of_two_plain_passes(loaded: Any, source: str) -> None:
    expected, ranker = spikes_by_two_passes(loaded), Ranker(loaded, "super_weight", 300)
    sequences = sequences_of(loaded)
    for part in (
        [resident(loaded, sequences, Needs.SPIKES)] if source == "resident" else sweep(loaded, sequences, Needs.SPIKES)
    ):
        ranker.offer(part)
    ranking: Any = ranker.ranking()
    assert len(ranking.spikes) == len(ranking.weights) == 300
    for weight, spike in zip(ranking.weights, ranking.spikes, strict=True):
        x, y, places = expected[weight.parameter]
        if weight.expert is not None:
            x, y = x[weight.expert], y[weight.expert]
        output = y[:, weight.out_feature]
        token = places.index((spike.text, spike.position))
        assert spike.output == pytest.approx(float(output[token]), rel=1e-4)
        assert abs(spike.output) == pytest.approx(float(output.abs().max()), rel=1e-4)
        made = float(x[token, weight.in_feature]) * weight.value
        assert spike.share == pytest.approx(made / float(output[token]), rel=1e-3, abs=1e-6)
        assert weight.score / spike.times_typical == pytest.approx(abs(spike.share), rel=1e-4, abs=1e-6)
        ids = ids_of(loaded)[spike.text - 1]
        assert (spike.token_id, spike.token) == (ids[spike.position], loaded.tokenizer.decode([ids[spike.position]]))
        assert spike.module == weight.parameter.removesuffix(".weight")
    assert all(loaded.anatomy.parameters[name].is_down for name in ranking.parameters)


def test_no_more_rows_are_kept_than_there_are_out_features(loaded: Any) -> None:
    statistics: Any = resident(loaded, sequences_of(loaded) * 5, Needs.SPIKES)
    kept = [matrix for stats in statistics.values() if stats.spikes for matrix in stats.spikes.matrices]
    assert kept
    assert all(len(matrix.inputs) <= len(matrix.output) for matrix in kept)


def test_texts_that_pass_again_change_nothing(llama: Any) -> None:
    once, twice = (rank(llama, resident(llama, texts, Needs.SPIKES), "super_weight", 50)
                   for texts in (sequences_of(llama), sequences_of(llama) * 2))  # fmt: skip
    assert [w.target for w in once.weights] == [w.target for w in twice.weights]
    assert [s.share for s in once.spikes] == [s.share for s in twice.spikes]


@pytest.mark.parametrize("piece", [1, 700])
def test_spikes_are_the_same_whether_tensors_are_scored_whole_or_in_pieces(
    loaded: Any, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    statistics = resident(loaded, sequences_of(loaded), Needs.SPIKES)
    whole = rank(loaded, statistics, "super_weight", 100)
    monkeypatch.setattr("cwa_engine.sensitivity.ranking._PIECE", piece)
    assert rank(loaded, statistics, "super_weight", 100) == whole


def test_half_precision_models_are_ranked_as_well() -> None:
    loaded = wrap(planted({3: 1.0}).model.bfloat16())
    best = rank(loaded, resident(loaded, sequences_of(loaded), Needs.SPIKES), "super_weight", 1)
    assert best.weights[0].target == f"{DOWN}[5,3]"
    assert best.spikes[0].share == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("structure", ["row", "column"])
def test_structures_are_ranked_by_the_sum_of_their_weights(llama: Any, structure: str) -> None:
    statistics = resident(llama, sequences_of(llama), Needs.SPIKES)
    found = rank(llama, statistics, "super_weight", 5, structure=structure)
    weights = rank(llama, statistics, "super_weight", 2 * 32 * 64).weights
    sums: dict[tuple[str, int | None], float] = {}
    for weight in weights:
        key = weight.parameter, weight.out_feature if structure == "row" else weight.in_feature
        sums[key] = sums.get(key, 0.0) + (weight.score or 0)
    assert [row.score for row in found.weights] == pytest.approx(sorted(sums.values(), reverse=True)[:5], rel=1e-4)
    assert found.spikes == ()  # of one weight alone it is known what it makes of a spike


def test_a_module_that_writes_nothing_has_no_spike_and_no_token(llama: Any) -> None:
    llama.model.get_parameter(DOWN).data.zero_()
    only = llama.with_parameters([DOWN])
    ranking = rank(only, resident(only, sequences_of(only), Needs.SPIKES), "super_weight", 3)
    assert {weight.score for weight in ranking.weights} == {0.0}
    places = {(s.output, s.share, s.times_typical, s.token, s.token_id, s.position, s.text) for s in ranking.spikes}
    assert places == {(0.0, 0.0, 0.0, None, None, None, None)}


# Which layers


@pytest.mark.parametrize(
    ("model_type", "names"),
    [
        ("gpt2", "mlp.c_proj"),
        ("opt", "fc2"),
        ("gpt_neox", "mlp.dense_4h_to_h"),
        ("bert", "output.dense"),
        ("mixtral", "mlp.experts.down_proj"),
        ("gpt_oss", "mlp.experts.down_proj"),
        ("llama4_text", "feed_forward.experts.down_proj feed_forward.shared_expert.down_proj"),
        ("qwen2_moe", "mlp.experts.down_proj mlp.shared_expert.down_proj"),
        ("jetmoe", "mlp.output_linear"),  # and not its experts for attention
        ("ctrl", "ffn.2"),
        ("rwkv", "feed_forward.value"),
        ("xlstm", "ffn.proj_down"),
        ("zaya", "mlp.experts.down_proj"),  # its router has a down projection of its own
        ("git", "output.dense mlp.fc2"),  # and not its head, which is called output
        ("mamba", ""),
    ],
)
def test_a_down_projection_is_what_an_mlp_or_an_expert_ends_in(model_type: str, names: str) -> None:
    parameters = wrap(tiny_architecture(model_type)).anatomy.parameters
    down = [name.removesuffix(".weight") for name, parameter in parameters.items() if parameter.is_down]
    wanted = names.split()
    assert all(any(name.endswith("." + suffix) for suffix in wanted) for name in down)
    assert all(any(name.endswith("." + suffix) for name in down) for suffix in wanted)


@pytest.mark.parametrize("model_type", ["mixtral", "gpt_oss", "llama4_text", "qwen3_moe", "jetmoe"])
def test_an_expert_names_the_token_it_was_given_or_none(model_type: str) -> None:
    loaded = wrap(tiny_architecture(model_type))
    sequences = sequences_of(loaded)
    ranking = rank(loaded, resident(loaded, sequences, Needs.SPIKES), "super_weight", 40)
    of_experts: list[Any] = [
        spike for weight, spike in zip(ranking.weights, ranking.spikes, strict=True) if weight.expert is not None
    ]
    assert of_experts
    for spike in of_experts:
        if model_type == "jetmoe":  # sorts its tokens by expert
            assert (spike.token, spike.token_id, spike.position) == (None, None, None)
        else:
            assert sequences[spike.text - 1].ids[spike.position] == spike.token_id


def test_an_expert_that_is_a_module_of_its_own_names_no_token(llama: Any) -> None:
    class Routed(torch.nn.Module):
        """Gives its one expert all tokens in another order."""

        def __init__(self, expert: torch.nn.Module) -> None:
            super().__init__()
            self.experts = torch.nn.ModuleList([expert])

        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            return self.experts[0](hidden.flip(1)).flip(1)

    llama.model.model.layers[0].mlp = Routed(llama.model.model.layers[0].mlp)
    loaded = wrap(llama.model)
    ranking = rank(loaded, resident(loaded, sequences_of(loaded), Needs.SPIKES), "super_weight", 50)
    positions = {(spike.module, spike.position is None) for spike in ranking.spikes}
    assert positions == {("model.layers.0.mlp.experts.0.down_proj", True), ("model.layers.1.mlp.down_proj", False)}


def test_the_tokens_of_experts_are_known_also_where_their_down_projections_alone_are_in_view() -> None:
    loaded = wrap(tiny_model("mixtral"))
    whole = rank(loaded, resident(loaded, sequences_of(loaded), Needs.SPIKES), "super_weight", 20)
    alone = loaded.with_parameters([name for name in loaded.anatomy.parameters if name.endswith("experts.down_proj")])
    assert rank(alone, resident(alone, sequences_of(alone), Needs.SPIKES), "super_weight", 20).spikes == whole.spikes


@pytest.mark.parametrize("part", [0, 1])
def test_a_module_that_reads_nothing_in_one_half_of_the_texts_numbers_those_of_the_other_among_all(
    llama: Any, part: int
) -> None:
    sequences = sequences_of(llama)
    halves = sequences[0::2], sequences[1::2]
    by_part: list[Any] = [resident(llama, half, Needs.SPIKES, 1) for half in halves]
    expected = [2 * number - 1 + part for number in by_part[part][DOWN].spikes.matrices[0].where[:, 0].tolist()]
    by_part[1 - part][DOWN] = dataclasses.replace(by_part[1 - part][DOWN], spikes=None)
    together: Any = joined(by_part, PartShares.of(halves))[DOWN].spikes
    assert together.matrices[0].where[:, 0].tolist() == expected


def test_a_model_without_mlps_is_refused_by_name_and_ablation_does_without(data_file: Path) -> None:
    loaded, said = wrap(tiny_architecture("mamba")), []
    asked = RunSpec(model="tiny", data_file=data_file, topk=(2,), perturbations=(), metrics=("super_weight",))
    with pytest.raises(InvalidInput, match="no parameter of down projections in view has a weight") as refused:
        analyze(loaded, asked)
    assert "--metric" in (refused.value.hint or "")
    measured = asked.model_copy(update={"metrics": ("ablation",), "candidates": 9})
    result = analyze(loaded, measured, lambda event: said.append(events.to_dict(event)))
    assert len(result.answer(Ablated).rows) == 9
    assert any("super_weight ranks nothing that is in view" in event.get("text", "") for event in said)


# Planted spikes


def test_a_planted_weight_comes_first_with_its_share_and_token() -> None:
    loaded = planted({3: 1.0})
    ranking = rank(loaded, resident(loaded, sequences_of(loaded), Needs.SPIKES), "super_weight", 20)
    assert ranking.weights[0].target == f"{DOWN}[5,3]"
    spike = ranking.spikes[0]
    assert spike.share == pytest.approx(1, abs=0.01)
    assert (spike.token, spike.text, spike.position) == (PLANTED_TOKEN, PLANTED_TEXT, 0)
    assert spike.output == pytest.approx(3000, rel=0.05)
    largest, next_largest = (weight.score for weight in ranking.weights[:2])
    assert largest and next_largest and largest > 20 * next_largest


def test_two_weights_that_make_a_spike_together_come_first_with_their_shares() -> None:
    loaded = planted({3: 0.6, 40: 0.4})
    ranking = rank(loaded, resident(loaded, sequences_of(loaded), Needs.SPIKES), "super_weight", 20)
    assert [weight.target for weight in ranking.weights[:2]] == [f"{DOWN}[5,3]", f"{DOWN}[5,40]"]
    assert [spike.share for spike in ranking.spikes[:2]] == pytest.approx([0.6, 0.4], abs=0.01)


PLACES = {
    "gpt2": "transformer.h.1.mlp.c_proj.weight[7,20]",
    "opt": "model.decoder.layers.1.fc2.weight[7,20]",
    "gpt_neox": "gpt_neox.layers.0.mlp.dense_4h_to_h.weight[7,20]",
    "mixtral": "model.layers.1.mlp.experts.down_proj[2,7,10]",
    "gpt_oss": "model.layers.1.mlp.experts.down_proj[2,7,10]",
    "gemma3_text": "model.layers.0.mlp.down_proj.weight[7,20]",
    "olmo2": "model.layers.0.mlp.down_proj.weight[7,20]",
}


@pytest.mark.parametrize("model_type", PLACES)
def test_nothing_outranks_a_planted_weight_neither_large_norms_nor_large_queries(model_type: str) -> None:
    """As in Gemma 3, whose queries and norms are large, and where a product of largest inputs and outputs names q_proj."""
    loaded = wrap(tiny_architecture(model_type))
    name, indices = PLACES[model_type].rstrip("]").split("[")
    parameter = loaded.anatomy.parameters[name]
    *expert, out_feature, in_feature = map(int, indices.split(","))
    torch.manual_seed(2)
    with torch.no_grad():
        for other, p in loaded.anatomy.parameters.items():
            if p.component == "q" or (p.component == "norm" and not other.endswith("bias")):
                loaded.model.get_parameter(other).mul_(30).add_(20 * torch.rand(p.shape))
        flat = loaded.model.get_parameter(name).view(-1)
        flat[parameter.flat_index(*(expert or [0]), out_feature, in_feature)] = 1e4
    ranking = rank(loaded, resident(loaded, sequences_of(loaded), Needs.SPIKES), "super_weight", 50)
    assert ranking.weights[0].target == PLACES[model_type]
    assert ranking.spikes[0].share == pytest.approx(1, abs=0.05)
    assert {loaded.anatomy.parameters[weight.parameter].is_down for weight in ranking.weights} == {True}


# Iteration


def iterated(loaded: Any, most: int = 10) -> tuple[Any, list[Any]]:
    said: list[Any] = []
    return remove_spikes(loaded, sequences_of(loaded), most, said.append), said


def test_the_weights_behind_a_spike_are_zeroed_until_it_is_gone_and_put_back() -> None:
    loaded = planted({3: 0.6, 40: 0.4})
    before = fingerprint(loaded.model)
    removal, said = iterated(loaded)
    assert fingerprint(loaded.model) == before
    assert removal.gone
    first, second = removal.steps
    assert [step.target for step in removal.steps] == [f"{DOWN}[5,3]", f"{DOWN}[5,40]"]
    assert (first.share, second.share) == (pytest.approx(0.6, abs=0.01), pytest.approx(1, abs=0.01))
    assert (first.output, first.output_after) == (pytest.approx(3000, rel=0.05), pytest.approx(1200, rel=0.05))
    assert (first.token, first.text, first.position) == (PLANTED_TOKEN, PLANTED_TEXT, 0)
    assert removal.first == first.times_typical > first.largest_after == second.times_typical
    assert second.largest_after == removal.last < removal.least == max(100, 0.1 * removal.first)
    progress = [(event.done, event.total) for event in said if event.kind == "progress"]
    assert progress == sorted(progress)
    assert {event.stage for event in said if event.kind == "progress"} == {"iterate"}
    assert "the spike is gone with 2 weights zeroed" in removal_sentence(to_plain(removal))


def test_the_loss_of_each_step_is_that_of_a_model_without_these_weights() -> None:
    loaded = planted({3: 0.6, 40: 0.4})

    def loss() -> float:
        total = tokens = 0.0
        for ids in ids_of(loaded):
            with torch.no_grad():
                total += float(loaded.model(torch.tensor([ids]), labels=torch.tensor([ids])).loss) * (len(ids) - 1)
            tokens += len(ids) - 1
        return total / tokens

    removal, _ = iterated(loaded)
    intact = loss()
    for step, feature in zip(removal.steps, (3, 40), strict=True):
        loaded.model.get_parameter(DOWN).data[5, feature] = 0.0
        assert step.delta_nll == pytest.approx(loss() - intact, abs=1e-5)


def test_iteration_ends_after_the_most_steps_and_says_that_the_spike_is_there() -> None:
    removal, _ = iterated(planted({3: 0.6, 40: 0.4}), most=1)
    assert (len(removal.steps), removal.gone) == (1, False)
    assert "not gone with 1 weight zeroed" in removal_sentence(to_plain(removal))


def test_a_model_without_a_spike_has_no_weight_zeroed(llama: Any) -> None:
    removal, _ = iterated(llama)
    assert (removal.steps, removal.gone) == ((), True)
    assert removal.first == removal.last < 100
    assert removal_sentence(to_plain(removal)).startswith("no spike: the largest output of a down projection is")


def test_a_spike_that_a_bias_makes_is_blamed_on_no_weight() -> None:
    loaded = wrap(tiny_model("gpt2"))
    projection = loaded.model.transformer.h[0].mlp.c_proj
    with torch.no_grad():
        projection.weight.zero_()
        projection.bias.zero_()
        projection.bias[3] = 5000.0
        loaded.model.transformer.h[1].mlp.c_proj.weight.mul_(1e-3)
    loaded = loaded.with_parameters(
        [n for n in loaded.anatomy.parameters if n.startswith("transformer.h.0.mlp.c_proj")]
    )
    removal, _ = iterated(loaded)
    assert removal.steps == ()


@pytest.mark.parametrize("reason", [Cancelled, KeyboardInterrupt])
@pytest.mark.parametrize("moment", [1, 12, 20])
def test_a_cancelled_iteration_ends_at_once_with_the_weights_as_they_were(
    moment: int, reason: type[BaseException]
) -> None:
    loaded, heard = planted({3: 0.6, 40: 0.4}), []
    before = fingerprint(loaded.model)

    def cancel(event: Any) -> None:
        heard.append(fingerprint(loaded.model) != before)
        if len(heard) == moment:
            raise reason("enough")

    with pytest.raises(reason):
        remove_spikes(loaded, sequences_of(loaded), 10, cancel)
    assert len(heard) == moment
    assert heard[-1] == (moment > 10)  # weights are zero while it records again
    assert fingerprint(loaded.model) == before
    assert not any(module._forward_hooks for module in loaded.model.modules())


def test_iteration_without_super_weights_is_refused() -> None:
    for fields in ({}, {"metrics": ("wanda",)}, {"metrics": ("ablation",)}):
        with pytest.raises(InvalidInput, match="--iterate") as refused:
            parse_spec({"model": "tiny", "iterate": 5, "topk": (5,), **fields})
        assert refused.value.hint == "add --metric super_weight"
    with pytest.raises(InvalidInput, match="--iterate 0 is too small"):
        parse_spec({"model": "tiny", "iterate": 0, "metrics": ("super_weight",)})


# What is written and shown

HOSTILE = 'a,"b"\r\n[/red]\x1b[31m\u202e:smile:\\n\x00'


@pytest.fixture
def hostile() -> Any:
    """A planted model whose token is hostile to tables and terminals."""
    loaded = planted({3: 1.0})
    (token,) = loaded.tokenizer(PLANTED_TOKEN)["input_ids"]

    class Hostile:
        def __init__(self, inner: Any) -> None:
            self._inner = inner

        def __getattr__(self, name: str) -> Any:
            return getattr(self._inner, name)

        def __call__(self, *args: Any, **options: Any) -> Any:
            return self._inner(*args, **options)

        def __len__(self) -> int:
            return len(self._inner)

        def decode(self, ids: list[int], **options: Any) -> str:
            return HOSTILE if ids == [token] else self._inner.decode(ids, **options)

    object.__setattr__(loaded, "tokenizer", Hostile(loaded.tokenizer))
    return loaded


def test_a_hostile_token_breaks_neither_the_table_nor_the_report(hostile: Any, data_file: Path) -> None:
    asked = RunSpec(
        model="tiny", data_file=data_file, metrics=("super_weight",), topk=(5,), perturbations=(), iterate=3
    )
    data_file.write_text("\n\n".join([TEXTS[5], TEXTS[0], *TEXTS[1:5]]))  # the first is scored
    result = analyze(hostile, asked)
    for name, rows in (("spikes.csv", 5), ("spike_removal.csv", len(result.answer(SpikeRemoval).steps))):
        table = dict(run_tables(result))[name].decode()
        read = list(csv.DictReader(io.StringIO(table, newline="")))
        assert len(read) == rows == table.count("\n") - 1
        assert read[0]["token"] == visible(HOSTILE)
        assert read[0]["target"] == f"{DOWN}[5,3]"
    model = ModelRecord("tiny", "", "folder", None, {}, "float32", "cpu", "", 1)
    files = dict(run_files(RunRecord("run", asked, "", model, result, 0.0, ())))
    shown = io.StringIO()
    Console(width=300, file=shown, force_terminal=True).print(
        run_report(summary_from_plain(json.loads(files["summary.json"])), "folder")
    )
    assert visible(HOSTILE) in shown.getvalue()
    assert not any(character in shown.getvalue() for character in ("\x00", "\r", "\u202e", "\x1b[31m"))


@given(st.text())
def test_what_cannot_be_seen_in_a_token_is_written_out_and_can_be_read_back(text: str) -> None:
    shown = visible(text)
    assert all(character == " " or character.isprintable() for character in shown)
    assert len(shown.splitlines()) <= 1
    back = shown.encode("latin-1", "backslashreplace").decode("unicode_escape")
    assert back.encode("utf-16", "surrogatepass") == text.encode("utf-16", "surrogatepass")


def test_a_token_that_is_a_part_of_a_character_is_spelt_as_in_the_vocabulary() -> None:
    tokenizer = tiny_tokenizer()
    parts = tokenizer("é")["input_ids"]
    assert [token_text(tokenizer, part) for part in parts] == tokenizer.convert_ids_to_tokens(parts)
    assert token_text(tokenizer, tokenizer("\n")["input_ids"][0]) == "\\n"


def test_spikes_come_with_the_ranking_from_the_cache(data_file: Path, tmp_path: Path) -> None:
    loaded, cache = planted({3: 1.0}), ScoreCache(tmp_path / "cache", 10**8, "first")
    asked = RunSpec(model="tiny", data_file=data_file, metrics=("super_weight",), topk=(5,), perturbations=())
    first, again = analyze(loaded, asked, cache=cache), analyze(loaded, asked, cache=cache)
    assert again.scores_from == {"super_weight": "first"}
    assert len(first.rankings[0].spikes) == 5
    assert again.rankings == first.rankings


def test_other_metrics_have_no_table_of_spikes(llama: Any, data_file: Path) -> None:
    asked = RunSpec(model="tiny", data_file=data_file, metrics=("wanda", "magnitude"), topk=(5,), perturbations=())
    assert "spikes.csv" not in dict(run_tables(analyze(llama, asked)))


# Candidates of ablation


def test_ablation_proposes_by_spikes_and_size_too_where_nobody_names_a_metric(data_file: Path) -> None:
    assert CANDIDATE_METRICS == ("grad_x_weight", "taylor", "super_weight", "magnitude")
    asked = RunSpec(model="tiny", metrics=("ablation",), topk=(1,))
    assert asked.scored_metrics == CANDIDATE_METRICS
    named = RunSpec(model="tiny", metrics=("wanda", "ablation"), topk=(1,))
    assert named.scored_metrics == named.turns == ("wanda",)
    assert {name: asked.turns.count(name) for name in CANDIDATE_METRICS} == dict(
        zip(CANDIDATE_METRICS, (2, 2, 1, 1), strict=True)
    )


def test_a_weight_that_gradients_do_not_see_is_found_with_few_candidates(data_file: Path) -> None:
    """Its spike is in the first token's output alone, so gradients call it harmless; zeroing it is what tells."""
    loaded = planted({3: 1.0})
    asked = RunSpec(model="tiny", data_file=data_file, metrics=("ablation",), topk=(2,), candidates=8, perturbations=())
    result = analyze(loaded, asked)
    assert f"{DOWN}[5,3]" in {row.target for row in result.answer(Ablated).rows}
