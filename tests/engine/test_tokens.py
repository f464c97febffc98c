"""Texts as tokens: which tokens, what stands before them, how many bytes they stand for, and in how much memory."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from cwa_engine.base.errors import DataError, InvalidInput, ModelBroken
from cwa_engine.base.events import Note
from cwa_engine.data import encoding
from cwa_engine.data.corpus import Text
from cwa_engine.data.encoding import encode, encode_long, encode_start
from cwa_engine.data.prefix import Prefix, prefix_of
from cwa_engine.data.tokens import TokenSequence, batched, pack, tokenize
from cwa_engine.evaluation.perplexity import baseline_of, evaluate
from cwa_engine.pipeline import analyze
from cwa_engine.records.export import ModelRecord, RunRecord, manifest
from cwa_engine.result import RunResult
from cwa_engine.rows import TextUse
from cwa_engine.spec import RunSpec
from tests.engine.conftest import TEXTS, doubled, wrap
from tests.models import tiny_model, tiny_tokenizer
from tests.tokenizers import KINDS, SIZE, tokenizer_of, training_texts, wrapped

kinds = st.sampled_from(list(KINDS))
ODD = [
    "🦙🎉",
    "日本語",
    "é",
    "e\u0301",
    "ﬁ½",
    "한국어",
    "1987",
    "it's",
    " " * 9,
    "\n\n",
    "\t",
    "\u200b",
    "====",
    "ab" * 9,
    "<s>",
    "▁",
]
pieces = st.one_of(st.sampled_from(ODD), st.sampled_from(" ".join(training_texts()).split(" ")), st.text(max_size=4))
texts = st.lists(pieces, min_size=1, max_size=60).map(" ".join)
one_text = texts.map(lambda content: [Text(content, "a text")])


def run_spec(data_file: Path, **fields: Any) -> RunSpec:
    return RunSpec(model="tiny", data_file=data_file, topk=(1,), metrics=("magnitude",), perturbations=(), **fields)


def with_tokenizer(kind: str, family: str = "llama", **special: str) -> Any:
    """A small model in double precision that knows the tokens of this kind."""
    import dataclasses

    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer_of(kind), **special)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.models.VOCABULARY", SIZE)
        return dataclasses.replace(wrap(doubled(tiny_model(family))), tokenizer=tokenizer)


# Tokens of long texts


@settings(deadline=None)  # the first example of a kind trains its tokenizer
@given(kind=kinds, content=texts, count=st.integers(1, 40))
def test_the_first_tokens_of_a_text_are_those_of_the_whole(kind: str, content: str, count: int) -> None:
    content = content * 8  # so that most are longer than what is tried first
    whole = tokenizer_of(kind).encode(content, add_special_tokens=False).ids
    start, more = encode_start(wrapped(kind), content, count)
    assert (list(start.ids[:count]), more) == (whole[:count], len(whole) > count)


@settings(deadline=None)  # the first example of a kind trains its tokenizer
@given(kind=kinds, content=texts, stride=st.integers(200, 300), overlap=st.integers(120, 190))
def test_a_text_in_pieces_has_the_tokens_and_bytes_of_the_whole(
    kind: str, content: str, stride: int, overlap: int
) -> None:
    content = content * 8
    whole = encode(wrapped(kind), content)
    parts = encode_long(wrapped(kind), content, stride, overlap)
    assert list(parts.ids) == tokenizer_of(kind).encode(content, add_special_tokens=False).ids
    assert list(parts.ends or ()) == list(whole.ends or ())


@settings(deadline=None)  # the first example of a kind trains its tokenizer
@given(kind=kinds, character=st.sampled_from(["=", "a", " ", "é", "🦙", "ab", "\n"]), number=st.integers(1, 3000))
def test_a_run_of_one_character_is_split_as_in_the_whole(kind: str, character: str, number: int) -> None:
    content = f"begin {character * number} end"
    whole = tokenizer_of(kind).encode(content, add_special_tokens=False).ids
    assert list(encode_long(wrapped(kind), content, 421, 210).ids) == whole
    assert list(encode_start(wrapped(kind), content, 20)[0].ids[:20]) == whole[:20]


def test_a_beginning_that_depends_on_the_end_of_a_text_is_that_of_the_whole() -> None:
    from transformers import PreTrainedTokenizerFast

    stored = Tokenizer(models.Unigram([("?", 0.0), ("a", -1.0), ("aa", -1.5)], 0))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=stored)
    for length in (3000, 3001):  # an odd "a" comes first
        whole = stored.encode("a" * length).ids
        start, more = encode_start(tokenizer, "a" * length, 3)
        assert (list(start.ids[:3]), more) == (whole[:3], True)
        assert list(encode_long(tokenizer, "a" * length, 421, 210).ids) == whole
    assert stored.encode("a" * 3000).ids[0] != stored.encode("a" * 3001).ids[0]


@pytest.mark.parametrize("packed", [False, True])
def test_no_more_than_a_piece_of_a_long_text_is_tokenized_at_once(
    monkeypatch: pytest.MonkeyPatch, packed: bool
) -> None:
    lengths: list[int] = []

    def measured(tokenizer: Any, text: str) -> Any:
        lengths.append(len(text))
        return encode(tokenizer, text)

    monkeypatch.setattr(encoding, "encode", measured)
    content = " ".join(training_texts()) * 12  # 840,000 characters
    (first, *_) = (pack if packed else tokenize)(wrapped("gpt2"), [Text(content, "a text")], 64)
    assert list(first.ids) == tokenizer_of("gpt2").encode(content[:2000]).ids[:64]
    assert max(lengths) <= (encoding.STRIDE + encoding.OVERLAP if packed else 64 * 20)


# Bytes


@settings(deadline=None)  # the first example of a kind trains its tokenizer
@given(kind=kinds, given_texts=one_text, window=st.integers(2, 9))
def test_the_bytes_of_all_windows_add_up_to_those_of_the_text(kind: str, given_texts: list[Text], window: int) -> None:
    tokenizer, size = wrapped(kind), len(given_texts[0].content.encode())
    ids = tokenizer_of(kind).encode(given_texts[0].content, add_special_tokens=False).ids
    bos = Prefix((SIZE + 1,), "a token that no text has")
    if not ids:
        return
    (whole,) = tokenize(tokenizer, given_texts, len(ids) + 1, bos)
    assert whole.utf8_bytes == size
    first = [tokenize(tokenizer, given_texts, count + 1, bos)[0].utf8_bytes for count in range(1, len(ids) + 1)]
    cuts = [count for count in first if count is not None]
    assert len(cuts) == len(ids)
    assert cuts == sorted(cuts)  # every token stands for something between nothing and all
    assert cuts[-1] == size
    if len(ids) < window:
        return
    after_bos, bare = pack(tokenizer, given_texts, window + 1, bos), pack(tokenizer, given_texts, window)
    used = window * (len(ids) // window)
    assert sum(one.utf8_bytes or 0 for one in after_bos) == cuts[used - 1]
    ends = [0, *cuts]
    unscored = sum(ends[start + 1] - ends[start] for start in range(0, used, window))
    assert sum(one.utf8_bytes or 0 for one in bare) == cuts[used - 1] - unscored


def byte_of() -> dict[str, int]:
    """The byte-level alphabet as GPT-2's code makes it: printable bytes stand for themselves, others are moved."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    moved = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + place): byte for place, byte in enumerate(moved)}


