"""Texts of plain files: passages between blank lines, and source code in chunks of whole paragraphs."""

from __future__ import annotations

from collections.abc import Iterator

from cwa_engine.data.textfile import TextFile, check_length, text_lines

CODE_CHUNK_CHARACTERS = 1500  # about 400 tokens: one sequence of source code


def passages(file: TextFile) -> Iterator[str]:
    """The passages between blank lines. A line of spaces counts as blank."""
    passage: list[str] = []
    length = 0
    for line in text_lines(file):
        if line.strip():
            passage.append(line)
            length += len(line)
            check_length(length, file.name)
        elif passage:
            yield "\n".join(passage)
            passage, length = [], 0
    if passage:
        yield "\n".join(passage)


def code_chunks(file: TextFile) -> Iterator[str]:
    """Paragraphs, joined while they are short: a chunk is about one function, or a few."""
    chunk = ""
    for paragraph in passages(file):
        if chunk and len(chunk) + len(paragraph) < CODE_CHUNK_CHARACTERS:
            chunk += "\n\n" + paragraph
            continue
        if chunk:
            yield chunk
        chunk = paragraph
    if chunk:
        yield chunk
