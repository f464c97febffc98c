"""Texts: the built-in passages or a user's file, in a stable order, and their split into scoring and evaluation."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TypeVar

from cwa_engine.data.datasets import dataset_texts
from cwa_engine.errors import DataError, did_you_mean

T = TypeVar("T")

CODE_CHUNK_CHARACTERS = 1500  # about 400 tokens: one sequence of source code
BUILTIN = "built-in passages"


@dataclass(frozen=True, slots=True)
class Text:
    """One passage; `where` names it in messages: "text 3 of notes.txt"."""

    content: str
    where: str


def load_texts(data_file: Path | None, limit: int | None = None, dataset: str | None = None) -> list[Text]:
    """The first `limit` texts of a file, of a dataset, or of the built-in passages.

    `.txt` holds passages separated by blank lines, `.jsonl` a JSON object with a field `text` in each line; any other
    file is read as source code, in chunks of whole paragraphs. Raises DataError for what holds no text.
    """
    if dataset is not None:
        source, contents = dataset, dataset_texts(dataset, limit)
    elif data_file is None:
        source, contents = BUILTIN, _paragraphs((files(__package__) / "passages.txt").read_text("utf-8"))
    else:
        source, contents = data_file.name, _contents(data_file)
    if not contents:
        raise DataError(f"{source} holds no text", hint=_FORMAT_HINT)
    return [Text(content, f"text {number} of {source}") for number, content in enumerate(contents[:limit], start=1)]


def distinct(texts: Sequence[Text]) -> list[Text]:
    """The texts without those that occurred before, so that no text can be on both sides of a split."""
    return list({text.content.strip(): text for text in reversed(texts)}.values())[::-1]


def split(texts: Sequence[T]) -> tuple[list[T], list[T]]:
    """Scoring and evaluation halves: every second text to each, so that both see every kind of text.

    A single text is used for both, which the caller must say.
    """
    if len(texts) < 2:
        return list(texts), list(texts)
    return list(texts[0::2]), list(texts[1::2])


def overlap(first: Sequence[Text], second: Sequence[Text]) -> int:
    """How many texts of one side have the hash of a text of the other, blank margins left aside."""
    sides = [{hashlib.sha256(text.content.strip().encode()).digest() for text in side} for side in (first, second)]
    return len(sides[0] & sides[1])


def data_sha256(texts: Sequence[Text]) -> str:
    """Hash of all texts in order, each closed by a byte that no UTF-8 text contains."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.content.encode() + b"\xff")
    return digest.hexdigest()


_FORMAT_HINT = 'use .txt (passages separated by blank lines), .jsonl (field "text") or source code, as UTF-8'


def _contents(path: Path) -> list[str]:
    raw = _read(path)
    match path.suffix.lower():
        case ".txt" | ".md" | "":
            return _paragraphs(raw)
        case ".jsonl" | ".ndjson":
            return _json_lines(path, raw)
        case _:
            return _code_chunks(raw)


def _read(path: Path) -> str:
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"data file {path} does not exist", hint=_near_file_hint(path)) from None
    except OSError as error:
        raise DataError(f"data file {path} cannot be read: {error.strerror}", hint=_FORMAT_HINT) from error
    if b"\0" in raw:
        raise DataError(f"data file {path} is binary", hint=_FORMAT_HINT)
    try:
        return raw.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(f"data file {path} is not UTF-8: line {line}", hint="convert it with iconv -t UTF-8") from error


def _near_file_hint(path: Path) -> str:
    if not path.parent.is_dir():
        return f"there is no folder {path.parent}"
    return did_you_mean(path.name, [entry.name for entry in path.parent.iterdir()]) or "check the path"


def _paragraphs(text: str) -> list[str]:
    paragraphs: list[list[str]] = [[]]
    for line in text.split("\n"):
        if line.strip():
            paragraphs[-1].append(line)
        elif paragraphs[-1]:
            paragraphs.append([])
    return ["\n".join(lines) for lines in paragraphs if lines]


def _json_lines(path: Path, raw: str) -> list[str]:
    contents = []
    for number, line in enumerate(raw.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            content = json.loads(line)["text"]
            usable = isinstance(content, str) and content.strip() and content.encode()
        except (ValueError, KeyError, TypeError, RecursionError):  # ValueError: also half of a surrogate pair
            usable = False
        if not usable:
            raise DataError(
                f"line {number} of {path} is no JSON object with a text",
                hint='each line looks like {"text": "..."}, in valid Unicode',
            )
        contents.append(content)
    return contents


def _code_chunks(text: str) -> list[str]:
    chunks: list[str] = []
    for paragraph in _paragraphs(text):
        if chunks and len(chunks[-1]) + len(paragraph) < CODE_CHUNK_CHARACTERS:
            chunks[-1] += "\n\n" + paragraph
        else:
            chunks.append(paragraph)
    return chunks
