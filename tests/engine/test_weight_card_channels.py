"""What a weight's channels carry, which tokens it makes likelier, and the life of its channel of the residual stream."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cwa_engine.weight_rows import ChannelActivity, WeightCard
from cwa_engine.weights.card import weight_card
from cwa_engine.weights.stopwords import STOPWORDS, stopword_tokens
from tests.engine.conftest import TEXTS, wrap
from tests.engine.test_weight_card import DOWN, changed, examined, ids_of, spec_for
from tests.models import tiny_model, tiny_tokenizer

NAME = "model.layers.1.mlp.down_proj.weight"
EVALUATED = TEXTS[1::2]


def passed(model: Any, module: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(input, output) of a module for every evaluation text. [tokens, features]"""
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    handle = model.get_submodule(module).register_forward_hook(lambda _, args, out: seen.append((args[0][0], out[0])))
    for text in EVALUATED:
        with torch.no_grad():
            model(input_ids=ids_of(text))
    handle.remove()
    return seen


def side(card: WeightCard, name: str, module: str = "") -> ChannelActivity:
    return next(row for row in card.activity if row.side == name and module in row.module)


def check(found: ChannelActivity, values: list[torch.Tensor]) -> None:
    """Against all values of a module, [tokens, features] for each text."""
    channel = [tensor[:, found.channel] for tensor in values]
    text = max(range(len(channel)), key=lambda n: float(channel[n].abs().max()))
    position = int(channel[text].abs().argmax())
    assert found.largest == pytest.approx(float(channel[text][position]), rel=1e-5)
    assert (found.text, found.position) == (text + 1, position)
    assert found.token_id == int(ids_of(EVALUATED[text])[0, position])
    sizes = torch.cat([tensor.square().mean(1).sqrt() for tensor in values])
    assert found.typical == pytest.approx(float(sizes.median()), rel=1e-5)
    top = torch.cat([values.abs() for values in channel]).sort(descending=True).values[:5].tolist()
    assert [abs(row.value) for row in found.top_tokens] == pytest.approx(top, rel=1e-5)


@pytest.mark.parametrize(
    ("family", "target", "module", "reads", "writes"),
    [
        ("llama", DOWN, "model.layers.1.mlp.down_proj", 5, 3),
        ("gpt2", "transformer.h.0.mlp.c_proj.weight[3,5]", "transformer.h.0.mlp.c_proj", 5, 3),
        ("llama", "lm_head.weight[66,5]", "lm_head", 5, 66),
        ("llama", "model.norm.weight[4]", "model.norm", 4, 4),
        ("gpt2", "transformer.wte.weight[66,5]", "lm_head", 5, 66),  # tied
        ("neox", "gpt_neox.layers.0.mlp.dense_4h_to_h.bias[4]", "gpt_neox.layers.0.mlp.dense_4h_to_h", None, 4),
    ],
)
def test_channels_carry_what_a_hook_sees(family: str, target: str, module: str, reads: int | None, writes: int) -> None:
    card, seen = examined(family, target), passed(tiny_model(family), module)
    output = side(card, "output", module)
    assert output.channel == writes
    check(output, [out for _, out in seen])
    inputs = [row for row in card.activity if row.side == "input"]
    assert [row.channel for row in inputs] == ([] if reads is None else [reads])
    if inputs:
        check(inputs[0], [given for given, _ in seen])


def test_an_embedding_writes_the_channel_of_its_column_and_reads_none() -> None:
    card = examined("llama", "model.embed_tokens.weight[66,5]")
    assert [row.side for row in card.activity if row.side != "residual"] == ["output"]
    check(side(card, "output"), [out for _, out in passed(tiny_model("llama"), "model.embed_tokens")])


def test_an_expert_is_told_by_the_tokens_that_were_routed_to_it() -> None:
    card = examined("mixtral", "model.layers.1.mlp.experts.down_proj[2,3,5]")
    model = tiny_model("mixtral")
    (layer,) = [model.model.layers[1].mlp]
    largest, where = 0.0, (0, 0)
    for number, (hidden, _) in enumerate(passed(model, "model.layers.1.mlp"), start=1):
        with torch.no_grad():
            chosen = (hidden @ layer.gate.weight.T).softmax(-1).topk(2).indices
            gate, up = (hidden @ layer.experts.gate_up_proj[2].T).chunk(2, -1)
            read = torch.nn.functional.silu(gate) * up
        for position in (chosen == 2).any(-1).nonzero().flatten().tolist():
            if abs(float(read[position, 5])) > abs(largest):
                largest, where = float(read[position, 5]), (number, position)
    found = side(card, "input")
    assert found.largest == pytest.approx(largest, rel=1e-4)
    assert (found.text, found.position) == where


def mean_probabilities(model: Any) -> torch.Tensor:
    rows = []
    for text in EVALUATED:
        with torch.no_grad():
            rows.append(model(input_ids=ids_of(text)).logits[0, :-1].double().softmax(-1))
    return torch.cat(rows).mean(0)


def test_tokens_are_those_whose_mean_probability_changes_most_and_stopwords_are_their_sum() -> None:
    value = 3.0
    intact = mean_probabilities(changed(tiny_model("llama"), NAME, {(3, 5): value}))
    damaged = mean_probabilities(changed(tiny_model("llama"), NAME, {(3, 5): 0.0}))
    card = weight_card(wrap(changed(tiny_model("llama"), NAME, {(3, 5): value})), spec_for(DOWN), texts=TEXTS)
    change = intact - damaged
    assert [row.token_id for row in card.raised] == change.argsort(descending=True)[:10].tolist()
    assert [row.token_id for row in card.lowered] == change.argsort()[:10].tolist()
    for row in (*card.raised, *card.lowered):
        assert row.intact == pytest.approx(float(intact[row.token_id]), rel=1e-4)
        assert row.damaged == pytest.approx(float(damaged[row.token_id]), rel=1e-4)
    ids = stopword_tokens(tiny_tokenizer())
    assert card.stopwords and (card.stopwords.words, card.stopwords.tokens) == (127, len(ids))
    assert card.stopwords.intact == pytest.approx(float(intact[ids].sum()), rel=1e-4)
    assert card.stopwords.damaged == pytest.approx(float(damaged[ids].sum()), rel=1e-4)


