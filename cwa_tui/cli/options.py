"""Options of several values, as people write them: `--topk 10 100`, `--topk 10 --topk 100`, `--topk 10,100`."""

from __future__ import annotations

import re
from collections.abc import Mapping

_NUMBER = re.compile(r"-[\d.]")


def repeat_option_names(args: list[str], repeatable: set[str]) -> list[str]:
    """`--topk 10 100` as `--topk 10 --topk 100`; every other argument stays as it is."""
    repeated: list[str] = []
    option = ""  # the repeatable option whose values are read now
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


def fill_bare(args: list[str], meant: Mapping[str, str]) -> list[str]:
    """`--stability` without a value as `--stability halves`; `meant` says what each such option means alone."""
    filled: list[str] = []
    for place, arg in enumerate(args, start=1):
        filled.append(arg)
        if arg in meant and (place == len(args) or args[place].startswith("-")):
            filled.append(meant[arg])
    return filled
