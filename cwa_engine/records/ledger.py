"""What was compared in a verification, and what did not agree."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

RELATIVE, ABSOLUTE = (
    1e-6,
    1e-12,
)  # numpy adds up in another order on another machine; ratios of tiny changes feel it most


@dataclass(frozen=True, slots=True)
class Disagreement:
    """A figure of a run that does not follow from its tables."""

    where: str  # "summary.json: baseline.nll"
    said: Any  # there
    found: Any  # recomputed


@dataclass
class Ledger:
    """Counts what is compared and keeps what disagrees. `older`: figures that an earlier version did not have may lack."""

    older: bool = False
    compared: int = 0
    disagreements: list[Disagreement] = field(default_factory=list)

    def same(self, where: str, said: Any, found: Any) -> None:
        """Compare what a file says with what was recomputed: maps by key, lists by place, numbers within rounding."""
        if isinstance(said, dict) and isinstance(found, dict):
            for key, value in found.items():
                if key in said or not self.older:
                    self.same(_below(where, key), said.get(key, "nothing"), value)
            for key in said.keys() - found.keys():
                self.same(_below(where, key), said[key], "nothing")
        elif isinstance(said, list) and isinstance(found, list):
            if len(said) != len(found):
                self.same(f"{where}, how many", len(said), len(found))
            for place, (one, other) in enumerate(zip(said, found, strict=False), start=1):
                self.same(_below(where, _name_of(other, place)), one, other)
        else:
            self.compared += 1
            if not _agree(said, found):
                self.disagreements.append(Disagreement(where, said, found))


def _below(where: str, name: object) -> str:
    return f"{where}{' ' if where.endswith(':') else ', '}{name}"


def _name_of(entry: Any, place: int) -> str:
    """What a member of a list is called: by the fields that tell it from the others."""
    if isinstance(entry, dict):
        names = [f"k={entry[key]}" if key == "k" else str(entry[key]) for key in _NAMING if entry.get(key) is not None]
        if names:
            return " ".join(names)
    return f"number {place}"


_NAMING = ("metric", "k", "perturbation", "control", "selection", "seed", "target")


def _agree(said: Any, found: Any) -> bool:
    if isinstance(said, bool) or isinstance(found, bool) or not _are_numbers(said, found):
        return type(said) is type(found) and said == found
    if isinstance(said, int) and isinstance(found, int):
        return said == found
    if math.isnan(said) or math.isnan(found):
        return math.isnan(said) and math.isnan(found)
    return math.isclose(said, found, rel_tol=RELATIVE, abs_tol=ABSOLUTE)


def _are_numbers(*values: Any) -> bool:
    return all(isinstance(value, (int, float)) for value in values)
