"""Texts: what is read from which file, and how it is split."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cwa_engine.data.corpus import CODE_CHUNK_CHARACTERS, Text, data_sha256, load_texts, split
from cwa_engine.data.tokens import batched, tokenize
from cwa_engine.errors import DataError
from tests.models import tiny_tokenizer


def contents(path: Path, limit: int | None = None) -> list[str]:
    return [text.content for text in load_texts(path, limit)]


def test_the_built_in_passages_are_many_different_and_of_60_to_200_words() -> None:
    passages = [text.content for text in load_texts(None)]
    assert len(passages) >= 128
    assert len(set(passages)) == len(passages)
    assert {p[:50] for p in passages if not 60 <= len(p.split()) <= 200} == set()


def test_passages_of_a_text_file_stand_between_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\ufefffirst\r\nline two\r\n\r\n \r\n\r\nsecond\n\nthird".encode())
    assert contents(path) == ["first\nline two", "second", "third"]
    assert contents(path, limit=2) == ["first\nline two", "second"]
    assert load_texts(path)[1].where == "text 2 of a.txt"


@given(texts=st.lists(st.text(min_size=1).filter(str.strip), min_size=1, max_size=5))
def test_texts_of_a_json_lines_file_are_read_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str]
) -> None:
    path = tmp_path_factory.mktemp("data") / "a.jsonl"
    path.write_text("\n".join(json.dumps({"text": text, "other": 1}) for text in texts), "utf-8")
    assert contents(path) == texts


def test_source_code_becomes_chunks_of_whole_paragraphs_and_nothing_is_lost(tmp_path: Path) -> None:
    functions = [f"def f{i}():\n    return {i}" for i in range(200)]
    path = tmp_path / "code.py"
    path.write_text("\n\n".join(functions))
    chunks = contents(path)
    assert len(chunks) > 1
    assert all(len(chunk) <= CODE_CHUNK_CHARACTERS + 2 for chunk in chunks)
    assert "\n\n".join(chunks).split("\n\n") == functions


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("a.txt", b"", "holds no text"),
        ("a.txt", b" \n\n \n", "holds no text"),
        ("a.txt", b"\x00\x01", "is binary"),
        ("a.txt", b"fine\nb\xe9d\n", "not UTF-8: line 2"),
        ("a.jsonl", b'{"text": "x"}\nnot json\n', "line 2"),
        ("a.jsonl", b'{"text": 7}\n', "line 1"),
        ("a.jsonl", b"[1]\n", "line 1"),
    ],
)
def test_a_file_that_holds_no_texts_is_refused_with_the_place(
    tmp_path: Path, name: str, content: bytes, why: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=why):
        load_texts(tmp_path / name)


def test_a_missing_file_is_named_with_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "samples.txt").touch()
    with pytest.raises(DataError) as raised:
        load_texts(tmp_path / "sample.txt")
    assert "did you mean 'samples.txt'" in raised.value.hint


@given(st.integers(2, 50))
def test_the_halves_are_disjoint_complete_and_of_equal_size(n: int) -> None:
    texts = [Text(str(i), "") for i in range(n)]
    scoring, evaluation = split(texts)
    assert sorted(scoring + evaluation, key=lambda t: int(t.content)) == texts
    assert 0 <= len(scoring) - len(evaluation) <= 1


def test_a_single_text_is_used_for_both() -> None:
    texts = [Text("alone", "")]
    assert split(texts) == (texts, texts)


def test_the_hash_of_texts_knows_their_order_and_their_borders() -> None:
    hashes = [data_sha256([Text(c, "") for c in texts]) for texts in (["ab", "c"], ["a", "bc"], ["c", "ab"], ["abc"])]
    assert len(set(hashes)) == 4


def test_a_text_of_one_token_is_refused_by_name() -> None:
    with pytest.raises(DataError, match="text 2 of x has 1 token"):
        tokenize(tiny_tokenizer(), [Text("fine", "text 1 of x"), Text("a", "text 2 of x")], 512)


def test_a_long_text_is_cut_and_counted_by_the_bytes_it_keeps() -> None:
    long, short = tokenize(tiny_tokenizer(), [Text("é" * 50, ""), Text("xy", "")], 10)
    assert (len(long.ids), long.truncated, short.truncated) == (10, True, False)
    assert long.utf8_bytes <= 20
    assert short.utf8_bytes == 2
    assert [len(batch) for batch in batched([long, short, short], 2)] == [2, 1]