@settings(deadline=None)  # the first example of a kind trains its tokenizer
@example(kind="llama3", given_texts=[Text("  a  ", "a text")], window=2)  # whose file cuts blanks off places
@given(kind=st.sampled_from(["gpt2", "llama3", "single digits"]), given_texts=one_text, window=st.integers(2, 9))
def test_windows_of_byte_level_tokens_hold_exactly_the_bytes_they_spell(
    kind: str, given_texts: list[Text], window: int
) -> None:
    tokens = tokenizer_of(kind).encode(given_texts[0].content, add_special_tokens=False).tokens
    alphabet = byte_of()
    sizes = [len(bytes(alphabet[character] for character in token)) for token in tokens]
    (whole,) = tokenize(wrapped(kind), given_texts, 10**6)
    assert whole.utf8_bytes == sum(sizes[1:])
    for count in range(2, len(tokens) + 1):
        (cut,) = tokenize(wrapped(kind), given_texts, count)
        assert (cut.utf8_bytes, cut.truncated) == (sum(sizes[1:count]), count < len(tokens))
    if len(tokens) >= window:
        windows = pack(wrapped(kind), given_texts, window)
        expected = [sum(sizes[start + 1 : start + window]) for start in range(0, len(tokens) - window + 1, window)]
        assert [sequence.utf8_bytes for sequence in windows] == expected


