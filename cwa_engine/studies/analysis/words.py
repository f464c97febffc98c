"""Numbers in sentences of answers."""

from __future__ import annotations

from collections.abc import Sequence

from cwa_engine.methods.perturbations import PERTURBATIONS


def figure(value: float, low: float, high: float) -> str:
    """`+0.512 [+0.47, +0.55]`, all with the digits that the interval leaves meaning."""
    return f"{value:+.3g} [{low:+.3g}, {high:+.3g}]"


def size(parameters: int) -> str:
    """`162M`, `1.4B`, `850k`: a number of parameters."""
    for unit, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if parameters >= unit:
            return f"{parameters / unit:.3g}{letter}"
    return str(parameters)


def listed(names: Sequence[str]) -> str:
    """`a, b and c`"""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def counted(number: int, one: str, more: str = "") -> str:
    """`1 size`, `4 sizes`"""
    return f"{number:,} {one if number == 1 else more or one + 's'}"


def doing(perturbation: str) -> str:
    """`zeroing`: a sentence that began with "zero of the top 16" would speak of none."""
    if perturbation not in PERTURBATIONS:
        return f"{perturbation} of"  # another version's
    return PERTURBATIONS[perturbation].gerund
