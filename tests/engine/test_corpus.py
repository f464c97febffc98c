"""Texts: what is read from which file, and how it is split."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cwa_engine.base.errors import DataError
from cwa_engine.data.corpus import Text, data_sha256, load_texts, split
from cwa_engine.data.passages import CODE_CHUNK_CHARACTERS


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


lines = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20).filter(str.strip)
passages = st.lists(lines, min_size=1, max_size=3).map("\n".join)


@given(
    texts=st.lists(passages, min_size=1, max_size=5),
    gap=st.sampled_from(["\n\n", "\n\n\n", "\n \t\n"]),
    newline=st.sampled_from(["\n", "\r\n"]),
    mark=st.sampled_from(["", "\ufeff"]),
)
def test_passages_of_a_text_file_are_read_whatever_editor_wrote_it(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], gap: str, newline: str, mark: str
) -> None:
    path = tmp_path_factory.mktemp("data") / "a.txt"
    path.write_bytes((mark + (gap.join(texts) + "\n").replace("\n", newline)).encode())
    assert contents(path) == texts


@given(texts=st.lists(st.text(min_size=1).filter(str.strip), min_size=1, max_size=5))
def test_texts_of_a_json_lines_file_are_read_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str]
) -> None:
    path = tmp_path_factory.mktemp("data") / "a.jsonl"
    path.write_text("\n".join(json.dumps({"text": text, "other": 1}) for text in texts), "utf-8")
    assert contents(path) == texts


def test_json_lines_with_windows_line_ends_a_mark_and_blank_lines_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes('\ufeff{"text": "one\\ntwo"}\r\n\r\n{"text": "three"}\r\n'.encode())
    assert contents(tmp_path / "a.jsonl") == ["one\ntwo", "three"]


def test_source_code_with_windows_line_ends_is_the_same_source_code(tmp_path: Path) -> None:
    code = "def f():\n    return 1\n\n\ndef g():\n    return 2\n"
    (tmp_path / "unix.py").write_bytes(code.encode())
    (tmp_path / "windows.py").write_bytes(("\ufeff" + code.replace("\n", "\r\n")).encode())
    assert (
        contents(tmp_path / "windows.py") == contents(tmp_path / "unix.py") == [code.replace("\n\n\n", "\n\n").strip()]
    )


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
        ("a.jsonl", b'{"text": " "}\n', "holds no text"),
        ("a.jsonl", b'{"text": "x"}\n\n{"text": "cut emoji \\ud83d"}\n', "line 3"),
        ("a.jsonl", b"[" * 100_000, "line 1"),
        ("a.jsonl", b"\n\n", "holds no text"),
        ("a.py", b"\n", "holds no text"),
        ("a.py", b"\x7fELF\x00", "is binary"),
    ],
)
def test_a_file_that_holds_no_texts_is_refused_with_the_place(
    tmp_path: Path, name: str, content: bytes, why: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=why):
        load_texts(tmp_path / name)


def test_a_folder_is_no_data_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is a folder") as raised:
        load_texts(tmp_path)
    assert f"--dataset {tmp_path}" in raised.value.hint


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist") as raised:
        load_texts(tmp_path / "nowhere" / "a.txt")
    assert raised.value.hint == f"there is no folder {tmp_path / 'nowhere'}"


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


@given(st.integers(2, 50), st.integers(1, 10))
def test_a_text_stays_in_its_half_when_texts_are_added_behind_it(n: int, more: int) -> None:
    before, after = split(range(n)), split(range(n + more))
    assert all(set(few) <= set(many) for few, many in zip(before, after, strict=True))


def test_a_single_text_is_used_for_both() -> None:
    texts = [Text("alone", "")]
    assert split(texts) == (texts, texts)


def test_the_hash_of_texts_knows_their_order_and_their_borders() -> None:
    hashes = [data_sha256([Text(c, "") for c in texts]) for texts in (["ab", "c"], ["a", "bc"], ["c", "ab"], ["abc"])]
    assert len(set(hashes)) == 4


texts_of_any_kind = st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=4)


@given(texts_of_any_kind, texts_of_any_kind)
def test_different_texts_have_different_hashes_and_equal_ones_the_same(one: list[str], other: list[str]) -> None:
    first, second = (data_sha256([Text(content, "") for content in texts]) for texts in (one, other))
    assert (first == second) == (one == other)
