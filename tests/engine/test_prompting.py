"""The same prompt by the intact and by the damaged model, compared with transformers' own generation and a plain float64 KL."""

from __future__ import annotations

import copy
import dataclasses
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cwa_engine.base.errors import Cancelled, InvalidInput, RunFailed
from cwa_engine.base.event_reader import event_from_plain
from cwa_engine.base.events import Event, Generated, Note, Progress, PromptAnswered, ignore, to_dict
from cwa_engine.models.causality import unbatched_above_of
from cwa_engine.models.end_tokens import end_tokens, stored_end_tokens
from cwa_engine.models.loading import load_model
from cwa_engine.models.tokenizer import STORED
from cwa_engine.prompt_rows import COLLAPSED, END_TOKEN, LENGTH, POSITIONS, PromptAnswer
from cwa_engine.prompt_spec import PromptSpec, parse_prompt
from cwa_engine.prompting import answering, comparing
from cwa_engine.prompting.answering import answer_prompt
from cwa_engine.prompting.generation import Choice, cache_is_right
from cwa_engine.prompting.text_pieces import text_pieces
from tests.architectures import causal_tiny
from tests.engine.conftest import fingerprint, wrap
from tests.models import edit_json, save_tiny, tiny_model, tiny_tokenizer

PROMPT = "The harbour was quiet"
BOS = "<|end|>"
NORM = "model.norm.weight"
DOWN = "model.layers.0.mlp.down_proj.weight"


def asked(*weights: str, **fields: Any) -> PromptSpec:
    return PromptSpec(**{"model": "tiny", "prompt": PROMPT, "weights": weights, "new_tokens": 12, **fields})


def generated(model: Any, prompt: list[int], count: int = 12) -> list[int]:
    """What transformers' own greedy generation goes on with, the end token included."""
    output = model.generate(torch.tensor([prompt]), max_new_tokens=count, do_sample=False)
    return list(output[0, len(prompt) :].tolist())


