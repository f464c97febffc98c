"""One weight, row, column or head of a loaded model: its value among its like in the same tensor, and what is around it.

Large tensors are read in pieces and never sorted: a first pass counts values by the leading 16 bits of their floats, which
order them coarsely; a second one collects the values of those few bins in which a wanted rank or boundary lies.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from cwa_engine.base.errors import InvalidInput
from cwa_engine.models.anatomy import Parameter
from cwa_engine.models.structures import (
    common_structure,
    find_weights,
    parameter_of,
    target_name,
    unit_of,
    unit_weights,
)
from cwa_engine.rows import PlacedValue, Quantile, ValueDistribution, WeightFacts, WeightLine
from cwa_engine.targets import parse_target

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from cwa_engine.models.loading import LoadedModel

    Floats = NDArray[np.float64]

AROUND = 4  # weights on either side
LARGEST = 5  # of a row or column
BINS = 64
SHARES = (0.0, 0.001, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999, 1.0)
_PIECE = 2**18  # values that are read at once
_CODES = 2**16


def weight_facts(loaded: LoadedModel, text: str) -> WeightFacts:
    """The facts of the unit that a target names. Changes nothing.

    Raises InvalidInput for a target that the model lacks, and for one that is not a single weight, row, column or head.
    """
    target, parameters = parse_target(text), loaded.anatomy.parameters
    indices = find_weights(target, parameters)
    parameter = parameter_of(target, parameters)
    structure = common_structure([target], parameters)
    if structure == "weight" and len(indices) > 1:
        raise InvalidInput(
            f"'{text}' names {len(indices):,} weights that are no single row, column or head",
            hint="name one weight, NAME[out,in], or one row, NAME[out,:], or column, NAME[:,in]",
        )
    stored = loaded.model.get_parameter(parameter.name).detach().reshape(-1)
    first = int(indices[0])
    if structure == "weight":
        values, value = stored, float(stored[first])
    else:
        values = _norms(stored, parameter, structure)
        value = float(values[unit_of(parameter, structure, first)])
    among = _Ordered(values)
    magnitude = abs(value)
    edges = _edges(among.smallest, among.largest) if among.count else []
    positions = [max(0, math.ceil(share * among.count) - 1) for share in SHARES] if among.count else []
    known = math.isfinite(value)
    among.look_closer([*edges, *([magnitude, -magnitude] if known else [])], positions)
    larger = among.below(-magnitude) + among.count - among.up_to(magnitude) if known else None
    equal = among.equal(magnitude) + (among.equal(-magnitude) if magnitude else 0) - 1 if known else 0
    return WeightFacts(
        target=target_name(parameter, structure, first),
        parameter=parameter.name,
        structure=structure,
        layer=parameter.layer,
        component=parameter.component,
        expert=parameter.place(first).expert if structure != "head" else None,
        shape=parameter.shape,
        transposed=parameter.transposed,
        dtype=str(stored.dtype).removeprefix("torch."),
        flat_index=first,
        value=value,
        rank=None if larger is None else 1 + larger,
        equal=equal,
        smaller_share=None if larger is None else (among.count - larger - equal - 1) / among.count,
        distribution=ValueDistribution(
            count=among.count,
            not_finite=len(values) - among.count,
            mean=among.mean,
            std=among.std,
            quantiles=tuple(
                Quantile(share, among.at(place)) for share, place in zip(SHARES, positions, strict=bool(positions))
            ),
            edges=tuple(edges),
            counts=_counts(among, edges),
        ),
        lines=_lines(stored, parameter, structure, first),
    )


class _Ordered:
    """Order statistics of finite values: exact for the boundaries and positions given to `look_closer`."""

    def __init__(self, values: Tensor) -> None:
        self._values = values
        self.count, self.mean, squares = 0, math.nan, 0.0
        self.smallest, self.largest = math.inf, -math.inf
        by_code = np.zeros(_CODES, dtype=np.int64)
        for piece in self._pieces():
            by_code += torch.bincount(_codes(piece), minlength=_CODES).numpy()
            least, most = (float(end) for end in piece.aminmax())
            self.smallest, self.largest = min(self.smallest, least), max(self.largest, most)
            wide = piece.double()
            mean = float(wide.mean())
            wide.sub_(mean)
            # Chan et al. 1983: means and sums of squares of two parts, joined
            difference = mean - self.mean if self.count else 0.0
            total = self.count + len(piece)
            squares += float(wide.dot(wide)) + difference**2 * self.count * len(piece) / total
            self.mean = self.mean + difference * len(piece) / total if self.count else mean
            self.count = total
        self.std = math.sqrt(squares / self.count) if self.count else math.nan
        self._in_bin = by_code[_by_value(np.arange(_CODES))]
        self._before = np.concatenate([[0], np.cumsum(self._in_bin)])  # values in lower bins
        self._close: dict[int, Floats] = {}  # bin -> its values, sorted

    def look_closer(self, boundaries: Iterable[float], positions: Iterable[int]) -> None:
        """Collect the values of the bins in which these boundaries and positions lie."""
        bins = np.unique([*(self._bin(boundary) for boundary in boundaries), *map(self._bin_at, positions)]).astype(int)
        wanted = torch.zeros(_CODES, dtype=torch.bool)
        wanted[torch.from_numpy(_by_value(bins))] = True
        found = [piece[wanted.index_select(0, _codes(piece))] for piece in self._pieces()]
        values = torch.cat(found).sort().values.double().numpy() if found else np.empty(0)
        ends = np.cumsum(self._in_bin[bins])
        self._close = dict(zip(bins.tolist(), np.split(values, ends[:-1]), strict=True)) if len(bins) else {}

    def below(self, boundary: float) -> int:
        """How many values are less."""
        return self._rank(boundary, "left")

    def up_to(self, boundary: float) -> int:
        """How many values are less or equal."""
        return self._rank(boundary, "right")

    def equal(self, value: float) -> int:
        return self.up_to(value) - self.below(value)

    def at(self, position: int) -> float:
        """The value at this position, the smallest being at 0."""
        number = self._bin_at(position)
        return float(self._close[number][position - int(self._before[number])])

    def _rank(self, boundary: float, side: Literal["left", "right"]) -> int:
        number = self._bin(boundary)
        return int(self._before[number]) + int(np.searchsorted(self._close[number], boundary, side=side))

    def _bin(self, boundary: float) -> int:
        # Rounding to the dtype of the values keeps the order of values and boundary, or makes them equal.
        rounded = torch.tensor([boundary], dtype=torch.float64).to(self._values.dtype) + 0.0
        return int(_by_value(_codes(rounded).numpy())[0])

    def _bin_at(self, position: int) -> int:
        return int(np.searchsorted(self._before, position, side="right")) - 1

    def _pieces(self) -> Iterator[Tensor]:
        for start in range(0, len(self._values), _PIECE):
            piece = self._values[start : start + _PIECE].cpu() + 0.0  # a negative zero becomes a positive one
            if not math.isfinite(float(piece.sum(dtype=torch.float64))):
                piece = piece[piece.isfinite()]
            if len(piece):
                yield piece


def _codes(values: Tensor) -> Tensor:
    """The leading 16 bits of each float, from 0: first those of negative values from -0 down, then those of others up."""
    as_integer, spare_bits = {2: (torch.int16, 0), 4: (torch.int32, 16), 8: (torch.int64, 48)}[values.element_size()]
    return (values.view(as_integer) >> spare_bits).to(torch.int32).add_(_CODES // 2)


def _by_value(codes: NDArray[Any]) -> NDArray[Any]:
    """Codes numbered so that values grow with them; its own inverse."""
    return np.where(codes < _CODES // 2, _CODES // 2 - 1 - codes, codes)


def _edges(smallest: float, largest: float) -> list[float]:
    edges: Floats = np.unique(np.linspace(smallest, largest, BINS + 1))
    return [smallest, largest] if len(edges) == 1 else [float(edge) for edge in edges]


def _counts(among: _Ordered, edges: list[float]) -> tuple[int, ...]:
    if not edges:
        return ()
    ranks = [among.below(edge) for edge in edges[:-1]] + [among.count]
    return tuple(after - before for before, after in itertools.pairwise(ranks))


def _norms(stored: Tensor, parameter: Parameter, structure: str) -> Tensor:
    """Euclidean norms of all units of a structure, float64, in the order of their numbers."""
    outs, ins = parameter.out_features, parameter.in_features
    found = []
    for expert in stored.reshape(parameter.experts or 1, -1):  # one after the other, for they are widened to float64
        matrix = expert.reshape(ins, outs).T if parameter.transposed else expert.reshape(outs, ins)
        along = [rows.cpu().double().square_() for rows in matrix.split(max(1, _PIECE // ins))]
        if structure == "row":
            found.append(torch.cat([rows.sum(dim=1) for rows in along]))
            continue
        columns = torch.stack([rows.sum(dim=0) for rows in along]).sum(dim=0)
        size = parameter.head_size if structure == "head" else None
        found.append(columns.reshape(-1, size or 1).sum(dim=1))
    return torch.cat(found).sqrt()


def _lines(stored: Tensor, parameter: Parameter, structure: str, first: int) -> tuple[WeightLine, ...]:
    """The row and the column of a weight, or its vector; of a row, column or head itself."""
    if structure == "weight" and parameter.is_vector:
        place = parameter.place(first)
        whole = "[:]" if place.expert is None else f"[{place.expert},:]"
        indices = np.arange(parameter.out_features) + (first - place.out_feature)
        return (_line(stored, parameter, "vector", f"{parameter.name}{whole}", indices, first),)
    found = []
    for kind in ("row", "column") if structure == "weight" else (structure,):
        indices = unit_weights(parameter, kind, np.array([unit_of(parameter, kind, first)]))
        target = target_name(parameter, kind, int(indices[0]))
        found.append(_line(stored, parameter, kind, target, indices, first if structure == "weight" else None))
    return tuple(found)


def _line(
    stored: Tensor, parameter: Parameter, kind: str, target: str, indices: NDArray[np.int64], weight: int | None
) -> WeightLine:
    """The weights at these flat indices, in order; `weight` is the one that is looked at."""
    values: Floats = stored[torch.from_numpy(indices).to(stored.device)].cpu().double().numpy()
    sizes = np.abs(values)

    def placed(positions: Iterable[int]) -> tuple[PlacedValue, ...]:
        return tuple(
            PlacedValue(target_name(parameter, "weight", int(indices[i])), float(values[i])) for i in positions
        )

    largest = placed(np.argsort(-sizes, kind="stable")[:LARGEST].tolist())
    norm = float(np.linalg.norm(values))
    if weight is None:
        return WeightLine(kind, target, len(indices), norm, rank=None, around=(), largest=largest)
    at = int(np.searchsorted(indices, weight))
    around = placed(range(max(0, at - AROUND), min(len(indices), at + AROUND + 1)))
    rank = 1 + int((sizes > sizes[at]).sum()) if math.isfinite(values[at]) else None
    return WeightLine(kind, target, len(indices), norm, rank, around, largest)
