"""Checks of a model's files before they are opened: their kinds, their sizes, and the numbers in the config.

Models come from strangers. Reading a pipe could wait without end, parsing a config of 500 MB takes gigabytes, and building
a config of a thousand million layers exhausts memory. Each is refused by name before it is opened or built.
"""

from __future__ import annotations

import fnmatch
import json
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cwa_engine.base.errors import ModelBroken
from cwa_engine.base.plain import JsonMap

# The largest files of models in use: an index of 9 MB (DeepSeek-V3), tokenizers of 34 MB (Gemma 3), configs of 2 MB.
_MOST_BYTES = {
    "*.index.json": 64 * 2**20,
    "tokenizer.json": 128 * 2**20,
    "tekken.json": 128 * 2**20,
    "vocab.json": 128 * 2**20,
    "*.json": 16 * 2**20,
    "*.model": 128 * 2**20,
    "*.tiktoken": 128 * 2**20,
    "*.txt": 128 * 2**20,
    "*.jinja": 16 * 2**20,
}
_TEMPLATES = "additional_chat_templates"  # the only subfolder of a model that is read
_HINT = "download or save the model again"

# Config fields that count things which are built one by one, and the most that any model may have.
_COUNTS = (
    (re.compile(r"(\w+_)?(layers|layer|blocks|block_count)$"), 2_000),
    (re.compile(r"(\w+_)?(experts|labels|heads|codebooks|streams)$"), 100_000),
)


def check_files(folder: Path) -> None:
    """Raises ModelBroken for pipes and the like in a model's folder, and for files larger than any such file of a model."""
    for path in _entries(folder):
        try:
            found = path.stat()
        except FileNotFoundError:  # a dangling link: code that needs the file reports it
            continue
        if stat.S_ISREG(found.st_mode):
            _check_size(path, found.st_size)
        elif not stat.S_ISDIR(found.st_mode):
            raise ModelBroken(  # reading it could wait without end
                f"{path} is a pipe, a socket or a device, not a file",
                hint="put the file there, or remove it from the folder",
            )


def read_json(path: Path) -> JsonMap:
    """The object in a JSON file. Raises ModelBroken if the file is too large or is not a JSON object; FileNotFoundError."""
    _check_size(path, path.stat().st_size)
    try:
        found = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ModelBroken(f"{path} is not JSON: {error}", hint=_HINT) from error
    except RecursionError as error:
        raise ModelBroken(f"{path} is nested too deeply to be read", hint=_HINT) from error
    if not isinstance(found, dict):
        raise ModelBroken(f"{path} is not a JSON object", hint=_HINT)
    return found


def check_counts(config: Mapping[str, Any], where: Path, tensors: int | None = None) -> None:
    """Raises ModelBroken for a config with more layers than any model has, or than the files' `tensors` can fill."""
    for key, value in _numbers(config):
        for pattern, most in _COUNTS:
            if pattern.fullmatch(key) and value > most:
                raise ModelBroken(f"{where} says {key} = {value:,}, and no model has more than {most:,}", hint=_HINT)
        if tensors is not None and _COUNTS[0][0].fullmatch(key) and value > 4 * tensors + 64:
            raise ModelBroken(
                f"{where} says {key} = {value:,}, and the weights files hold {tensors:,} tensors", hint=_HINT
            )


def _numbers(config: Any) -> Iterator[tuple[str, int]]:
    """(key, number) of every whole number in a config and in the configs nested in it."""
    waiting = [config]
    while waiting:
        for key, value in waiting.pop().items():
            if isinstance(value, dict):
                waiting.append(value)
            elif isinstance(value, int):
                yield str(key), value


def _entries(folder: Path) -> Iterator[Path]:
    yield from sorted(folder.iterdir())
    if (folder / _TEMPLATES).is_dir():
        yield from sorted((folder / _TEMPLATES).iterdir())


def _check_size(path: Path, size: int) -> None:
    most = next((most for pattern, most in _MOST_BYTES.items() if fnmatch.fnmatchcase(path.name, pattern)), None)
    if most is not None and size > most:
        raise ModelBroken(
            f"{path} has {size / 1e6:,.0f} MB, and no such file of a model has more than {most / 1e6:,.0f}", hint=_HINT
        )
