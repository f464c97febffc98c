"""The value of an option's field from what is typed for it: on a command line, in a form or in a file. torch-free."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cwa_engine.base.errors import InvalidInput
from cwa_engine.base.files import user_path
from cwa_engine.hub.sources import absolute_name
from cwa_engine.options import Kind, OptionField

STANDARD_INPUT = "-"  # as typed on a command line
STDIN = Path("/dev/stdin")
ReadName = Callable[[str], str]
_LONGEST_PATH = 4096


def typed_value(
    entry: OptionField, given: Sequence[str], base: Path | None = None, read_model: ReadName = absolute_name
) -> Any:
    """The value for the texts typed after an option. Raises InvalidInput, naming the option.

    Relative paths start at `base`, if not at the working folder. `read_model` makes a model's name one that means the same
    to whoever loads it.
    """
    if entry.field == "model":
        return read_model(_model_at(base, given[0]))
    if entry.field == "data_file":
        return _texts(entry, given[0], base)
    if entry.field == "dataset":
        from cwa_engine.data.datasets import absolute_dataset  # few runs need this import

        return absolute_dataset(given[0])
    if entry.field == "weights":
        return _weights(entry, given, base)
    if entry.several:
        return tuple(_number(entry, text) if entry.kind is not Kind.TEXT else text for text in parts(given))
    (text,) = given
    if entry.kind is Kind.PATH:
        return user_path(_at(base, text), entry.flag)
    return text if entry.kind is Kind.TEXT else _number(entry, text)


def parts(given: Sequence[str]) -> list[str]:
    """All values of an option that takes several, commas taken as separators."""
    return [text for entry in given for text in entry.split(",") if text]


def _number(entry: OptionField, text: str) -> Any:
    if text in entry.option.words:
        return entry.option.words[text]
    try:
        return int(text.replace("_", "")) if entry.kind is Kind.NUMBER else float(text)
    except ValueError:
        words = " or ".join(["a number", *entry.option.words])
        what = "no whole number" if entry.kind is Kind.NUMBER else "no number"
        raise InvalidInput(f"{entry.flag} {text} is {what}", hint=f"give {words}") from None


def _at(base: Path | None, path: str) -> str:
    """A relative path from `base` on; empty ones and those in a home folder stay as they are."""
    return str(base / path) if base and path.strip() and not path.startswith("~") else path


def _model_at(base: Path | None, name: str) -> str:
    """A folder or file of models beside a file that names it; every other name as it is."""
    path = _at(base, name)
    return path if name.startswith(".") or (base and len(path) < _LONGEST_PATH and Path(path).exists()) else name


def _texts(entry: OptionField, given: str, base: Path | None) -> Path:
    return STDIN if given == STANDARD_INPUT else user_path(_at(base, given), entry.flag)


def _weights(entry: OptionField, given: Sequence[str], base: Path | None) -> tuple[str, ...]:
    """Targets as typed, and those that files list. A comma is part of a target."""
    from cwa_engine.weight_files.reading import read_weights  # numpy comes with it: 0.1 s

    found: list[str] = []
    for text in given:
        found += [text] if text.endswith("]") else read_weights(_texts(entry, text, base))
    return tuple(found)
