"""Options of several values, as people write them: `--topk 10 100`, `--topk 10 --topk 100`, `--topk 10,100`."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import typer
from typer.core import TyperCommand

from cwa_engine.errors import InvalidInput

T = TypeVar("T")

Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output, and nothing else there.")]

_NUMBER = re.compile(r"-[\d.]")
# Options that may stand alone, and what they mean then.
BARE = {"--stability": "halves", "--fidelity": "120", "--iterate": "10"}


class SeveralValues(TyperCommand):
    """A command without arguments of its own, whose repeatable options also take several values after one name."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        repeatable = {name for param in self.params if getattr(param, "multiple", False) for name in param.opts}
        return super().parse_args(ctx, repeat_option_names(fill_bare(args), repeatable))


def repeat_option_names(args: list[str], repeatable: set[str]) -> list[str]:
    """`--topk 10 100` as `--topk 10 --topk 100`; every other argument as it is."""
    repeated: list[str] = []
    option = ""  # the repeatable option whose values we are among
    expecting = False  # whether the next argument is that option's first value
    for arg in args:
        is_value = not arg.startswith("-") or arg == "-" or _NUMBER.match(arg)
        if option and is_value:
            repeated += [arg] if expecting else [option, arg]
            expecting = False
            continue
        name, equals, _ = arg.partition("=")
        option = name if name in repeatable else ""
        expecting = bool(option) and not equals
        repeated.append(arg)
    return repeated


def fill_bare(args: list[str]) -> list[str]:
    """`--stability` without a value as `--stability halves`."""
    filled: list[str] = []
    for place, arg in enumerate(args, start=1):
        filled.append(arg)
        if arg in BARE and (place == len(args) or args[place].startswith("-")):
            filled.append(BARE[arg])
    return filled


def values(given: list[str] | None) -> list[str]:
    """All values of a repeatable option, commas taken as separators."""
    return [value for entry in given or [] for value in entry.split(",") if value]


def whole_numbers(option: str, given: list[str] | None) -> list[int]:
    """The same as integers. Raises InvalidInput naming the option."""
    return _converted(lambda value: int(value.replace("_", "")), option, given, "is no whole number", "10 100")


def numbers(option: str, given: list[str] | None) -> list[float]:
    """The same as numbers with fractions. Raises InvalidInput naming the option."""
    return _converted(float, option, given, "is no number", "0 0.5 2 -1")


def _converted(convert: Callable[[str], T], option: str, given: list[str] | None, wrong: str, example: str) -> list[T]:
    try:
        return [convert(value) for value in values(given)]
    except ValueError:
        raise InvalidInput(f"{option} {' '.join(given or [])} {wrong}", hint=f"like {option} {example}") from None
