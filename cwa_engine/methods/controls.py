"""The controls: sets of weights with which a critical set is compared. They are drawn with numpy, without torch.

Controls have the structure of the run: single weights, rows, columns or heads. A selection is a map from a parameter's name
to sorted numbers of units. For single weights these are flat indices into the stored tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cwa_engine.base.errors import InvalidInput
from cwa_engine.base.registry import Registry, first_sentence
from cwa_engine.models.anatomy import Parameter
from cwa_engine.models.structures import unit_count, unit_weights, units_of

if TYPE_CHECKING:  # the functions import numpy themselves: it takes 90 ms, which `cwtool --help` does not need
    import numpy as np
    from numpy.typing import NDArray

    from cwa_engine.rows import TopWeight

    Indices = NDArray[np.int64]

Selection = dict[str, "Indices"]

POOL_SHARE = 10  # magnitude_matched draws from this many times as many of the largest weights as it needs,
POOL_LEAST = 100  # but from at least this many, so that draws differ


@dataclass(frozen=True)
class Population:
    """The units that controls are chosen from: those of one structure in the ranked parameters."""

    parameters: Mapping[str, Parameter]
    magnitudes: Callable[[str], NDArray[np.float32]]  # |w| of a parameter's units, Euclidean norms of structures
    lowest: Sequence[TopWeight] = ()  # lowest scores by the metric of the critical set, lowest first
    largest_magnitudes: Sequence[TopWeight] = ()
    structure: str = "weight"

    @property
    def sizes(self) -> dict[str, int]:
        return {name: unit_count(parameter, self.structure) for name, parameter in self.parameters.items()}


Draw = Callable[[Selection, Population, "np.random.Generator"], Selection]


@dataclass(frozen=True, slots=True)
class Control:
    """A rule for control sets. `draw(critical, population, rng)` chooses as many units as `critical` has."""

    name: str
    draw: Draw
    is_random: bool  # whether draws with other seeds differ
    least_draws: int  # draws of a random control, even if the user asks for fewer

    @property
    def summary(self) -> str:
        """Its sentence in help texts and tables."""
        return first_sentence(self.draw)


CONTROLS: Registry[Control] = Registry("control")


def control(name: str, is_random: bool = True, least_draws: int = 1) -> Callable[[Draw], Draw]:
    """Register a drawing function under `name`."""

    def register(draw: Draw) -> Draw:
        CONTROLS.add(name, Control(name, draw, is_random, least_draws))
        return draw

    return register


def critical_set(
    weights: Iterable[TopWeight], parameters: Mapping[str, Parameter], structure: str = "weight"
) -> Selection:
    """The units of a ranking as a selection."""
    import numpy as np

    by_parameter: dict[str, list[int]] = {}
    for weight in weights:
        by_parameter.setdefault(weight.parameter, []).append(weight.flat_index)
    return {
        name: np.sort(units_of(parameters[name], structure, np.array(flat_indices, dtype=np.int64)))
        for name, flat_indices in by_parameter.items()
    }


def count(selection: Selection) -> int:
    """Number of units of a selection."""
    return sum(len(indices) for indices in selection.values())


def weights_of(selection: Selection, parameters: Mapping[str, Parameter], structure: str) -> Selection:
    """The flat indices of all weights of the selected units."""
    return {name: unit_weights(parameters[name], structure, units) for name, units in selection.items()}


def by_parameter(numbers: Indices, sizes: Mapping[str, int]) -> Selection:
    """A selection of units given by their numbers over all parameters. `numbers` are sorted."""
    import numpy as np

    names, ends = list(sizes), np.cumsum(list(sizes.values()))
    owners = np.searchsorted(ends, numbers, side="right")
    return {
        names[owner]: (numbers[owners == owner] - (ends[owner] - sizes[names[owner]])).astype(np.int64)
        for owner in np.unique(owners)
    }


@control("random")
def random(critical: Selection, population: Population, rng: np.random.Generator) -> Selection:
    """Weights drawn uniformly from all ranked weights outside of the critical set."""
    import numpy as np

    sizes = population.sizes
    starts = dict(zip(sizes, np.cumsum([0, *sizes.values()]), strict=False))
    taken = [units + starts[name] for name, units in critical.items()]
    return by_parameter(_draw(rng, sum(sizes.values()), count(critical), np.concatenate(taken)), sizes)


@control("random_matched")
def random_matched(critical: Selection, population: Population, rng: np.random.Generator) -> Selection:
    """As many weights of each parameter as the critical set has there, drawn uniformly from its other weights."""
    sizes = population.sizes
    return {name: _draw(rng, sizes[name], len(taken), taken) for name, taken in critical.items()}


@control("magnitude_matched", least_draws=50)
def magnitude_matched(critical: Selection, population: Population, rng: np.random.Generator) -> Selection:
    """As many weights of each parameter, drawn from its other weights with the largest |w|; at least 50 draws."""
    import numpy as np

    drawn = {}
    for name, taken in critical.items():
        magnitudes = population.magnitudes(name)
        pool = min(len(magnitudes), len(taken) + max(POOL_SHARE * len(taken), POOL_LEAST))
        largest = np.argpartition(magnitudes, len(magnitudes) - pool)[-pool:].astype(np.int64)
        drawn[name] = _choose(rng, np.sort(largest), taken)
    return drawn


@control("same_row")
def same_row(critical: Selection, population: Population, rng: np.random.Generator) -> Selection:
    """For each critical weight another weight with the same out_feature; a vector counts as one row."""
    return _same_line(critical, population, rng, "row")


@control("same_column")
def same_column(critical: Selection, population: Population, rng: np.random.Generator) -> Selection:
    """For each critical weight another weight with the same in_feature; a vector counts as one column."""
    return _same_line(critical, population, rng, "column")


@control("bottom", is_random=False)
def bottom(critical: Selection, population: Population, rng: np.random.Generator) -> Selection:
    """The weights of the model with the lowest scores; among equal scores the first."""
    return critical_set(population.lowest[: count(critical)], population.parameters, population.structure)


@control("top_magnitude", is_random=False)
def top_magnitude(critical: Selection, population: Population, rng: np.random.Generator) -> Selection:
    """The ranked weights with the largest |w|."""
    return critical_set(population.largest_magnitudes[: count(critical)], population.parameters, population.structure)


def _same_line(critical: Selection, population: Population, rng: np.random.Generator, line: str) -> Selection:
    import numpy as np

    if population.structure != "weight":
        raise InvalidInput(
            f"same_{line} compares single weights, not whole {population.structure}s",
            hint="use --control random random_matched magnitude_matched",
        )
    drawn = {}
    for name, taken in critical.items():
        parameter = population.parameters[name]
        if parameter.is_vector:
            drawn[name] = _draw(rng, parameter.numel, len(taken), taken)
            continue
        lines = units_of(parameter, line, taken)
        chosen = [
            _choose(rng, unit_weights(parameter, line, np.array([number])), taken[lines == number])
            for number in np.unique(lines)
        ]
        drawn[name] = np.sort(np.concatenate(chosen))
    return drawn


def _choose(rng: np.random.Generator, pool: Indices, taken: Indices) -> Indices:
    """Draw as many of `pool` as `taken` has, sorted, without those in `taken` if enough others are left."""
    import numpy as np

    free = np.setdiff1d(pool, taken, assume_unique=True)
    source = free if len(free) >= len(taken) else pool
    return np.sort(rng.choice(source, len(taken), replace=False)).astype(np.int64)


def _draw(rng: np.random.Generator, size: int, wanted: int, taken: Indices) -> Indices:
    """`wanted` different numbers below `size`, sorted, none of them in `taken`.

    If too few others are left (a critical set of more than half a parameter), numbers in `taken` may be drawn too.
    """
    import numpy as np

    if size - len(taken) < wanted:
        taken = np.empty(0, dtype=np.int64)
    if size <= 4 * (wanted + len(taken)):  # crowded: list the free numbers
        is_free = np.ones(size, dtype=bool)
        is_free[taken] = False
        return np.sort(rng.choice(np.flatnonzero(is_free), wanted, replace=False)).astype(np.int64)
    taken, drawn = np.sort(taken), np.empty(0, dtype=np.int64)
    while len(drawn) < wanted:  # sparse: at least half of all numbers are free, so few rounds
        # By sorting: numpy's own set operations hash, which takes six times as long on a hundred thousand numbers.
        both = np.sort(np.concatenate([drawn, rng.integers(0, size, wanted - len(drawn))]))
        first = np.concatenate([[True], both[1:] != both[:-1]])
        drawn = both[first & ~_among(both, taken)]
    return drawn


def _among(numbers: Indices, ascending: Indices) -> NDArray[np.bool_]:
    """Which of these numbers are among others, which ascend."""
    import numpy as np

    if not len(ascending):
        return np.zeros(len(numbers), dtype=bool)
    places = np.searchsorted(ascending, numbers)
    return np.asarray(ascending[np.minimum(places, len(ascending) - 1)] == numbers)
