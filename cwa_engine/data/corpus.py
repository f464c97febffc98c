"""Texts: the built-in passages, a user's file or a dataset, in a fixed order, and their split into two halves."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from cwa_engine.base.cancellation import cancellable_steps
from cwa_engine.base.errors import DataError
from cwa_engine.base.events import Emit, Note, ignore
from cwa_engine.data.columns import Tally
from cwa_engine.data.datasets import dataset_texts
from cwa_engine.data.formats import read_texts
from cwa_engine.data.textfile import open_regular

T = TypeVar("T")

BUILTIN = "built-in passages"
IN_MEMORY = "texts in memory"


@dataclass(frozen=True, slots=True)
class Text:
    """One passage; `where` names it in messages: "text 3 of notes.txt"."""

    content: str
    where: str


def load_texts(
    data_file: Path | None,
    limit: int | None = None,
    dataset: str | None = None,
    column: str | None = None,
    name: str | None = None,
    emit: Emit = ignore,
) -> list[Text]:
    """The first `limit` texts of a file, of a dataset, or of the built-in passages. Nothing after them is read.

    `column` is the column of texts of a table or of JSON objects; None means the usual one. `name` is the user's name of
    a file that is a copy. `emit` gets notes: how a file was read if its name does not say so, and what was left out.

    Raises DataError if there is no text; `docs/texts.md` lists the formats.
    """
    if dataset is not None:
        tally = Tally()
        return _numbered(dataset, dataset_texts(dataset, column, emit, tally), limit, emit, tally)
    if data_file is None:
        passages = io.BytesIO((files(__package__) / "passages.txt").read_bytes())
        return _numbered(BUILTIN, read_texts(io.BufferedReader(passages), "passages.txt"), limit)
    with _opened(data_file, name) as file:
        return file_texts(file, name or data_file.name, limit, column, emit)


def file_texts(
    file: io.BufferedReader[Any], name: str, limit: int | None, column: str | None = None, emit: Emit = ignore
) -> list[Text]:
    """The first `limit` texts of an open file; `name` tells its format. Raises DataError."""
    tally = Tally()
    return _numbered(name, read_texts(file, name, column, emit, tally), limit, emit, tally)


def given_texts(contents: Sequence[str], limit: int | None = None, emit: Emit = ignore) -> list[Text]:
    """The first `limit` of the texts that a program holds, as they are; blank ones are left out, and said.

    Raises DataError where there is none, or one that is no text.
    """
    tally = Tally()
    return _numbered(IN_MEMORY, _checked(contents, tally), limit, emit, tally)


def path_of_given(contents: Sequence[str]) -> Path:
    """What stands for such texts in a spec: a path named by their content, at which no file is.

    So a spec with other texts is another one, and who runs it again without them is told that they are missing. Raises
    DataError for what is no list of texts.
    """
    texts = [Text(content, "") for content in _checked(contents, Tally())]
    return Path(f"/{IN_MEMORY}/{data_sha256(texts)}.txt")


def _checked(contents: Sequence[str], tally: Tally) -> Iterator[str]:
    if isinstance(contents, str) or not isinstance(contents, Sequence):
        raise DataError("texts are no list of texts", hint='give a list, also of one: texts=["..."]')
    for number, content in enumerate(contents, start=1):
        if not isinstance(content, str):
            raise DataError(f"text {number} of {IN_MEMORY} is a {type(content).__name__}", hint="give texts as str")
        try:
            content.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"text {number} of {IN_MEMORY} is not Unicode: {error}", hint="mend its encoding"
            ) from error
        tally.rows += 1
        if content.strip():
            yield content
        else:
            tally.empty += 1


def _numbered(
    source: str, contents: Iterable[str], limit: int | None, emit: Emit = ignore, tally: Tally | None = None
) -> list[Text]:
    numbered = enumerate(islice(cancellable_steps(contents), limit), start=1)
    texts = [Text(content, f"text {number} of {source}") for number, content in numbered]
    if tally and tally.empty:
        emit(Note(f"{tally.empty} of {tally.rows} rows of {source} have no text and were left out", "warning"))
    if not texts:
        raise DataError(f"{source} holds no text", hint="give texts as .txt (blank lines between), .jsonl, .csv ...")
    return texts


def _opened(path: Path, name: str | None) -> io.BufferedReader[Any]:
    try:
        return open_regular(path)
    except DataError as error:
        if name is None:
            raise
        hint = "a copy is deleted when no run or job uses it any more; give the texts again"
        raise DataError(f"the copy of {name} cannot be read: {error.message}", hint=hint) from error


def distinct(texts: Sequence[Text]) -> list[Text]:
    """The texts without repetitions, so that no text is in both halves of a split."""
    return list({text.content.strip(): text for text in reversed(texts)}.values())[::-1]


def split(texts: Sequence[T]) -> tuple[list[T], list[T]]:
    """(scoring, evaluation): every second text goes to each half, so that both have every kind of text.

    A single text goes to both halves; the caller must tell the user.
    """
    if len(texts) < 2:
        return list(texts), list(texts)
    return list(texts[0::2]), list(texts[1::2])


def overlap(first: Sequence[Text], second: Sequence[Text]) -> int:
    """How many texts of one half equal a text of the other, without leading and trailing blanks."""
    sides = [{hashlib.sha256(text.content.strip().encode()).digest() for text in side} for side in (first, second)]
    return len(sides[0] & sides[1])


def data_sha256(texts: Sequence[Text]) -> str:
    """Hash of all texts in order, each closed by a byte that no UTF-8 text contains."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.content.encode() + b"\xff")
    return digest.hexdigest()
