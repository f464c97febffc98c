"""What a run measures, as far as its spec says: ways to change weights, sizes of sets, controls and their draws. torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cwa_engine.methods.controls import CONTROLS, Selection
from cwa_engine.methods.perturbations import PERTURBATIONS, Options, Perturbation
from cwa_engine.rows import GIVEN, MATRICES
from cwa_engine.spec import RunSpec


@dataclass(frozen=True)
class Treatment:
    """One way to damage weights, under the name it has in tables."""

    label: str
    perturbation: Perturbation
    options: Options
    has_controls: bool = True  # a dose or a bit of a sweep is compared with the others, not with controls


ZERO = Treatment("zero", PERTURBATIONS["zero"], Options())


@dataclass(frozen=True)
class Draw:
    """One draw of a control. `units` are those of the ranked structure, `weights` their flat indices."""

    control: str
    seed: int | None  # None for a control that is not drawn
    units: Selection
    weights: Selection


@dataclass(frozen=True)
class Comparison:
    """A critical set and the draws of its controls. `weights` are flat indices."""

    metric: str
    k: int
    structure: str  # what k counts
    weights: Selection
    draws: tuple[Draw, ...]

    def of(self, control: str) -> list[Draw]:
        return [draw for draw in self.draws if draw.control == control]


@dataclass(frozen=True)
class SideCase:
    """Another change of weights that goes with a critical set, which stays as it is. `weights` are flat indices."""

    treatment: Treatment
    selection: str  # as tables call it, beside "critical" and the names of controls
    seed: int | None
    weights: Selection


def treatments(spec: RunSpec) -> list[Treatment]:
    """The perturbations of a run."""
    return [Treatment(name, PERTURBATIONS[name], spec.perturbation_options) for name in spec.perturbations]


def sizes(metric: str, weights: int, spec: RunSpec) -> tuple[int, ...]:
    """The k of a ranking that has so many weights: those asked for, or all weights that were given."""
    return (weights,) if metric == GIVEN else spec.topk


def controls_of(label: str, spec: RunSpec) -> tuple[str, ...]:
    """The controls of a ranking. That of matrices alone is spared `random` where the stricter `random_matched` is there."""
    if label.endswith(MATRICES) and "random_matched" in spec.controls:
        return tuple(name for name in spec.controls if name != "random")
    return spec.controls


def seeds_of(control: str, spec: RunSpec) -> Sequence[int | None]:
    """A seed for each draw; a control that is not random is measured once, without one."""
    if not CONTROLS[control].is_random:
        return [None]
    draws = max(spec.control_seeds, CONTROLS[control].least_draws)
    return range(spec.seed, spec.seed + draws)