@given(content=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁<"), min_size=1, max_size=30))
def test_cuts_within_the_bytes_of_a_character_count_those_before_the_cut(content: str) -> None:
    tokens = tokenizer_of("llama").encode(content, add_special_tokens=False).tokens
    spelled = [b"x" if token.startswith("<0x") else token.replace("▁", " ").encode() for token in tokens]
    sizes = [len(piece) for piece in spelled]
    sizes[0] -= 1  # the blank that this tokenizer puts before every text
    for count in range(2, len(tokens) + 1):
        (cut,) = tokenize(wrapped("llama"), [Text(content, "")], count)
        assert cut.utf8_bytes == sum(sizes[1:count])


def test_a_cut_within_an_emoji_is_counted_as_far_as_it_goes() -> None:
    (cut,) = tokenize(tiny_tokenizer(), [Text("é" * 50, "")], 10)
    assert (len(cut.ids), cut.truncated, cut.utf8_bytes) == (10, True, 9)
    (whole,) = tokenize(tiny_tokenizer(), [Text("xy", "")], 10)
    assert (whole.truncated, whole.utf8_bytes) == (False, 1)
    assert [len(batch) for batch in batched([cut, whole, whole], 2)] == [2, 1]


def slow_tokenizer() -> Any:
    from transformers import ByT5Tokenizer

    return ByT5Tokenizer()


def test_a_slow_tokenizer_counts_bytes_where_its_tokens_spell_the_text_and_else_says_that_it_does_not_know() -> None:
    plain, accents = tokenize(slow_tokenizer(), [Text("abcdef", ""), Text("éé", "")], 4)
    assert (plain.utf8_bytes, plain.truncated) == (3, True)
    assert accents.utf8_bytes is None
    model = wrap(tiny_model("llama"))
    measured = evaluate(model, [plain, accents])
    use = TextUse("", "", 2, 2, 2, False, 0, seq_len=4)
    assert baseline_of(measured, [plain, accents], use, 300).bits_per_byte is None
    assert baseline_of(evaluate(model, [plain]), [plain], use, 300).bits_per_byte is not None


# What stands before a text


@pytest.mark.parametrize(
    ("kind", "model_type", "bos", "expected"),
    [
        ("gpt2", "gpt2", "auto", ""),
        ("llama", "llama", "auto", "<s>"),
        ("wordpiece", "gpt2", "auto", "[CLS]"),
        ("gpt2", "gemma3_text", "auto", "<|begin|>"),
        ("llama", "gemma2", "auto", "<s>"),
        ("gpt2", "gpt2", "always", "<|begin|>"),
        ("llama", "llama", "never", ""),
        ("gpt2", "gemma", "never", ""),
    ],
)
def test_bos_stands_before_texts_by_the_rule(kind: str, model_type: str, bos: str, expected: str) -> None:
    tokenizer = with_tokenizer(kind, **({"bos_token": "<|begin|>"} if kind == "gpt2" else {})).tokenizer
    assert prefix_of(tokenizer, model_type, bos).text == expected


def test_eos_stands_for_bos_where_there_is_none_and_without_both_it_is_an_error() -> None:
    assert (
        prefix_of(with_tokenizer("gpt2", eos_token="<|endoftext|>").tokenizer, "gpt2", "always").text == "<|endoftext|>"
    )
    with pytest.raises(InvalidInput, match="neither a BOS nor an EOS"):
        prefix_of(with_tokenizer("gpt2").tokenizer, "gpt2", "always")
    with pytest.raises(ModelBroken, match="a gemma model needs BOS"):
        prefix_of(with_tokenizer("gpt2").tokenizer, "gemma", "auto")


@pytest.mark.parametrize("bos", ["auto", "never"])
def test_tokens_of_a_tokenizer_that_adds_nothing_stay_as_they_are(bos: str) -> None:
    tokenizer = wrapped("gpt2")
    prefix = prefix_of(tokenizer, "gpt2", bos)
    for text in TEXTS:
        (sequence,) = tokenize(tokenizer, [Text(text, "")], 512, prefix)
        assert list(sequence.ids) == tokenizer(text)["input_ids"]
        assert sequence.scored_tokens == len(sequence.ids) - 1


def test_nothing_is_put_behind_a_text() -> None:
    tokenizer = wrapped("wordpiece")
    (sequence,) = tokenize(tokenizer, [Text("a text", "")], 512, prefix_of(tokenizer, "gpt2", "auto"))
    assert list(sequence.ids) == tokenizer("a text")["input_ids"][:-1]


@pytest.mark.parametrize("packed", [False, True])
def test_a_text_that_begins_with_bos_has_it_once(packed: bool) -> None:
    tokenizer = wrapped("llama")
    prefix = prefix_of(tokenizer, "llama", "auto")
    some = [Text(f"<s>{training_texts()[0]}", "")]
    (first, *_) = (pack if packed else tokenize)(tokenizer, some, 16, prefix)
    assert first.ids[0] == 1
    assert first.ids[1] != 1
    assert (len(first.ids), first.scored_tokens) == (16, 15)
    whole = tokenize(tokenizer, some, 10**6, prefix)[0]
    assert whole.utf8_bytes == len(training_texts()[0].encode())


def test_every_window_begins_with_bos_and_no_token_of_the_texts_is_left_out() -> None:
    tokenizer = wrapped("llama")
    prefix = prefix_of(tokenizer, "llama", "auto")
    some = [Text(text, "") for text in TEXTS]
    windows = pack(tokenizer, some, 16, prefix)
    ids = tokenizer("\n\n".join(TEXTS), add_special_tokens=False)["input_ids"]
    assert {(window.ids[0], len(window.ids), window.scored_tokens) for window in windows} == {(1, 16, 15)}
    assert [token for window in windows for token in window.ids[1:]] == ids[: 15 * (len(ids) // 15)]


def log_likelihood(model: Any, context: list[int], ids: list[int]) -> float:
    """Sum of log p of each token after what stands before it, one forward pass for each."""
    total = 0.0
    for place, token in enumerate(ids):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([context + ids[:place]])).logits[0, -1]
        total += float(logits.double().log_softmax(0)[token])
    return total


@pytest.mark.parametrize(("kind", "special"), [("gpt2", "<|endoftext|>"), ("llama", "<s>")])
def test_after_bos_a_text_is_scored_as_lm_eval_scores_it(
    data_file: Path, monkeypatch: pytest.MonkeyPatch, kind: str, special: str
) -> None:
    loaded = with_tokenizer(kind, bos_token=special)
    result = analyze(loaded, run_spec(data_file, bos="always"))
    assert (result.texts.bos, special in result.baseline.protocol) == (special, True)
    # lm-eval 0.4: tokens without special ones, all scored, after the prefix token
    bos = loaded.tokenizer.convert_tokens_to_ids(special)
    measured = [loaded.tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS[1::2]]
    total = sum(log_likelihood(loaded.model, [bos], ids) for ids in measured)
    assert result.baseline.tokens == sum(map(len, measured))
    assert result.baseline.nll == pytest.approx(-total / result.baseline.tokens, rel=1e-9)
    utf8_bytes = sum(len(text.encode()) for text in TEXTS[1::2])
    assert result.baseline.bits_per_byte == pytest.approx(-total / math.log(2) / utf8_bytes, rel=1e-9)


def test_no_token_of_a_longer_prefix_is_scored() -> None:
    loaded = with_tokenizer("gpt2")
    prefix = Prefix((1, 0), "[gMASK]<sop>")  # as GLM-4 has it
    sequences = tokenize(loaded.tokenizer, [Text(text, "") for text in TEXTS[:3]], 512, prefix)
    measured = evaluate(loaded, sequences, 3)
    for sequence, nll in zip(sequences, measured.nll_sums, strict=True):
        ids = list(sequence.ids)
        assert ids[:2] == [1, 0]
        assert nll == pytest.approx(-log_likelihood(loaded.model, ids[:2], ids[2:]), rel=1e-9)
    assert measured.tokens.tolist() == [len(sequence.ids) - 2 for sequence in sequences]


def test_a_length_that_the_prefix_fills_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"--seq-len 2 leaves no room beside \[gMASK\]<sop>"):
        tokenize(wrapped("gpt2"), [Text("a text", "")], 2, Prefix((1, 0), "[gMASK]<sop>"))


def test_the_protocol_names_the_length_that_was_used_and_not_the_one_beyond_the_model(data_file: Path) -> None:
    result = analyze(wrap(tiny_model("gpt2")), run_spec(data_file, seq_len=4096))
    assert (result.texts.seq_len, "at most 512 tokens" in result.baseline.protocol) == (512, True)
    assert "without BOS" in result.baseline.protocol


# Texts that are too short


def short_and_long(folder: Path, contents: list[str]) -> Path:
    path = folder / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": content}) + "\n" for content in contents))
    return path


def numbers_in_manifest(result: RunResult, spec: RunSpec) -> dict[str, Any]:
    model = ModelRecord("tiny", "", "folder", None, {}, "float32", "cpu", "", 1)
    return dict(manifest(RunRecord("id", spec, "", model, result, 0.0, []), {})["data"])


def test_texts_without_a_token_to_score_are_left_out_counted_and_said(llama: Any, tmp_path: Path) -> None:
    spec = run_spec(short_and_long(tmp_path, ["a", *TEXTS[:3], "b", TEXTS[3]]))
    said: list[Any] = []
    result = analyze(llama, spec, said.append)
    assert (result.texts.texts, result.texts.too_short, result.texts.scoring, result.texts.evaluation) == (
        6,
        (1, 5),
        2,
        2,
    )
    notes = [event.text for event in said if isinstance(event, Note)]
    assert "2 of 6 texts are too short to score and were left out: text 1 of texts.jsonl has 1 token: 'a'" in notes
    data = numbers_in_manifest(result, spec)
    assert (data["scored"], data["measured"], data["too_short"]) == ([2, 4], [3, 6], [1, 5])
    same = analyze(llama, run_spec(short_and_long(tmp_path, TEXTS[:4])))
    assert result.baseline == same.baseline


def test_one_text_of_length_beside_a_short_one_is_used_for_both(llama: Any, tmp_path: Path) -> None:
    result = analyze(llama, run_spec(short_and_long(tmp_path, [TEXTS[0], "a"])))
    assert (result.texts.shared, result.texts.too_short) == (True, (2,))


def test_where_all_texts_are_too_short_one_is_named(llama: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no text is long enough to score: text 1 of texts.jsonl has 1 token: 'a'"):
        analyze(llama, run_spec(short_and_long(tmp_path, ["a", "b"])))
    assert analyze(llama, run_spec(tmp_path / "texts.jsonl", bos="always")).baseline.tokens == 1


def test_a_tokenizer_much_smaller_than_the_model_is_said(tmp_path: Path, data_file: Path) -> None:
    import dataclasses

    loaded = dataclasses.replace(with_tokenizer("gpt2"), tokenizer=tiny_tokenizer())
    said: list[Any] = []
    analyze(loaded, run_spec(data_file), said.append)
    assert any(
        isinstance(event, Note) and "has 300 tokens, and its model an embedding of 700" in event.text for event in said
    )


def test_a_sequence_with_nothing_to_score_has_no_scored_tokens() -> None:
    assert TokenSequence((5,), 0, False).scored_tokens == 0
    assert TokenSequence((), 0, False).scored_tokens == 0
