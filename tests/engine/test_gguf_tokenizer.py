"""The tokens of a GGUF file are those that llama.cpp makes of its vocabulary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cwa_engine.models.loading import load_model
from tests.gguf_files import FAMILIES, pairs_vocabulary, pieces_vocabulary, tiny, write_family

TEXTS = (
    "I've been 'told he's there, 'RE you sure? We'Ve a'lL don't",
    "0 1 12 123 1234 12345 3.14 1,000,000 ½ ² ١٢٣ Ⅻ v2x4",
    "  two  spaces   three\n\n\nlines \n \n\ttab\t\tend  ",
    "CamelCaseWord HTTPServer iPhone aB AbC",
    "日本語のテキスト、漢字。 我想在apple工作1314151天～",
    "Привет, мир! 안녕하세요 שלום مرحبا नमस्ते สวัสดี",
    "🚀 (normal) 😶‍🌫️ ✅ 🦙🦙 e.g.",
    "def f(x):\n    return {'a': [1, 2], \"b\": x**2}  # ok\n\n\nclass A(B):\n\tpass\n",
    "====>>> ---- ......!!!!?????? ``` ''''''\"\"\"\" $100 £5 50% a_b__c \\ / ~ ^ |",
    "…“quoted”‘x’—dash– a\r\nb\r\n\r\nc\u00a0d\u3000e\u0000f\u001b[0m",
    "x\u0301y ab\u200bcd a/b//c\n/d end.\n\n",
    " leading", "", " ", "\n",
)  # fmt: skip

# Made with llama.cpp (llama_tokenize, package llama-cpp-python 0.3.36) of files with the vocabularies below. null where
# llama.cpp is known to cut otherwise than the tokenizer that it stands for: combining marks, and spaces within a range.
EXPECTED: dict[str, list[list[int] | None]] = json.loads(Path(__file__).with_name("gguf_tokens.json").read_text())


def load(tmp_path: Path, **tokenizer: Any) -> Any:
    """The tokenizer of a small model with this vocabulary."""
    family, size = FAMILIES["llama"], len(tokenizer["tokens"])
    model = tiny(family, vocab_size=size)
    path = write_family(
        tmp_path / "model.gguf", family, model, tokenizer={"merges": None, "add_bos_token": None, **tokenizer}
    )
    return load_model(str(path)).tokenizer


@pytest.mark.parametrize("pre", [name for name in EXPECTED if not name.startswith("sentencepiece")])
def test_text_is_cut_as_the_files_pre_tokenizer_says(pre: str, tmp_path: Path) -> None:
    tokenizer = load(tmp_path, **pairs_vocabulary(TEXTS, pre))
    for text, expected in zip(TEXTS, EXPECTED[pre], strict=True):
        assert expected in (None, tokenizer(text)["input_ids"]), text
    assert [tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in TEXTS] == list(TEXTS)


@pytest.mark.parametrize("prefix", [True, False])
def test_pieces_of_sentencepiece_merge_by_score_and_fall_back_to_bytes(prefix: bool, tmp_path: Path) -> None:
    tokenizer = load(tmp_path, **pieces_vocabulary(TEXTS), add_space_prefix=prefix)
    texts = [*TEXTS, "<|user|>hello <|user|> 日"]
    assert tokenizer(texts)["input_ids"] == EXPECTED[f"sentencepiece{' with a prefix' * prefix}"]
    assert [tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in TEXTS] == list(TEXTS)


@pytest.mark.parametrize(("pre", "same"), [("qwen2", True), ("mpt", True), ("command-r", True), ("gpt-2", False)])
def test_text_is_composed_where_the_pre_tokenizers_own_tokenizer_does(pre: str, same: bool, tmp_path: Path) -> None:
    tokenizer = load(tmp_path, **pairs_vocabulary(["café cafe\u0301"], pre))
    assert (tokenizer("cafe\u0301")["input_ids"] == tokenizer("café")["input_ids"]) is same


@pytest.mark.parametrize(("pre", "whole"), [("llama-bpe", True), ("tekken", True), ("dbrx", False), ("gpt-2", False)])
def test_a_word_that_is_a_token_is_not_merged_where_the_pre_tokenizer_says_so(
    pre: str, whole: bool, tmp_path: Path
) -> None:
    vocabulary = pairs_vocabulary(["word"], pre)
    vocabulary |= {"tokens": [*vocabulary["tokens"], "word"], "token_type": [*vocabulary["token_type"], 1]}
    tokenizer = load(tmp_path, **vocabulary, add_bos_token=False)
    assert tokenizer.convert_ids_to_tokens(tokenizer("word")["input_ids"]) == (["word"] if whole else ["wo", "rd"])


def test_falcon_takes_digits_in_threes_and_runs_of_punctuation(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, **pairs_vocabulary(["a12345--b"], "falcon"))
    assert tokenizer.convert_ids_to_tokens(tokenizer("a12345--b")["input_ids"]) == ["a", "12", "3", "45", "--", "b"]


def test_tokens_at_the_ends_of_a_text_are_those_of_the_file(tmp_path: Path) -> None:
    vocabulary = pieces_vocabulary(TEXTS)
    a = len(vocabulary["tokens"])
    vocabulary |= {"tokens": [*vocabulary["tokens"], "<end>"], "token_type": [*vocabulary["token_type"], 3]}
    vocabulary |= {"scores": [*vocabulary["scores"], 0.0], "eos_token_id": a, "padding_token_id": 2}
    tokenizer = load(tmp_path, **vocabulary, add_eos_token=True)
    ids = tokenizer("tab")["input_ids"]
    assert (ids[0], ids[-1]) == (1, a)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id, tokenizer.pad_token_id) == (
        1,
        a,
        0,
        2,
    )
    assert tokenizer("</s>", add_special_tokens=False)["input_ids"] == [2]


def test_no_text_becomes_a_token_that_fills_up_the_vocabulary(tmp_path: Path) -> None:
    vocabulary = pairs_vocabulary(["[PAD]"], "llama-bpe")
    vocabulary |= {"tokens": [*vocabulary["tokens"], "[PAD"], "token_type": [*vocabulary["token_type"], 5]}
    tokenizer = load(tmp_path, **vocabulary, add_bos_token=False)
    assert tokenizer.convert_ids_to_tokens(tokenizer("[PAD")["input_ids"]) == ["[P", "AD"]


@pytest.mark.parametrize(("name", "strips"), [("Llama", False), ("Phi-3-mini", True), ("My Phi3 tune", True)])
def test_special_tokens_of_phi_3_take_the_spaces_behind_them(name: str, strips: bool, tmp_path: Path) -> None:
    vocabulary = pieces_vocabulary(["a"])
    family, size = FAMILIES["llama"], len(vocabulary["tokens"])
    path = tmp_path / "model.gguf"
    write_family(
        path,
        family,
        tiny(family, vocab_size=size),
        tokenizer={"merges": None, **vocabulary, "add_bos_token": False},
        general={"general.name": name},
    )
    tokenizer = load_model(str(path)).tokenizer
    rest = [] if strips else ["▁", "<0x0A>"]
    assert tokenizer.convert_ids_to_tokens(tokenizer("<|user|>\n")["input_ids"]) == ["<|user|>", *rest]


def test_scores_that_are_no_ranks_are_noted(tmp_path: Path) -> None:
    vocabulary = pieces_vocabulary(TEXTS)
    vocabulary["scores"] = [score / 3 for score in vocabulary["scores"]]
    family, size = FAMILIES["llama"], len(vocabulary["tokens"])
    path = write_family(
        tmp_path / "m.gguf", family, tiny(family, vocab_size=size), tokenizer={"merges": None, **vocabulary}
    )
    assert any("scores as of a unigram vocabulary" in note for note in load_model(str(path)).notes)