def zeroed(model: Any, name: str) -> Any:
    """A copy of a model in which a parameter is zero."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.get_parameter(name).zero_()
    return other


def ids_after(answer: PromptAnswer) -> list[int]:
    return [token.token_id for token in answer.tokens if not token.in_prompt]


def a_matrix(loaded: Any) -> str:
    """A matrix of the first block, by name."""
    return next(p.name for p in loaded.anatomy.parameters.values() if p.layer == 0 and len(p.shape) == 2)


def test_both_models_say_greedily_what_transformers_generates(loaded: Any) -> None:
    name = a_matrix(loaded)
    answer = answer_prompt(loaded, asked(f"{name}[:,:]"), ignore)
    prompt = tiny_tokenizer()(PROMPT)["input_ids"]
    intact, damaged = generated(loaded.model, prompt), generated(zeroed(loaded.model, name), prompt)
    assert ids_after(answer) == intact
    assert "".join(answer.damaged_tokens) == tiny_tokenizer().decode(damaged)
    assert answer.weights == loaded.anatomy.parameters[name].numel
    differs = [place for place, (mine, theirs) in enumerate(zip(intact, damaged, strict=False)) if mine != theirs]
    assert answer.first_difference == (differs[0] if differs else None)


def test_kl_and_likeliest_tokens_are_those_of_a_plain_computation(loaded: Any) -> None:
    name = a_matrix(loaded)
    answer = answer_prompt(loaded, asked(f"{name}[:,:]"), ignore)
    ids = torch.tensor([[token.token_id for token in answer.tokens]])
    with torch.no_grad():
        logits = [model(ids).logits[0, :-1].double().numpy() for model in (loaded.model, zeroed(loaded.model, name))]
    p, q = (np.exp(of - of.max(1, keepdims=True)) for of in logits)
    p, q = (of / of.sum(1, keepdims=True) for of in (p, q))
    kl = (p * np.log(p / q)).sum(1)
    first, *others = answer.tokens
    assert (first.kl, first.intact, first.intact_top) == (None, None, "")
    np.testing.assert_allclose(np.array([token.kl for token in others], dtype=float), kl, rtol=1e-4, atol=1e-7)
    following = (np.arange(len(others)), ids[0, 1:].numpy())
    np.testing.assert_allclose(np.array([token.intact for token in others], dtype=float), p[following], rtol=1e-4)
    np.testing.assert_allclose(np.array([token.damaged for token in others], dtype=float), q[following], rtol=1e-4)
    assert [token.top1_changed for token in others] == (p.argmax(1) != q.argmax(1)).tolist()
    assert answer.mean_kl == pytest.approx(kl.mean(), rel=1e-4)
    assert answer.top1_changes == (p.argmax(1) != q.argmax(1)).sum()
    assert max(kl) > 1e-5


def test_a_long_text_is_compared_in_pieces_with_the_same_figures(loaded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = asked(f"{a_matrix(loaded)}[:,:]", "lm_head.weight[3,:]" if has_head(loaded) else f"{a_matrix(loaded)}[:,0]")
    whole = answer_prompt(loaded, spec, ignore)
    monkeypatch.setattr(comparing, "LOGITS", 3 * 300)
    pieces = answer_prompt(loaded, spec, ignore)
    assert [token.token_id for token in pieces.tokens] == [token.token_id for token in whole.tokens]
    for one, other in zip(pieces.tokens, whole.tokens, strict=True):
        assert one.kl == pytest.approx(other.kl, rel=1e-3, abs=1e-9)


def has_head(loaded: Any) -> bool:
    return "lm_head.weight" in loaded.anatomy.parameters


def test_the_weights_come_back_bit_for_bit_whatever_ends_the_answer(llama: Any) -> None:
    before = fingerprint(llama.model)
    spec = asked(f"{DOWN}[:,:]", f"{NORM}[5]", perturbations=("gaussian_noise",))
    answer_prompt(llama, spec, ignore)
    assert fingerprint(llama.model) == before
    for error in (Cancelled("cancelled"), OSError("gone"), KeyboardInterrupt()):

        def ends_amid_the_damaged_text(event: Event, error: BaseException = error) -> None:
            if isinstance(event, Progress) and event.done == 15:
                assert fingerprint(llama.model) != before, "the weights are damaged meanwhile"
                raise error

        with pytest.raises(type(error)):
            answer_prompt(llama, spec, ends_amid_the_damaged_text)
        assert fingerprint(llama.model) == before


def test_a_change_that_changes_nothing_gives_the_same_sample_and_another_seed_another(llama: Any) -> None:
    nothing = {"perturbations": ("scale",), "scale_factor": 1.0, "temperature": 1.0, "new_tokens": 30}
    heard: list[Event] = []
    first = answer_prompt(llama, asked(f"{DOWN}[:,:]", **nothing), heard.append)
    assert first.intact == first.damaged and first.first_difference is None
    assert first.mean_kl == 0.0 and first.unchanged == first.weights
    assert any(isinstance(event, Note) and "leaves all of these weights as they are" in event.text for event in heard)
    assert answer_prompt(llama, asked(f"{DOWN}[:,:]", **nothing), ignore) == first
    assert answer_prompt(llama, asked(f"{DOWN}[:,:]", **nothing, seed=1), ignore).intact != first.intact


def test_a_small_change_seldom_changes_a_draw(llama: Any) -> None:
    """With draws of its own for each model they would agree for a few of 200 tokens, as both guess among 300."""
    slight = asked(f"{DOWN}[3,:]", perturbations=("scale",), scale_factor=1.01, temperature=1.0, new_tokens=200)
    answer = answer_prompt(llama, slight, ignore)
    assert answer.first_difference is None or answer.first_difference > 20


def test_draws_have_the_distribution_of_the_logits_at_the_temperature() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    choose, count = Choice(0.7, seed=3), 20_000
    found = Counter(choose(logits) for _ in range(count))
    wanted = (logits.double() / 0.7).softmax(0)
    for token, share in enumerate(wanted.tolist()):
        error = (share * (1 - share) / count) ** 0.5
        assert abs(found[token] / count - share) < 4 * error


def test_a_text_ends_at_the_end_token_that_the_generation_config_names(llama: Any) -> None:
    plain = answer_prompt(llama, asked(f"{DOWN}[:,:]", prompt="Copper, tin"), ignore)
    end = ids_after(plain)[4]
    place = ids_after(plain).index(end)
    llama.model.generation_config.eos_token_id = [299, end]
    answer = answer_prompt(llama, asked(f"{DOWN}[:,:]", prompt="Copper, tin"), ignore)
    assert (plain.intact_end, answer.intact_end) == (LENGTH, END_TOKEN)
    assert ids_after(answer) == ids_after(plain)[: place + 1], "the end token is a prediction like the others"
    assert answer.intact == tiny_tokenizer().decode(ids_after(plain)[:place]), "but no part of the text"


def test_the_end_tokens_of_a_model_on_disk_are_those_of_its_generation_config(tmp_path: Any) -> None:
    folder = save_tiny("gpt2", tmp_path)
    edit_json(folder / "generation_config.json", eos_token_id=[7, 9])
    loaded = load_model(str(folder))
    assert end_tokens(loaded.model, loaded.tokenizer) == {7, 9}
    (folder / "generation_config.json").unlink()
    again = load_model(str(folder))
    assert end_tokens(again.model, again.tokenizer) == {0}, "as config.json says"
    (folder / "generation_config.json").write_text('{"eos_token_id": "</s>"}')
    assert any("which is no token" in note for note in load_model(str(folder)).notes)
    (folder / "generation_config.json").write_text('{"eos_token_id": null}')
    assert stored_end_tokens(folder) == (None, "")
    assert (folder / STORED).is_file()


@pytest.mark.parametrize(
    "prompt, bos, first", [(PROMPT, "always", 0), (BOS + PROMPT, "always", 0), (PROMPT, "auto", 52)]
)
def test_a_prompt_begins_as_a_text_of_a_run(llama: Any, prompt: str, bos: str, first: int) -> None:
    answer = answer_prompt(llama, asked(prompt=prompt, bos=bos), ignore)
    plain = tiny_tokenizer()(PROMPT)["input_ids"]
    assert [token.token_id for token in answer.tokens if token.in_prompt] == ([0] if first == 0 else []) + plain
    assert answer.bos == (BOS if bos == "always" else "")


def test_an_empty_prompt_needs_something_to_go_on_from(llama: Any) -> None:
    with pytest.raises(InvalidInput, match="the prompt is empty"):
        answer_prompt(llama, asked(f"{DOWN}[:,:]", prompt=""), ignore)
    alone = answer_prompt(llama, asked(f"{DOWN}[:,:]", prompt="", bos="always"), ignore)
    typed = answer_prompt(llama, asked(f"{DOWN}[:,:]", prompt=BOS), ignore)
    assert alone.tokens == typed.tokens
    assert alone.tokens[0].kl is None and alone.tokens[1].kl is not None


def test_a_prompt_that_the_model_cannot_hold_is_refused_and_a_text_ends_where_its_positions_do() -> None:
    gpt2 = wrap(tiny_model("gpt2"))  # of 512 positions
    room = answer_prompt(gpt2, asked("transformer.h.0.mlp.c_fc.weight[0,0]", prompt="a" * 505), ignore)
    assert (len(room.tokens), room.intact_end, room.damaged_end) == (512, POSITIONS, POSITIONS)
    with pytest.raises(InvalidInput, match=r"the prompt has 512 tokens, and tiny takes 512 with those that follow"):
        answer_prompt(gpt2, asked(prompt="a" * 512), ignore)
    only_read = answer_prompt(
        gpt2, asked("transformer.h.0.mlp.c_fc.weight[0,0]", prompt="a" * 512, new_tokens=0), ignore
    )
    assert len(only_read.predicted) == 511 and only_read.intact == only_read.damaged == ""


def test_a_prompt_of_more_tokens_than_an_answer_may_tell_of_is_refused(
    llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answering, "MOST_TOKENS", 5)
    with pytest.raises(InvalidInput, match=r"the prompt has 19 tokens"):
        answer_prompt(llama, asked(prompt=PROMPT), ignore)


def test_a_collapsed_model_is_named_with_its_layer_and_gives_no_token(llama: Any) -> None:
    huge = asked(f"{NORM}[:]", perturbations=("scale",), scale_factor=3e38)
    answer = answer_prompt(llama, huge, ignore)
    assert answer.damaged_end == COLLAPSED and answer.damaged == "" and answer.damaged_tokens == ()
    assert answer.collapsed_at == "model.norm"
    assert answer.collapsed_tokens == len(answer.tokens) - 1 == answer.top1_changes
    assert answer.mean_kl is None
    assert all((token.kl, token.damaged, token.damaged_top) == (None, None, "") for token in answer.tokens)
    assert answer.intact == answer_prompt(llama, asked(), ignore).intact


def test_a_model_that_collapses_on_some_tokens_only_has_no_mean_kl() -> None:
    gpt2 = wrap(tiny_model("gpt2"))
    place = 8
    answer = answer_prompt(
        gpt2,
        asked(f"transformer.wpe.weight[{place},:]", perturbations=("scale",), scale_factor=3e38, new_tokens=3),
        ignore,
    )
    gone = [token.collapsed for token in answer.tokens]
    assert not any(gone[: place + 1]) and all(gone[place + 1 :]), "what comes before that position is as it was"
    assert [token.kl for token in answer.tokens[1 : place + 1]] == [0.0] * place
    assert answer.mean_kl is None and answer.collapsed_at is not None


def test_an_intact_model_that_gives_no_numbers_is_an_error(llama: Any) -> None:
    with torch.no_grad():
        llama.model.get_parameter(DOWN).fill_(3e38)
    with pytest.raises(RunFailed, match=r"the intact model's predictions are not finite, first at model.layers.0"):
        answer_prompt(llama, asked(f"{NORM}[5]"), ignore)


def test_without_weights_the_intact_model_answers_alone(llama: Any) -> None:
    answer = answer_prompt(llama, asked(), ignore)
    assert (answer.damaged, answer.damaged_end, answer.damaged_tokens, answer.first_difference) == (
        None,
        None,
        (),
        None,
    )
    assert answer.predicted == () and answer.mean_kl is None and answer.intact


def test_weights_named_twice_are_damaged_once_and_wrong_names_are_refused(llama: Any) -> None:
    twice = asked(f"{DOWN}[3,:]", f"{DOWN}[3,5]", f"{NORM}[2]", perturbations=("sign_flip",))
    assert answer_prompt(llama, twice, ignore).weights == 64 + 1
    with pytest.raises(InvalidInput, match=r"the model has no parameter model\.layers\.9"):
        answer_prompt(llama, asked("model.layers.9.mlp.down_proj.weight[0,0]"), ignore)
    with pytest.raises(InvalidInput, match="lies outside of"):
        answer_prompt(llama, asked(f"{DOWN}[999,0]"), ignore)


def test_the_texts_are_told_as_they_grow(llama: Any) -> None:
    heard: list[Event] = []
    answer = answer_prompt(llama, asked(f"{DOWN}[:,:]"), heard.append)
    texts = [event for event in heard if isinstance(event, Generated)]
    assert answer.intact.startswith(texts[0].intact) and texts[0].damaged is None
    assert texts[-1].intact == answer.intact and (answer.damaged or "").startswith(texts[-1].damaged or "?")
    assert heard.index(texts[0]) < next(at for at, event in enumerate(heard) if isinstance(event, Progress))
    assert max(event.done for event in heard if isinstance(event, Progress)) == 24
    assert event_from_plain(to_dict(PromptAnswered(answer))) == PromptAnswered(answer)


@pytest.mark.parametrize("kind", ["mamba", "bamba", "gemma2", "camembert"])
def test_models_of_other_caches_are_computed_whole_and_say_the_same(kind: str) -> None:
    """Mamba has no keys and values, Bamba some in a cache of its own; CamemBERT numbers positions by what it is given."""
    loaded = wrap(causal_tiny(kind)[0])
    assert cache_is_right(loaded) == (kind == "gemma2")
    prompt = [5, 9, 13, 7, 40, 41]
    expected = list(prompt)
    with torch.no_grad():
        for _ in range(20):  # longer than the sliding window
            expected.append(int(loaded.model(torch.tensor([expected]), use_cache=False).logits[0, -1].argmax()))
    text = tiny_tokenizer().decode(prompt)
    assert tiny_tokenizer()(text)["input_ids"] == prompt
    answer = answer_prompt(loaded, asked(prompt=text, new_tokens=20, bos="never"), ignore)
    assert ids_after(answer) == expected[len(prompt) : len(prompt) + len(ids_after(answer))]
    assert answer.intact_end == END_TOKEN or len(ids_after(answer)) == 20


def test_positions_that_longrope_turns_by_other_factors_are_computed_anew() -> None:
    model, _ = causal_tiny("phi3")
    config = copy.deepcopy(model.config)
    config.original_max_position_embeddings = 16
    half = config.hidden_size // config.num_attention_heads // 2
    config.rope_parameters = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * half,
        "long_factor": [8.0] * half,
        "original_max_position_embeddings": 16,
        "partial_rotary_factor": 1.0,
    }
    torch.manual_seed(1)
    longrope = type(model)(config).eval()
    with torch.no_grad():
        for parameter in longrope.parameters():
            parameter.mul_(6 if parameter.dim() > 1 else 1)
    loaded = dataclasses.replace(wrap(longrope), unbatched_above=unbatched_above_of(config))
    assert loaded.unbatched_above == 16 and cache_is_right(loaded)
    expected = prompt = tiny_tokenizer()("The boats lay")["input_ids"]
    with torch.no_grad():
        for _ in range(30):
            ids = torch.tensor([expected])
            expected = [*expected, int(longrope(ids, use_cache=False).logits[0, -1].argmax())]
    answer = answer_prompt(loaded, asked(prompt="The boats lay", new_tokens=30, bos="never"), ignore)
    assert len(prompt) < 16 and ids_after(answer) == expected[len(prompt) :][: len(ids_after(answer))]
    assert len(set(ids_after(answer))) > 5


@given(st.text(max_size=40))
def test_the_pieces_of_a_text_are_the_text(text: str) -> None:
    text = text.encode("utf-8", "ignore").decode()
    ids = tiny_tokenizer()(text)["input_ids"]
    pieces = list(text_pieces(tiny_tokenizer(), ids))
    assert "".join(pieces) == text and len(pieces) == len(ids)


def test_half_characters_of_a_damaged_model_are_not_kept_back_for_ever() -> None:
    ids = tiny_tokenizer()("é")["input_ids"][:1] * 9  # the first byte alone, again and again
    pieces = list(text_pieces(tiny_tokenizer(), ids))
    assert len(pieces) == 9 and set("".join(pieces)) == {"\ufffd"} and len("".join(pieces)) == 9


@pytest.mark.parametrize(
    "fields, said",
    [
        ({"prompt": "caf\udce9"}, "the prompt is no text: character 4"),
        ({"prompt": "a" * 100_001}, "the prompt has 100,001 characters"),
        ({"temperature": -0.5}, "--temperature -0.5 is negative"),
        ({"temperature": float("nan")}, "temperature"),
        ({"perturbations": ("standard",)}, "one perturbation, not 3"),
        ({"perturbations": ()}, "one perturbation, not 0"),
        ({"perturbations": ("bit_flip",), "bit": "all"}, "one bit flipped"),
        ({"new_tokens": 5000}, "--new-tokens 5000 is too large"),
        ({"prompt": None}, "prompt"),
    ],
)
def test_a_prompt_that_makes_no_sense_is_refused_in_one_sentence(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        parse_prompt({"model": "tiny", "prompt": PROMPT, "weights": (f"{NORM}[5]",), **fields})
    assert said in refused.value.message
