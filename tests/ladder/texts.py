"""The ladder's texts: what its models were trained on, and what was held out. torch-free."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

CONTEXT = 128  # tokens of a sequence, and the most that a model takes
END = 256  # the token before each document; tokens below it are bytes
CODE = ("argparse", "difflib", "doctest", "tarfile")  # modules whose source is another kind of text


def topics() -> list[str]:
    """Python's documentation topics, in the order of their names."""
    from pydoc_data.topics import topics as texts

    return [texts[name] for name in sorted(texts)]


def code() -> list[str]:
    """Source code of the standard library."""
    return [Path(str(importlib.import_module(name).__file__)).read_text("utf-8") for name in CODE]


def split(documents: list[str]) -> tuple[list[int], list[int]]:
    """Tokens to train on, and the held-out last tenth. Each document is its UTF-8 bytes after `END`."""
    tokens = [token for text in documents for token in (END, *text.encode())]
    held_out = len(tokens) // 10
    return tokens[:-held_out], tokens[-held_out:]


def held_out_text(documents: list[str]) -> str:
    """The held-out tenth as text."""
    _, tokens = split(documents)
    return bytes(token for token in tokens if token != END).decode(errors="ignore")


def write_texts(path: Path, count: int, documents: list[str] | None = None) -> Path:
    """A JSON Lines file of held-out texts, of the topics if nothing else is given, each as long as a model reads."""
    text = held_out_text(topics() if documents is None else documents)
    pieces = [text[start : start + CONTEXT] for start in range(0, count * CONTEXT, CONTEXT)]
    path.write_text("".join(json.dumps({"text": piece}) + "\n" for piece in pieces))
    return path
