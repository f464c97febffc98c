"""Files of texts in every format: what comes out is what went in, and what is not plain is said or refused."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import pickle
import socket
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cwa_engine.base.errors import DataError
from cwa_engine.base.events import Event, Note
from cwa_engine.data import textfile
from cwa_engine.data.corpus import load_texts

TEXTS = ["The harbour was quiet.", 'Two\nlines, and "quotes".', "Ünïcode: 水 and 🙂", "; , \t |"]


def read(path: Path, limit: int | None = None, column: str | None = None) -> list[str]:
    return [text.content for text in load_texts(path, limit, column=column)]


def said(path: Path, column: str | None = None) -> list[str]:
    """What a reader hears of how a file was read."""
    notes: list[Event] = []
    load_texts(path, column=column, emit=notes.append)
    return [note.text for note in notes if isinstance(note, Note)]


def refusal(path: Path, column: str | None = None) -> str:
    """Message and hint of the error that a file is refused with."""
    with pytest.raises(DataError) as raised:
        load_texts(path, column=column)
    assert raised.value.hint
    return f"{raised.value.message}; {raised.value.hint}"


def written(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def as_csv(rows: list[list[str]], **dialect: Any) -> str:
    file = io.StringIO()
    csv.writer(file, **dialect).writerows(rows)
    return file.getvalue()


def objects(texts: list[str]) -> list[dict[str, Any]]:
    return [{"id": number, "text": text} for number, text in enumerate(texts)]


# each format gives back what was written


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", json.dumps(TEXTS)),
        ("a.json", json.dumps(objects(TEXTS), indent=2)),
        ("a.json", json.dumps({"version": 1, "data": objects(TEXTS)})),
        ("a.json", json.dumps({"paragraphs": TEXTS, "title": "four texts", "count": 4})),
        ("a.json", json.dumps({"text": TEXTS, "title": ["a", "b", "c", "d"]})),
        ("a.json", "\n".join(json.dumps(row) for row in objects(TEXTS))),
        ("a.json", "\n".join(json.dumps(row, indent=1) for row in objects(TEXTS))),
        ("a.jsonl", "\n".join(json.dumps(row) for row in objects(TEXTS))),
        ("a.ndjson", "\n".join(json.dumps(text) for text in TEXTS)),
        ("a.jsonl", "\n".join(json.dumps({"Text": text, "score": float("nan")}) for text in TEXTS)),
        ("a.csv", as_csv([["id", "text"], *(["1", text] for text in TEXTS)])),
        ("a.csv", as_csv([["id", "text"], *(["1", text] for text in TEXTS)], delimiter=";")),
        ("a.tsv", as_csv([["id", "text"], *(["1", text] for text in TEXTS)], delimiter="\t")),
        ("a.csv", as_csv([["text"], *([text] for text in TEXTS)])),
        ("A.JSONL", "\n".join(json.dumps(row) for row in objects(TEXTS))),
    ],
)
def test_json_and_tables_of_text_give_the_texts_that_were_written(tmp_path: Path, name: str, content: str) -> None:
    assert read(written(tmp_path / name, content)) == TEXTS


@pytest.mark.parametrize("kind", ["parquet", "arrow", "stream", "feather"])
@pytest.mark.parametrize("type_name", ["string", "large_string", "string_view", "dictionary"])
def test_parquet_and_arrow_files_give_the_texts_that_were_written(tmp_path: Path, kind: str, type_name: str) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import feather, parquet

    texts = pyarrow.array([*TEXTS, None])
    texts = texts.dictionary_encode() if type_name == "dictionary" else texts.cast(getattr(pyarrow, type_name)())
    table = pyarrow.table({"id": range(5), "text": texts})
    path = tmp_path / ("a.arrow" if kind == "stream" else f"a.{kind}")
    if kind == "parquet":
        parquet.write_table(table, path, row_group_size=2)
    elif kind == "feather":
        feather.write_feather(table, path)
    else:
        new = pyarrow.ipc.new_stream if kind == "stream" else pyarrow.ipc.new_file
        with new(path, table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
    assert read(path) == TEXTS
    assert read(path, limit=3) == TEXTS[:3]
    assert said(path) == [f"1 of 5 rows of {path.name} have no text and were left out"]
    assert "has no column 'txt', but: id, text; did you mean 'text'?" in refusal(path, "txt")
    assert "column 'id' of" in refusal(path, "id")


@given(
    texts=st.lists(st.text(min_size=1).filter(str.strip).filter(lambda t: "\0" not in t and "\r" not in t), min_size=1),
    delimiter=st.sampled_from(",;\t|"),
    end=st.sampled_from(["\n", "\r\n"]),
)
def test_a_csv_file_that_another_program_wrote_is_read(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], delimiter: str, end: str
) -> None:
    pandas = pytest.importorskip("pandas")
    path = tmp_path_factory.mktemp("data") / "a.csv"
    pandas.DataFrame({"n": range(len(texts)), "text": texts}).to_csv(
        path, sep=delimiter, lineterminator=end, index=False
    )
    assert read(path) == texts


@given(
    texts=st.lists(st.text(min_size=1).filter(str.strip), min_size=1, max_size=5),
    indent=st.sampled_from([None, 1]),
    plain=st.booleans(),
    pieces=st.integers(1, 40),
)
def test_a_json_array_is_read_whatever_pieces_it_comes_in(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], indent: int | None, plain: bool, pieces: int
) -> None:
    items: list[Any] = texts if plain else [{"n": [number, -1.5e3], "text": text} for number, text in enumerate(texts)]
    path = tmp_path_factory.mktemp("data") / "a.json"
    path.write_text(json.dumps(items, indent=indent, ensure_ascii=False), "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(textfile, "PIECE_BYTES", pieces)
        assert read(path) == texts


# compression, encodings and line ends


def zstd(content: bytes) -> bytes:
    return bytes(pytest.importorskip("pyarrow").compress(content, codec="zstd", asbytes=True))


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress, zstd])
@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_compression_is_told_by_content_and_not_by_name(
    tmp_path: Path, pack: Callable[[bytes], bytes], name: str
) -> None:
    lines = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode()
    assert read(written(tmp_path / name, pack(lines[:30]) + pack(lines[30:]))) == TEXTS
    assert read(written(tmp_path / name, lines)) == TEXTS
    cut = pack(os.urandom(2000).hex().encode())[:-9]
    assert "cannot be read" in refusal(written(tmp_path / name, cut))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.json", "a.py"])
def test_a_byte_order_mark_tells_the_encoding(tmp_path: Path, encoding: str, name: str) -> None:
    content = {"a.csv": as_csv([["text"], ["水 and 🙂"]]), "a.json": json.dumps(["水 and 🙂"], ensure_ascii=False)}
    path = written(tmp_path / name, content.get(name, "水 and 🙂").encode(encoding))
    assert read(path) == ["水 and 🙂"]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("pieces", [1, 2, 3, 2**16])
def test_line_ends_of_every_system_are_the_same(
    tmp_path: Path, end: str, pieces: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(textfile, "PIECE_BYTES", pieces)
    passages = "one\ntwo\n\n \t \n\nthree é".replace("\n", end)
    assert read(written(tmp_path / "a.txt", passages)) == ["one\ntwo", "three é"]
    assert read(written(tmp_path / "a.csv", 'text,n\n"a\nb",1\n\nc,2\n'.replace("\n", end))) == ["a\nb", "c"]
    assert read(written(tmp_path / "a.jsonl", '{"text": "a\\r\\nb"}\n\n"c"\n'.replace("\n", end))) == ["a\r\nb", "c"]


def test_what_is_no_unicode_is_named_by_line_and_byte(tmp_path: Path) -> None:
    assert "is not UTF-8: line 3, byte 16 of the file (0xe9)" in refusal(
        written(tmp_path / "a.txt", b"one\r\ntwo\r\ncaf\xc3\xa9\xe9x")
    )
    assert "is not UTF-8: line 2, byte 6 of the file (0xe6)" in refusal(written(tmp_path / "a.txt", b"cut\n \xe6\xb0"))
    late = b"x" * 70_000 + b"\n" + b"y" * 70_000 + b"\xff"
    assert "line 2, byte 140,002 of the file (0xff)" in refusal(written(tmp_path / "a.txt", late))
    assert "is not UTF-16: line 2" in refusal(written(tmp_path / "a.txt", "a\nb".encode("utf-16") + b"\x00\xd8"))
    assert "is binary: there is a NUL in line 2" in refusal(written(tmp_path / "a.txt", b"one\ntwo\0\n"))
    assert "iconv -f UTF-16LE" in refusal(written(tmp_path / "a.txt", "caf\xe9 noir".encode("utf-16-le")))
    assert "iconv -f UTF-16BE" in refusal(written(tmp_path / "a.csv", "caf\xe9 noir".encode("utf-16-be")))


# which column, which cells


def test_the_column_of_texts_is_the_usual_one_or_the_one_asked_for_and_that_is_said(tmp_path: Path) -> None:
    rows = [{"id": 1, "title": "t", "article": "one", "sentence": "two"}]
    path = written(tmp_path / "a.json", json.dumps(rows))
    assert read(path) == ["two"]
    assert said(path) == ["the texts of a.json are read from 'sentence'"]
    assert read(path, column="title") == ["t"]
    assert said(path, "title") == []
    wrong = "titel"  # codespell:ignore titel
    assert f"has no column '{wrong}', but: id, title, article, sentence; did you mean 'title'?" in refusal(path, wrong)
    only = written(tmp_path / "a.jsonl", '{"n": 1, "review": "good", "tags": ["a"]}')
    assert read(only) == ["good"] and said(only) == ["the texts of a.jsonl are read from 'review'"]
    assert "but: a, b" in refusal(written(tmp_path / "a.jsonl", '{"a": "x", "b": "y"}'))
    assert "which has no columns" in refusal(written(tmp_path / "a.txt", "x y"), "text")


def test_an_object_with_a_text_is_one_text_whatever_lists_it_has_beside_it(tmp_path: Path) -> None:
    assert read(written(tmp_path / "a.json", '{"text": "the text", "tags": ["not", "these"]}')) == ["the text"]
    listed = written(tmp_path / "a.json", '{"title": "x", "items": [{"body": "one"}, {"body": "two"}]}')
    assert read(listed) == ["one", "two"]
    assert said(listed) == ["the texts of a.json are the items of 'items'", "the texts of a.json are read from 'body'"]
    two = written(tmp_path / "a.json", '{"train": ["a"], "test": ["b"]}')
    assert "but: train, test" in refusal(two)
    assert read(two, column="test") == ["b"]
    split = written(tmp_path / "a.json", '{"columns": ["text"], "index": [0, 1], "data": [["one"], ["two"]]}')
    assert "but: columns, index, data" in refusal(split)  # as pandas writes a frame with orient="split"


def test_cells_without_a_text_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = [{"text": "one"}, {"text": None}, {"text": " \t"}, {"text": float("nan")}, {"text": "two"}]
    for name, content in {
        "a.json": json.dumps(rows),
        "a.jsonl": "\n".join(map(json.dumps, rows)),
        "a.csv": "text,n\none,1\n,2\n \t,3\n,4\ntwo,5\n",
    }.items():
        assert read(written(tmp_path / name, content)) == ["one", "two"]
        assert said(tmp_path / name) == [f"3 of 5 rows of {name} have no text and were left out"]
    assert "holds no text" in refusal(written(tmp_path / "a.csv", "text,n\n,2\n"))
    assert read(written(tmp_path / "a.jsonl", '{"text": null, "n": 1}\n{"text": "one"}')) == ["one"]


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("a.jsonl", '{"text": "x"}\n{"text": 7}', "'text' in line 2 of a.jsonl holds the number 7, not a text"),
        ("a.jsonl", '{"messages": [{"role": "user"}]}', "a.jsonl has no column of strings, but: messages"),
        ("a.jsonl", '{"text": ["x", "y"]}', "'text' in line 1 of a.jsonl holds a list"),
        ("a.json", '[{"text": {"en": "x"}}]', "'text' in item 1 of a.json holds an object"),
        ("a.json", '[["x", "y"], ["z"]]', "item 1 of a.json holds a list"),
        ("a.json", '["x", 7]', "item 2 of a.json holds the number 7"),
        ("a.json", '{"text": {"0": "x", "1": "y"}}', "'text' in item 1 of a.json holds an object"),
        ("a.json", "true", "item 1 of a.json holds true"),
        ("a.jsonl", '{"text": "x", "text": "y"}', "line 1 of a.jsonl is not JSON: an object has the key 'text' twice"),
        ("a.json", '[{"text": "x"},\n {"a": {"b": 1, "b": 2}}]', "line 2: an object has the key 'b' twice"),
        ("a.json", '["x",]', "is not valid JSON: line 1: Expecting value"),
        ("a.json", '["x"\n "y"]', "line 2: Expecting ','"),
        ("a.json", '["x"] ["y"]', "line 1: something follows after the array"),
        ("a.json", '["x", "y', "line 1: Unterminated string"),
        ("a.json", '["x"', "line 1: Expecting ','"),
        ("a.json", "[" * 100_000, "nested too deep"),
        ("a.json", '[{"text": "cut emoji \\ud83d"}]', "is not valid Unicode"),
        ("a.json", "[]", "holds no text"),
        ("a.json", "", "holds no text"),
        ("a.jsonl", '[\n  {"text": "x"}\n]', "rename it to .json"),
        ("a.jsonl", '["x", "y"]', "line 1 of a.jsonl holds a list"),
        ("a.csv", "", "holds no text"),
        ("a.csv", "The harbour was quiet.\nThe boats lay still.\n", "the first line names the columns"),
        ("a.csv", "id,review\n1,good\n", "but: id, review"),
        ("a.csv", "text,text\n1,2\n", "has the column 'text' 2 times"),
        ("a.csv", "text\nHello, world\n", "line 2 of a.csv has 2 cells, its line of names has 1"),
        ("a.csv", 'id,text\n1,"a\nb"\n2\n', "line 4 of a.csv has 1 cells"),
        ("a.csv", 'id,text\n1,"a\nb\n', "cannot be read: unexpected end of data"),
        ("a.csv", 'id,text\n1,"a" b\n', "line 2 of a.csv cannot be read"),
        ("a.parquet", "text\nno parquet\n", "is damaged after row 0"),
        ("a.parquet", b"PAR1 and nothing more", "is damaged after row 0"),
        ("a.arrow", b"ARROW1 and nothing more", "is damaged after row 0"),
    ],
)
def test_a_table_that_cannot_be_meant_is_refused_with_the_place(
    tmp_path: Path, name: str, content: bytes | str, why: str
) -> None:
    assert why in refusal(written(tmp_path / name, content))


# names that do not tell, and names that tell something else


@pytest.mark.parametrize(
    ("content", "form", "texts"),
    [
        ('{"text": "one"}\n{"text": "two"}\n', "JSON lines", ["one", "two"]),
        ('[{"text": "one"},\n {"text": "two"}]', "JSON", ["one", "two"]),
        ('{\n "text": "one"\n}\n{\n "text": "two"\n}', "JSON", ["one", "two"]),
        ("id,text\n1,one\n2,two\n", "CSV", ["one", "two"]),
        ("one\n\ntwo\n", "text", ["one", "two"]),
        ("[Chorus]\none\n\n[1] A footnote\n", "text", ["[Chorus]\none", "[1] A footnote"]),
        ("{ braces }\n", "text", ["{ braces }"]),
        ('"One," she said.\n', "text", ['"One," she said.']),
        ("one, two\nthree\n", "text", ["one, two\nthree"]),
    ],
)
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_file_without_an_ending_is_read_as_its_content_says_and_that_is_said(
    tmp_path: Path, content: str, form: str, texts: list[str], pack: Callable[[bytes], bytes]
) -> None:
    path = written(tmp_path / "texts", pack(content.encode()))
    assert read(path) == texts
    assert said(path)[0] == f"texts is read as {form}, by its content"


def test_a_long_line_of_json_is_told_by_its_first_piece(tmp_path: Path) -> None:
    texts = [f"text {number} " + "x" * 5000 for number in range(40)]
    assert read(written(tmp_path / "texts", json.dumps(texts))) == texts
    assert read(written(tmp_path / "texts", json.dumps({"data": texts}))) == texts


@pytest.mark.parametrize(
    ("content", "looks", "advice"),
    [
        ('{"text": "one"}\n{"text": "two"}\n', "JSON lines", ": rename it to .jsonl to read the texts in it"),
        ('["one", "two"]', "JSON", ": rename it to .json to read the texts in it"),
        ("id,text\n1,one\n2,two\n", "CSV", ": rename it to .csv to read the texts in it"),
        ("<doc>\n<p>one</p>\n</doc>\n", "XML or HTML", ""),
    ],
)
def test_a_text_file_that_looks_like_data_is_read_as_text_but_not_without_a_word(
    tmp_path: Path, content: str, looks: str, advice: str
) -> None:
    path = written(tmp_path / "a.txt", content)
    assert read(path) == [content.strip()]
    assert said(path) == [f"a.txt is read as text, but looks like {looks}{advice}"]


def test_prose_is_read_without_a_word(tmp_path: Path) -> None:
    assert said(written(tmp_path / "a.txt", "One, two.\n\nThree, four.\nFive; six.\n")) == []
    assert said(written(tmp_path / "a.txt", "one, two\nthree, four\nfive, six\nseven, eight\nnine, ten\n")) == []
    assert said(written(tmp_path / "a.md", "# Title\n\n- one\n- two\n")) == []
    assert said(written(tmp_path / "a.py", "x = {'a': 1}\n")) == []


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("a.foo", '{"text": "one"}\n{"text": "two"}\n', "looks like JSON lines, and its ending '.foo' is not known"),
        ("a.dat", "1;one\n2;two\n3;three\n4;four\n5;five\n6;six\n", "looks like a table"),
        ("a.xhtml", "<?xml version='1.0'?><p>one</p>", "looks like XML"),
        ("a.xml", "<p>one</p>", "is structured data; write its texts as .jsonl"),
        ("a.yaml", "- one\n- two\n", "is structured data"),
        ("a.ipynb", '{"cells": []}', "is a notebook; `jupyter nbconvert"),
        ("a.xlsx", b"PK\x03\x04", "is a spreadsheet; save the sheet as .csv"),
        ("a.pdf", b"%PDF-1.7", "is a document; save it as plain text"),
        ("a.pkl", pickle.dumps(TEXTS), "is no text; write its texts as .jsonl"),
        ("a.tar.gz", b"x", "is an archive"),
        ("a.safetensors", b"x", "weights are given by --model"),
        ("a.txt", b"%PDF-1.7", "is binary: it looks like a PDF document"),
        ("a.jsonl", pickle.dumps(TEXTS), "is binary: it looks like a pickle"),
        ("texts", b"PK\x03\x04", "is binary: it looks like a zip archive"),
        ("a.txt", b"x" * 257 + b"ustar", "is binary: it looks like a tar archive"),
        ("a.txt", gzip.compress(gzip.compress(b"x", mtime=0), mtime=0), "is binary: it looks like compressed twice"),
        ("a.txt", b"PAR1", "is binary: it looks like Parquet; rename it to .parquet"),
    ],
)  # fmt: skip
def test_data_of_other_formats_is_refused_with_what_to_do(
    tmp_path: Path, name: str, content: bytes | str, why: str
) -> None:
    assert why in refusal(written(tmp_path / name, content))


def test_a_zip_archive_is_refused_even_by_another_name(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.jsonl", "w") as archive:
        archive.writestr("texts.jsonl", '{"text": "one"}')
    assert "is binary: it looks like a zip archive" in refusal(tmp_path / "a.jsonl")


def test_text_of_an_unknown_ending_is_read_as_source_code_and_that_is_said(tmp_path: Path) -> None:
    path = written(tmp_path / "a.foo", "def f():\n    return 1\n\ndef g():\n    return 2\n")
    assert read(path) == ["def f():\n    return 1\n\ndef g():\n    return 2"]
    assert "is not known: it is read as source code" in said(path)[0]


def test_what_needs_a_package_that_is_not_there_says_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = zstd(b"some text")
    for module in ("pyarrow", "pyarrow.parquet", "compression.zstd"):
        monkeypatch.setitem(sys.modules, module, None)
    for name, content in {"a.parquet": b"PAR1", "a.arrow": b"ARROW1", "a.txt.zst": packed}.items():
        why = refusal(written(tmp_path / name, content))
        assert "the package pyarrow is needed" in why and "pip install 'cwtool[eval]'" in why


# what is no file, and no more than is asked for


def test_pipes_sockets_and_devices_are_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "is a pipe, not a file" in refusal(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
        assert "is a socket, not a file" in refusal(tmp_path / "socket")
    assert "is a device, not a file" in refusal(Path("/dev/zero"))


@pytest.mark.parametrize("name", ["a.txt", "a.py", "a.jsonl", "a.json", "a.csv", "a.jsonl.gz"])
def test_no_more_of_a_file_is_read_than_the_first_texts_need(tmp_path: Path, name: str) -> None:
    begin = {"a.json": '["one", "two"', "a.csv": "text\none\ntwo\n"}.get(name, '"one"\n\n"two"\n\n')
    between = {"a.json": ', "more"', "a.csv": "more\n"}.get(name, '"more"\n\n')
    content = (begin + between * 100_000).encode() + b"\xff and no text any more"
    path = written(tmp_path / name, gzip.compress(content) if name.endswith(".gz") else content)
    limit = 1 if name == "a.py" else 2
    assert len(read(path, limit)) == limit
    assert "is not UTF-8" in refusal(path)


def test_a_text_longer_than_any_should_be_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(textfile, "MOST_CHARACTERS", 200_000)
    monkeypatch.setattr(textfile, "PIECE_BYTES", 1000)
    for name, content in {
        "line.txt": "x" * 300_000,
        "passage.txt": "some words\n" * 30_000,
        "a.json": json.dumps(["x" * 300_000]),
        "a.jsonl": json.dumps("x" * 300_000),
        "a.csv": 'text\n"' + "x\n" * 150_000 + '"\n',
    }.items():
        why = refusal(written(tmp_path / name, gzip.compress(content.encode())))
        assert "200,000 characters" in why or "field limit" in why
    monkeypatch.setattr(textfile, "MOST_BYTES", 3000)
    assert "has more than 3,000 bytes" in refusal(written(tmp_path / "a.arrow", gzip.compress(bytes(4000))))
