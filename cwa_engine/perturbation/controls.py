"""The controls: sets of weights that a critical set is fairly compared with, drawn with numpy and not with torch.

A selection is a map from parameter name to sorted flat indices into the stored tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cwa_engine.models.anatomy import Parameter
from cwa_engine.registry import Registry, first_sentence
from cwa_engine.result import TopWeight

if TYPE_CHECKING:  # numpy is imported by the functions that draw: its 90 ms are not for `cwtool --help`
    import numpy as np
    from numpy.typing import NDArray

    Indices = NDArray[np.int64]

Selection = dict[str, "Indices"]

POOL_SHARE = 10  # magnitude_matched draws from ten times as many of the largest weights as it needs,
POOL_LEAST = 100  # but from at least a hundred, so that draws differ


@dataclass(frozen=True)
class Population:
    """What controls are chosen from. Rankings are of the largest k asked for; smaller k are prefixes."""

    parameters: Mapping[str, Parameter]
    magnitudes: Callable[[str], NDArray[np.float32]]  # |w| of a parameter, flat
    lowest: Sequence[TopWeight] = ()  # by the metric of the critical set, lowest first
    largest_magnitudes: Sequence[TopWeight] = ()

    @property
    def sizes(self) -> dict[str, int]:
        return {name: parameter.numel for name, parameter in self.parameters.items()}


Draw = Callable[[Selection, Population, "np.random.Generator"], Selection]


@dataclass(frozen=True, slots=True)
class Control:
    """`draw(critical, population, rng)` chooses as many weights as `critical` has."""

    name: str
    draw: Draw
    is_random: bool  # drawn with several seeds; the others are what they are

    @property
    def summary(self) -> str:
        """What help texts and tables say of it."""
        return first_sentence(self.draw)


CONTROLS: Registry[Control] = Registry("control")


def control(name: str, is_random: bool = True) -> Callable[[Draw], Draw]:
    """Register a drawing function under `name`."""

    def register(draw: Draw) -> Draw:
        CONTROLS.add(name, Control(name, draw, is_random))
        return draw

    return register


def critical_set(weights: Iterable[TopWeight]) -> Selection:
    """The weights of a ranking as a selection."""
    import numpy as np

    by_parameter: dict[str, list[int]] = {}
    for weight in weights:
        by_parameter.setdefault(weight.parameter, []).append(weight.flat_index)
    return {name: np.array(sorted(indices), dtype=np.int64) for name, indices in by_parameter.items()}


def count(selection: Selection) -> int:
    """How many weights a selection holds."""
    return sum(len(indices) for indices in selection.values())


@control("random")
def random(critical: Selection, population: Population, rng: np.random.Generator) -> Selection:
    """Uniform over all weights of the model that are not in the critical set."""
    import numpy as np

    names, sizes = list(population.sizes), list(population.sizes.values())
    ends = np.cumsum(sizes)
    starts = ends - sizes
    taken = [critical[name] + starts[place] for place, name in enumerate(names) if name in critical]
    drawn = _draw(rng, int(ends[-1]), count(critical), np.concatenate(taken))
    owners = np.searchsorted(ends, drawn, side="right")
    return {names[owner]: drawn[owners == owner] - starts[owner] for owner in np.unique(owners)}


@control("random_matched")
def random_matched(critical: Selection, population: Population, rng: np.random.Generator) -> Selection:
    """As many weights of each parameter as the critical set has there, uniform over its other weights."""
    sizes = population.sizes
    return {name: _draw(rng, sizes[name], len(taken), taken) for name, taken in critical.items()}


@control("magnitude_matched")
def magnitude_matched(critical: Selection, population: Population, rng: np.random.Generator) -> Selection:
    """As many of each parameter, drawn from its largest |w| at other positions."""
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
    """For each critical weight another one with the same out_feature; a vector counts as one row."""
    return _same_feature(critical, population, rng, of_output=True)


@control("same_column")
def same_column(critical: Selection, population: Population, rng: np.random.Generator) -> Selection:
    """For each critical weight another one with the same in_feature; a vector counts as one column."""
    return _same_feature(critical, population, rng, of_output=False)


@control("bottom", is_random=False)
def bottom(critical: Selection, population: Population, rng: np.random.Generator) -> Selection:
    """The weights with the lowest scores of the whole model, exactly; among equal ones the first."""
    return critical_set(population.lowest[: count(critical)])


@control("top_magnitude", is_random=False)
def top_magnitude(critical: Selection, population: Population, rng: np.random.Generator) -> Selection:
    """The weights with the largest |w| of the whole model."""
    return critical_set(population.largest_magnitudes[: count(critical)])


def _same_feature(critical: Selection, population: Population, rng: np.random.Generator, of_output: bool) -> Selection:
    import numpy as np

    drawn = {}
    for name, taken in critical.items():
        parameter = population.parameters[name]
        if len(parameter.shape) == 1:
            drawn[name] = _draw(rng, parameter.numel, len(taken), taken)
            continue
        grid = np.arange(parameter.numel, dtype=np.int64).reshape(parameter.shape[0], -1)
        stored_rows = of_output != parameter.transposed  # Conv1D stores the output along its columns
        rows, columns = np.divmod(taken, grid.shape[1])
        lines, places = (grid, rows) if stored_rows else (grid.T, columns)
        chosen = [_choose(rng, lines[place], taken[places == place]) for place in np.unique(places)]
        drawn[name] = np.sort(np.concatenate(chosen))
    return drawn


def _choose(rng: np.random.Generator, pool: Indices, taken: Indices) -> Indices:
    """As many of `pool` as there are in `taken`, sorted, without those where enough others are left."""
    import numpy as np

    free = np.setdiff1d(pool, taken, assume_unique=True)
    source = free if len(free) >= len(taken) else pool
    return np.sort(rng.choice(source, len(taken), replace=False)).astype(np.int64)


def _draw(rng: np.random.Generator, size: int, wanted: int, taken: Indices) -> Indices:
    """`wanted` different numbers below `size`, sorted, none of them in `taken`.

    Where too few others are left (a critical set of more than half a parameter) the taken ones may be drawn too.
    """
    import numpy as np

    if size - len(taken) < wanted:
        taken = np.empty(0, dtype=np.int64)
    if size <= 4 * (wanted + len(taken)):  # crowded: list what is free
        free = np.setdiff1d(np.arange(size), taken, assume_unique=True)
        return np.sort(rng.choice(free, wanted, replace=False)).astype(np.int64)
    drawn: Indices = np.empty(0, dtype=np.int64)
    while len(drawn) < wanted:  # sparse: at least half of all numbers are free, so few rounds
        fresh = rng.integers(0, size, wanted - len(drawn))
        drawn = np.setdiff1d(np.union1d(drawn, fresh), taken)
    return drawn
