"""Options of several values, as people write them: `--topk 10 100`, `--topk 10 --topk 100`, `--topk 10,100`."""

from __future__ import annotations

import re
from typing import Any

from typer.core import TyperCommand

from cwa_engine.errors import InvalidInput

_NUMBER = re.compile(r"-\d")


class SeveralValues(TyperCommand):
    """A command without arguments of its own, whose repeatable options also take several values after one name."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        repeatable = {name for param in self.params if getattr(param, "multiple", False) for name in param.opts}
        return super().parse_args(ctx, repeat_option_names(args, repeatable))


def repeat_option_names(args: list[str], repeatable: set[str]) -> list[str]:
    """`--topk 10 100` as `--topk 10 --topk 100`; every other argument as it is."""
    repeated: list[str] = []
    option = ""  # the repeatable option whose values we are among
    expecting = False  # whether the next argument is that option's first value
    for arg in args:
        is_value = not arg.startswith("-") or _NUMBER.match(arg)
        if option and is_value:
            repeated += [arg] if expecting else [option, arg]
            expecting = False
            continue
        name, equals, _ = arg.partition("=")
        option = name if name in repeatable else ""
        expecting = bool(option) and not equals
        repeated.append(arg)
    return repeated


def values(given: list[str] | None) -> list[str]:
    """All values of a repeatable option, commas taken as separators."""
    return [value for entry in given or [] for value in entry.split(",") if value]


def whole_numbers(option: str, given: list[str] | None) -> list[int]:
    """The same as integers. Raises InvalidInput naming the option."""
    try:
        return [int(value.replace("_", "")) for value in values(given)]
    except ValueError:
        raise InvalidInput(
            f"{option} {' '.join(given or [])} is no whole number", hint=f"like {option} 10 100"
        ) from None
