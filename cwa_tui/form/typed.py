"""The value of an option's field from what is typed for it, on a command line or in a form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cwa_engine.base.errors import InvalidInput
from cwa_engine.base.files import user_path
from cwa_engine.options import Kind, OptionField
from cwa_engine.targets import read_targets
from cwa_tui.form.places import model_name

STANDARD_INPUT = "-"  # as typed on a command line
STDIN = Path("/dev/stdin")


def typed_value(entry: OptionField, given: Sequence[str]) -> Any:
    """The value for the texts typed after an option. Raises InvalidInput, naming the option."""
    if read := _READERS.get(entry.field):
        return read(entry, given)
    if entry.several:
        return tuple(_number(entry, text) if entry.kind is not Kind.TEXT else text for text in parts(given))
    (text,) = given
    if entry.kind is Kind.PATH:
        return user_path(text, entry.flag)
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


def _model(entry: OptionField, given: Sequence[str]) -> str:
    return model_name(given[0])


def _texts(entry: OptionField, given: Sequence[str]) -> Path:
    return STDIN if given[0] == STANDARD_INPUT else user_path(given[0], entry.flag)


def _dataset(entry: OptionField, given: Sequence[str]) -> str:
    from cwa_engine.data.datasets import absolute_dataset  # few runs need this import

    return absolute_dataset(given[0])


def _weights(entry: OptionField, given: Sequence[str]) -> tuple[str, ...]:
    """Targets as typed, and those that files list. A comma is part of a target."""
    found: list[str] = []
    for text in given:
        found += [text] if text.endswith("]") else read_targets(_texts(entry, [text]))
    return tuple(found)


_READERS: dict[str, Callable[[OptionField, Sequence[str]], Any]] = {
    "model": _model,
    "data_file": _texts,
    "dataset": _dataset,
    "weights": _weights,
}