def test_stopword_tokens_begin_a_word_and_are_whole() -> None:
    tokenizer = tiny_tokenizer()
    spelled = {tokenizer.decode([number]) for number in stopword_tokens(tokenizer)}
    assert spelled and all(text.startswith(" ") and text.strip().lower() in STOPWORDS for text in spelled)
    assert " and" in spelled


SPIKE_AT = ("J", 3, 0)  # a token that occurs once in the evaluation texts, its text and position
PLANTED = "model.layers.0.mlp.down_proj.weight[3,5]"


def with_spike() -> Any:
    """Channel 31 tells one token from all others; there block 0 writes thousands into channel 3."""
    model = tiny_model("llama")
    (token,) = tiny_tokenizer()(SPIKE_AT[0])["input_ids"]
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 31] = 0
        model.model.embed_tokens.weight[token, 31] = 50
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight[31] = 0
            layer.mlp.down_proj.weight[31] = 0
        block = model.model.layers[0].mlp
        for projection in (block.gate_proj, block.up_proj):
            projection.weight[5] = 0
            projection.weight[5, 31] = 10
        block.down_proj.weight[3, 5] = 2
    return model


def stream_at_spike(model: Any) -> list[float]:
    with torch.no_grad():
        hidden = model.model(input_ids=ids_of(EVALUATED[SPIKE_AT[1] - 1]), output_hidden_states=True).hidden_states
    return [float(state[0, SPIKE_AT[2], 3]) for state in hidden]  # the last one behind the final norm


def test_a_spike_is_born_where_it_is_planted_and_the_planted_weight_makes_it() -> None:
    card = weight_card(wrap(with_spike()), spec_for(PLANTED), texts=TEXTS)
    assert (card.channel, [row.event for row in card.life]) == (3, ["", "born", ""])
    stream = side(card, "residual")
    assert (stream.token, stream.text, stream.position) == SPIKE_AT
    assert [row.value for row in card.life[:2]] == pytest.approx(stream_at_spike(with_spike())[:2], rel=1e-5)
    without = changed(with_spike(), "model.layers.0.mlp.down_proj.weight", {(3, 5): 0.0})
    assert [row.damaged for row in card.life[:2]] == pytest.approx(stream_at_spike(without)[:2], rel=1e-5)
    assert card.life[1].written == pytest.approx(card.life[1].value - card.life[0].value)
    assert card.shares[0].target == PLANTED and card.shares[0].share == pytest.approx(1, abs=0.01)
    assert card.shares[0].contribution == pytest.approx(card.life[1].written, rel=0.01)
    assert not any("spike" in reason for reason in card.unknown)


def test_another_weight_of_the_row_sees_its_own_share_beside_the_largest() -> None:
    target = "model.layers.0.mlp.down_proj.weight[3,60]"
    card = weight_card(wrap(with_spike()), spec_for(target), texts=TEXTS)
    assert card.shares[0].target == PLANTED and target in [row.target for row in card.shares]
    assert abs(next(row.share for row in card.shares if row.target == target)) < 0.01


def test_a_spike_is_cancelled_where_it_is_taken_away() -> None:
    model = with_spike()
    block, read = model.model.layers[1].mlp, list[torch.Tensor]()
    with torch.no_grad():
        for projection in (block.gate_proj, block.up_proj):
            projection.weight[6] = 0
            projection.weight[6, 3] = 1
        block.down_proj.weight[3] = 0
        with block.down_proj.register_forward_pre_hook(lambda _, args: read.append(args[0])):
            value = stream_at_spike(model)[1]
        block.down_proj.weight[3, 6] = -value / read[0][0, SPIKE_AT[2], 6]
    card = weight_card(wrap(model), spec_for(PLANTED), texts=TEXTS)
    assert [row.event for row in card.life] == ["", "born", "cancelled"]
    assert abs(card.life[-1].value) < 0.1 * abs(card.life[1].value)
    assert card.life[-1].written == pytest.approx(-value, rel=0.05)


def test_a_channel_without_a_spike_has_no_birth_and_says_why() -> None:
    card = examined("llama", DOWN)
    assert {row.event for row in card.life} == {""} and card.shares == ()
    assert any("has no spike" in reason for reason in card.unknown)


@pytest.mark.parametrize(
    ("target", "channel"),
    [
        ("model.layers.0.self_attn.o_proj.weight[7,9]", 7),
        ("model.layers.0.self_attn.q_proj.weight[7,9]", 9),
        ("model.layers.0.mlp.up_proj.weight[7,9]", 9),
        ("model.layers.0.input_layernorm.weight[4]", 4),
        ("lm_head.weight[66,5]", 5),
        ("model.embed_tokens.weight[66,5]", 5),
    ],
)
def test_the_channel_is_the_one_that_is_written_or_else_read(target: str, channel: int) -> None:
    assert examined("llama", target).channel == channel


def test_a_weight_without_a_channel_of_the_residual_stream_says_so() -> None:
    card = examined("gpt2", "transformer.h.0.attn.c_attn.bias[70]")
    assert card.channel is None and not card.life
    assert any("residual stream" in reason for reason in card.unknown)
