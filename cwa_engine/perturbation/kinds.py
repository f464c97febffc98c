"""The perturbations: one function each, from the old values of some weights to the new ones. Imports without torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cwa_engine.registry import Registry, first_sentence

if TYPE_CHECKING:
    from torch import Tensor

Rewrite = Callable[["Tensor"], "Tensor"]


@dataclass(frozen=True, slots=True)
class Perturbation:
    """`rewrite` maps the chosen values of one parameter [n] to what replaces them [n], same dtype."""

    name: str
    rewrite: Rewrite

    @property
    def summary(self) -> str:
        """What help texts and tables say of it."""
        return first_sentence(self.rewrite)


PERTURBATIONS: Registry[Perturbation] = Registry("perturbation")


def perturbation(name: str) -> Callable[[Rewrite], Rewrite]:
    """Register a rewriting function under `name`."""

    def register(rewrite: Rewrite) -> Rewrite:
        PERTURBATIONS.add(name, Perturbation(name, rewrite))
        return rewrite

    return register


@perturbation("zero")
def zero(old: Tensor) -> Tensor:
    """Set each weight to zero."""
    return old.new_zeros(old.shape)
