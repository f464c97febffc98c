"""A model's tokenizer gives the tokens that its files describe, whatever class transformers picks."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from cwa_engine.base.errors import ModelBroken
from cwa_engine.base.events import Note
from cwa_engine.hub.sources import ModelSource, SourceKind
from cwa_engine.models.loading import load_model
from cwa_engine.models.tokenizer import AWKWARD, load_tokenizer
from cwa_engine.pipeline import analyze
from cwa_engine.spec import RunSpec
from tests.engine.conftest import TEXTS
from tests.models import tiny_model
from tests.tokenizers import KINDS, SIZE, tokenizer_folder, training_texts

SOURCE = ModelSource("tiny", SourceKind.FOLDER, "/nowhere")
CLASSES = [
    ("gpt2", "GPT2Tokenizer"), ("gpt_neox", None), ("codegen", "CodeGenTokenizer"), ("llama", "LlamaTokenizer"),
    ("qwen2", None), ("gemma", "GemmaTokenizer"), ("llama", "PreTrainedTokenizerFast"), ("bert", "BertTokenizer"),
    ("llama", "NoSuchTokenizer"),
]  # fmt: skip


def load(folder: Path) -> tuple[Any, tuple[str, ...]]:
    return load_tokenizer(SOURCE, folder, local_files_only=True)


@pytest.mark.parametrize(("model_type", "named"), CLASSES)
@pytest.mark.parametrize("kind", list(KINDS))
def test_the_tokens_are_those_of_the_file_whatever_class_is_named_for_it(
    tmp_path: Path, kind: str, model_type: str, named: str | None
) -> None:
    fields = {"tokenizer_class": named} if named else {}
    folder = tokenizer_folder(tmp_path, kind, model_type, **fields)
    tokenizer, _ = load(folder)
    stored = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text in (*AWKWARD, *training_texts()[:3], "", " ", "<|begin|> <s>x</s>"):
        assert tokenizer(text)["input_ids"] == stored.encode(text).ids
        assert (
            tokenizer(text, add_special_tokens=False)["input_ids"] == stored.encode(text, add_special_tokens=False).ids
        )
    assert len(tokenizer) == stored.get_vocab_size()


@pytest.fixture(scope="module")
def lower_case(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Tokenizer]:
    """A tokenizer that transformers would have rebuilt without its lower case, and its file."""
    folder = tokenizer_folder(tmp_path_factory.mktemp("model"), "lower case", "gpt2", tokenizer_class="GPT2Tokenizer")
    return load(folder)[0], Tokenizer.from_file(str(folder / "tokenizer.json"))


@given(text=st.text())
def test_any_text_has_the_tokens_of_the_file(lower_case: tuple[Any, Tokenizer], text: str) -> None:
    tokenizer, stored = lower_case
    assert tokenizer(text)["input_ids"] == stored.encode(text).ids


def test_a_class_that_reads_texts_otherwise_is_named(tmp_path: Path) -> None:
    _, notes = load(tokenizer_folder(tmp_path / "a", "lower case", "gpt2", tokenizer_class="GPT2Tokenizer"))
    assert [note.partition(" splits")[0] for note in notes] == [
        "texts are split as tokenizer.json says: transformers' GPT2Tokenizer"
    ]
    assert load(tokenizer_folder(tmp_path / "b", "gpt2", "gpt2", tokenizer_class="GPT2Tokenizer"))[1] == ()


def test_a_class_that_cannot_be_made_of_the_file_is_done_without(tmp_path: Path) -> None:
    _, notes = load(tokenizer_folder(tmp_path, "gpt2", "gemma", tokenizer_class="GemmaTokenizer"))
    assert len(notes) == 1
    assert notes[0].startswith("tokenizer.json is used alone")


def test_a_run_measures_the_tokens_of_the_file_and_says_so(
    tmp_path: Path, data_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.models.VOCABULARY", SIZE)
    tiny_model("gpt2").save_pretrained(tmp_path)
    folder = tokenizer_folder(tmp_path / "other", "lower case", "gpt2", tokenizer_class="GPT2Tokenizer")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).rename(tmp_path / name)
    stored = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    said: list[Any] = []
    result = analyze(load_model(str(tmp_path)), RunSpec(model="tiny", data_file=data_file, topk=(1,)), said.append)
    assert result.baseline.tokens == sum(len(stored.encode(text).ids) - 1 for text in TEXTS[1::2])
    assert any(isinstance(event, Note) and "GPT2Tokenizer" in event.text for event in said)


# Special and added tokens


def test_special_tokens_have_their_names_and_none_is_made_up(tmp_path: Path) -> None:
    folder = tokenizer_folder(
        tmp_path, "llama", "llama", bos_token="<s>", eos_token={"content": "</s>"}, pad_token="[PAD]"
    )
    tokenizer, _ = load(folder)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)
    assert "pad_token" not in tokenizer.special_tokens_map
    assert len(tokenizer) == SIZE


def test_a_word_of_the_vocabulary_that_is_named_special_is_still_split_as_the_file_says(tmp_path: Path) -> None:
    folder = tokenizer_folder(tmp_path, "gpt2", "gpt2", eos_token="er")
    tokenizer, _ = load(folder)
    stored = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert tokenizer.eos_token_id == stored.token_to_id("er")
    assert tokenizer("wonders in thunderer")["input_ids"] == stored.encode("wonders in thunderer").ids


def test_class_defaults_name_special_tokens_where_no_config_does(tmp_path: Path) -> None:
    tokenizer, _ = load(tokenizer_folder(tmp_path, "gpt2", "gpt2"))
    assert tokenizer.bos_token == "<|endoftext|>"


def test_tokens_that_the_config_numbers_are_added_where_the_file_has_place_for_them(tmp_path: Path) -> None:
    added = {str(SIZE): {"content": "<|turn|>", "special": True}, "9999": {"content": "<|far|>", "special": True}}
    added["7"] = {"content": "<|taken|>", "special": True}
    tokenizer, notes = load(tokenizer_folder(tmp_path, "gpt2", "gpt2", added_tokens_decoder=added))
    assert tokenizer("a<|turn|>b").tokens()[1] == "<|turn|>"
    assert tokenizer.convert_tokens_to_ids("<|turn|>") == SIZE
    assert len(tokenizer) == SIZE + 1
    assert "tokens of other files added to tokenizer.json: <|turn|>" in notes
    assert "tokens that tokenizer.json has no place for: <|taken|>, <|far|>" in notes


def test_tokens_of_the_older_file_are_added_too(tmp_path: Path) -> None:
    folder = tokenizer_folder(tmp_path, "gpt2", "gpt2")
    (folder / "added_tokens.json").write_text(json.dumps({"<|turn|>": SIZE}))
    assert load(folder)[0]("<|turn|>")["input_ids"] == [SIZE]


def test_a_config_that_asks_for_bos_where_the_file_adds_none_is_contradicted_aloud(tmp_path: Path) -> None:
    fields = {"bos_token": "<|begin|>", "add_bos_token": True, "tokenizer_class": "PreTrainedTokenizerFast"}
    tokenizer, notes = load(tokenizer_folder(tmp_path / "a", "gpt2", "llama", **fields))
    assert tokenizer("a").tokens() == ["a"]
    assert any("add_bos_token true" in note and "--bos always" in note for note in notes)
    _, notes = load(tokenizer_folder(tmp_path / "b", "llama3", "llama", **fields))
    assert not any("add_bos_token" in note for note in notes)


def test_what_the_file_says_of_training_and_batches_is_not_done_to_texts(tmp_path: Path) -> None:
    folder = tokenizer_folder(tmp_path, "gpt2", "gpt2")
    stored = Tokenizer.from_file(str(folder / "tokenizer.json"))
    text = training_texts()[0]
    ids = stored.encode(text).ids
    stored.enable_truncation(4)
    stored.enable_padding(length=1000)
    stored.model.dropout = 0.5
    stored.save(str(folder / "tokenizer.json"))
    tokenizer, notes = load(folder)
    assert tokenizer(text)["input_ids"] == ids
    assert any("dropout" in note for note in notes)


# Files that are broken or missing


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    folder = tokenizer_folder(tmp_path, "gpt2", "gpt2")
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(ModelBroken, match=name):
        load(folder)


@pytest.mark.parametrize("config", [[], {"added_tokens_decoder": {"5": "x"}}, {"added_tokens_decoder": {"x": {}}}])
def test_a_config_of_another_shape_is_named(tmp_path: Path, config: Any) -> None:
    folder = tokenizer_folder(tmp_path, "gpt2", "gpt2")
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelBroken, match=r"tokenizer_config.json|added tokens of tiny"):
        load(folder)


def test_files_that_do_not_say_how_texts_are_split_are_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (tmp_path / "vocab.json").write_text(json.dumps({"a": 0}))
    with pytest.raises(ModelBroken, match=r"tiny has no tokenizer: transformers makes none of vocab.json"):
        load(tmp_path)


@pytest.mark.parametrize(
    "model_type", ["llama", "falcon", "gpt2", "gpt_neox", "gemma", "bert", "xglm", "xlnet", "t5", "qwen2"]
)
def test_a_folder_without_tokenizer_files_is_refused_even_where_transformers_makes_one_up(
    tmp_path: Path, model_type: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(ModelBroken, match="tiny has no tokenizer"):
        load(tmp_path)


UNKNOWN_PIECE = b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02"  # the first piece of a SentencePiece model


@pytest.mark.parametrize(
    ("content", "said", "hint"),
    [
        (
            UNKNOWN_PIECE,
            r"a SentencePiece model \(tokenizer.model\), which needs sentencepiece",
            r"cwtool\[sentencepiece\]",
        ),
        (b"IQ== 0\nIg== 1\n", r"a tiktoken file \(tokenizer.model\), which needs tiktoken", r"cwtool\[tiktoken\]"),
        (b"version https://git-lfs.github.com/spec/v1\n", "neither a SentencePiece model nor a tiktoken file", "LFS"),
        (b"", "neither a SentencePiece model nor a tiktoken file", "LFS"),
    ],
)
def test_the_package_that_a_vocabulary_file_needs_is_named_by_what_the_file_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, said: str, hint: str
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(ModelBroken, match=said) as raised:
        load(tmp_path)

    assert re.search(hint, raised.value.hint)


@pytest.mark.parametrize(
    "rules",
    [
        {
            "model_type": "bpe",
            "byte_fallback": True,
            "remove_extra_whitespaces": False,
            "normalization_rule_name": "identity",
        },
        {
            "model_type": "bpe",
            "add_dummy_prefix": False,
            "byte_fallback": True,
            "user_defined_symbols": ["▁▁", "▁▁▁", "<t>"],
        },
        {"model_type": "bpe", "user_defined_symbols": ["the", "<|turn|>"]},
        {"model_type": "unigram", "normalization_rule_name": "nmt_nfkc_cf"},
        {"model_type": "unigram", "byte_fallback": True},
    ],
)
def test_a_sentencepiece_model_alone_gives_the_tokens_of_sentencepiece(tmp_path: Path, rules: dict[str, Any]) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    (tmp_path / "texts").write_text("\n".join(training_texts()), "utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "texts"), model_prefix=str(tmp_path / "tokenizer"), vocab_size=SIZE, minloglevel=2, **rules
    )
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "LlamaTokenizer", "add_bos_token": True})
    )
    tokenizer, _ = load(tmp_path)
    own = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    prose = [text for text in training_texts() if "--|" not in text]  # in a row of like signs two ways can tie
    for text in (*AWKWARD, *prose, "  two  blanks ", "a<t>b the<|turn|>the"):
        assert tokenizer(text)["input_ids"] == [own.bos_id(), *own.encode(text)]


def test_a_sentencepiece_model_of_unknown_rules_is_refused(tmp_path: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    (tmp_path / "texts").write_text("\n".join(training_texts()), "utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "texts"), model_prefix=str(tmp_path / "tokenizer"), vocab_size=SIZE, minloglevel=2,
        model_type="bpe", treat_whitespace_as_suffix=True,
    )  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ModelBroken, match="rules that cannot be followed exactly"):
        load(tmp_path)
