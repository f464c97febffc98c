"""Options of several values, as people write them: `--topk 10 100`, `--topk 10 --topk 100`, `--topk 10,100`."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping

from cwa_engine.base.errors import InvalidInput

_NUMBER = re.compile(r"-[\d.]")
_NUMBERS = re.compile(r"[-+\d][\w.,+-]*|\.\d[\w.,+-]*")  # also what was meant as one: 10k, 1e3, 10,100


def repeat_option_names(args: list[str], repeatable: Mapping[str, bool]) -> list[str]:
    """`--topk 10 100` as `--topk 10 --topk 100`; every other argument stays as it is.

    `repeatable` has options by name, `--topk` or `-k`, and whether their values are numbers: what is none, as gpt2 in
    `-k 10 gpt2`, is no further value then.
    """
    repeated: list[str] = []
    option = ""  # the repeatable option whose values are read now
    expecting = False  # whether the next argument is that option's first value
    for arg in args:
        is_value = not arg.startswith("-") or arg == "-" or _NUMBER.match(arg)
        if option and is_value and (expecting or not repeatable[option] or _NUMBERS.fullmatch(arg)):
            repeated += [arg] if expecting else [option, arg]
            expecting = False
            continue
        name, equals, _ = arg.partition("=")
        if not arg.startswith("--") and arg[:2] in repeatable:  # -k10
            name, equals = arg[:2], arg[2:]
        option = name if name in repeatable else ""
        expecting = bool(option) and not equals
        repeated.append(arg)
    return repeated


def fill_bare(args: list[str], meant: Mapping[str, str]) -> list[str]:
    """`--stability` without a value as `--stability halves`; `meant` says what each such option means alone."""
    filled: list[str] = []
    for place, arg in enumerate(args, start=1):
        filled.append(arg)
        if arg in meant and (place == len(args) or args[place].startswith("-")):
            filled.append(meant[arg])
    return filled


def refuse_swallowed_options(args: list[str], options: Mapping[str, bool]) -> None:
    """Raise InvalidInput where an option stands in the place of another one's value, as in `--output --json`.

    `options` has each option by name, and whether a value follows it.
    """
    for name, value in itertools.pairwise(args):
        if name == "--":
            return
        if options.get(name) and value in options and value.startswith("--"):
            raise InvalidInput(f"{name} has no value", hint=f"write it behind {name}, before {value}")
