"""From statistics to ranked weights: score every weight or structure of the model, keep the largest of each scope."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cwa_engine.methods.controls import Selection
from cwa_engine.methods.metrics import METRICS, Metric, Needs, WeightStats
from cwa_engine.models.anatomy import Parameter
from cwa_engine.models.fan_out import fan_out
from cwa_engine.models.loading import LoadedModel
from cwa_engine.models.structures import first_weights, target_names, unit_count, unit_weights
from cwa_engine.rows import Ranking, TopWeight
from cwa_engine.sensitivity.gradients import Statistics
from cwa_engine.sensitivity.score_counts import ScoreCounts
from cwa_engine.sensitivity.selection import TopKSelection
from cwa_engine.sensitivity.spikes import Spikes, spike_of

# Rows are scored in pieces of about this many weights: 4 MB of float32 stays in the processor's cache, and a
# 500-million-weight embedding needs no second copy. A GPU has to be told of each kernel and waited
# for a few times a piece, whatever its size: 64 MB, 20 microseconds of an H100's memory by its data sheet, make that small.
_PIECE = 1 << 20
_PIECE_ON_GPU = 1 << 24

_GROUP_OF: dict[str, Callable[[Parameter], object]] = {
    "global": lambda parameter: None,
    "per_layer": lambda parameter: parameter.layer,
    "per_parameter": lambda parameter: parameter.name,
    "per_component": lambda parameter: parameter.component,
}


def group_of(parameter: Parameter, scope: str) -> object:
    """What a scope ranks a parameter together with: those of which this says the same."""
    return _GROUP_OF[scope](parameter)


class Ranker:
    """The k units with the largest score, exactly, of each group that `scope` makes of the parameters.

    Statistics may be offered all at once or block by block. Ranked by place within the group, then by score, so the
    critical set of a smaller k is a prefix. `with_lowest` also keeps as many of the smallest scores of all, and
    `counts` hears of every score.
    """

    def __init__(
        self, loaded: LoadedModel, metric: str | Metric, k: int, with_lowest: bool = False, structure: str = "weight",
        scope: str = "global", counts: ScoreCounts | None = None,
    ) -> None:  # fmt: skip
        self.metric = METRICS[metric] if isinstance(metric, str) else metric
        self._loaded, self._structure, self._scope = loaded, structure, scope
        groups = {group_of(parameter, scope) for parameter in loaded.anatomy.parameters.values()}
        self._largest = {group: TopKSelection(k) for group in groups}
        self._smallest = TopKSelection(k * len(groups)) if with_lowest else None
        self._counts = counts
        self._ranked: list[Parameter] = []
        self._errors: dict[tuple[int, int], float] = {}  # (parameter order, unit) -> standard error of an estimate
        self._spikes: dict[str, Spikes] = {}  # where they are what single weights are ranked by

    def offer(self, statistics: Statistics) -> None:
        """Score the parameters that these statistics are of."""
        for parameter in rankable(self._loaded, statistics, self.metric, self._structure):
            self._ranked.append(parameter)
            stats = statistics[parameter.name]
            if isinstance(stats.spikes, Spikes) and self.metric.down_projections_only and self._structure == "weight":
                self._spikes[parameter.name] = stats.spikes
            for offset, scores in unit_scores(self._loaded, parameter, stats, self.metric, self._structure):
                self._largest[group_of(parameter, self._scope)].offer(parameter, scores, offset)
                if self._smallest:
                    self._smallest.offer(parameter, -scores, offset)
                if self._counts:
                    self._counts.offer(scores)
        if Needs.HESSIAN in self.metric.needs and self._structure == "weight":
            self._keep_errors(statistics)

    def _keep_errors(self, statistics: Statistics) -> None:
        """The standard errors of what is selected so far, before the statistics are gone."""
        for selection in (*self._largest.values(), *([self._smallest] if self._smallest else [])):
            orders, units, _ = selection.columns()
            for parameter in self._loaded.anatomy.parameters.values():
                stats, order = statistics.get(parameter.name), parameter.order
                if stats and stats.hessian_error is not None:
                    ours = units[orders == order]
                    errors = stats.hessian_error.reshape(-1)[ours.to(stats.hessian_error.device)].tolist()
                    self._errors.update(zip(((order, unit) for unit in ours.tolist()), errors, strict=True))

    def ranking(self) -> Ranking:
        """What is known so far."""
        groups = [group.columns() for group in self._largest.values()]
        places = torch.cat([torch.arange(1, len(scores) + 1) for _, _, scores in groups])
        orders, units, scores = (torch.cat(column) for column in zip(*groups, strict=True))
        turn = torch.from_numpy(np.lexsort((units, orders, -scores, places)))
        weights = self._described(places[turn], orders[turn], units[turn], scores[turn])
        lowest: tuple[TopWeight, ...] = ()
        if self._smallest:
            orders, units, scores = (column[: len(weights)] for column in self._smallest.columns())
            lowest = self._described(torch.arange(1, len(scores) + 1), orders, units, -scores)
        return Ranking(
            metric=self.metric.name,
            weights=weights,
            lowest=lowest,
            structure=self._structure,
            parameters=tuple(p.name for p in sorted(self._ranked, key=lambda parameter: parameter.order)),
            spikes=tuple(spike_of(self._loaded, self._spikes[w.parameter], w) for w in weights if self._spikes),
        )

    def targets(self) -> tuple[str, ...]:
        """What a ranking over the whole model names so far, best first."""
        (selection,) = self._largest.values()
        orders, units, _ = selection.columns()
        named: list[str] = [""] * len(units)
        for parameter, ours in self._by_parameter(orders):
            first = first_weights(parameter, self._structure, units[ours].numpy())
            for place, name in zip(ours.tolist(), target_names(parameter, self._structure, first), strict=True):
                named[place] = name
        return tuple(named)

    def _described(self, places: Tensor, orders: Tensor, units: Tensor, scores: Tensor) -> tuple[TopWeight, ...]:
        """Rows of a ranking, in this order."""
        rows: list[TopWeight | None] = [None] * len(units)
        for parameter, ours in self._by_parameter(orders):
            numbers = units[ours].tolist()
            errors = [self._errors.get((parameter.order, unit)) for unit in numbers] if self._errors else None
            described = describe_units(
                self._loaded, parameter, self._structure, numbers, places[ours].tolist(), scores[ours].tolist(), errors
            )
            for row, weight in zip(ours.tolist(), described, strict=True):
                rows[row] = weight
        return tuple(row for row in rows if row is not None)

    def _by_parameter(self, orders: Tensor) -> Iterator[tuple[Parameter, Tensor]]:
        """(a parameter, the rows that are of it, ascending), for each that has any."""
        by_order = torch.argsort(orders, stable=True)
        found, counts = torch.unique_consecutive(orders[by_order], return_counts=True)
        rows = by_order.split(counts.tolist())  # type: ignore[no-untyped-call]
        for order, ours in zip(found.tolist(), rows, strict=True):
            yield self._loaded.anatomy.by_order[order], ours


def rank(
    loaded: LoadedModel,
    statistics: Statistics,
    metric: str,
    k: int,
    with_lowest: bool = False,
    structure: str = "weight",
    scope: str = "global",
) -> Ranking:
    """The ranking by statistics that are all there; arguments as for `Ranker`."""
    ranker = Ranker(loaded, metric, k, with_lowest, structure, scope)
    ranker.offer(statistics)
    return ranker.ranking()


def shortened(ranking: Ranking, k: int) -> Ranking:
    """The ranking down to place k, where more was wanted for other purposes."""
    weights = ranking.top(k)
    return dataclasses.replace(
        ranking,
        weights=weights,
        lowest=ranking.lowest[: len(weights)],
        halves=tuple(half[:k] for half in ranking.halves),
        spikes=ranking.spikes[: len(weights)],
    )


def rankable(loaded: LoadedModel, statistics: Statistics, metric: Metric, structure: str) -> Iterator[Parameter]:
    """The parameters that have statistics and such structures, and that the metric ranks."""
    for name, parameter in loaded.anatomy.parameters.items():
        if name not in statistics or not unit_count(parameter, structure):
            continue
        if metric.ranks(statistics[name]):
            yield parameter


def unit_scores(
    loaded: LoadedModel, parameter: Parameter, stats: WeightStats, metric: Metric, structure: str
) -> Iterator[tuple[int, Tensor]]:
    """(number of the first unit, scores of the units from there on) until all units of a parameter are scored.

    The score of a structure is the sum over its weights.
    """
    row_numel = parameter.numel // parameter.shape[0] if parameter.shape else 1
    if structure == "weight":
        for start, scores in _scored_rows(loaded, parameter, stats, metric):
            yield start * row_numel, scores
        return
    stored_rows = (structure == "row") != parameter.transposed  # units are rows as stored; otherwise columns
    width = parameter.matrix_shape[1]
    totals = torch.zeros(parameter.numel // width if stored_rows else (parameter.experts or 1) * width)
    for start, scores in _scored_rows(loaded, parameter, stats, metric):
        lines = scores.reshape(-1, width)
        if stored_rows:
            first = start * row_numel // width
            totals[first : first + len(lines)] = lines.sum(1).cpu()
        elif parameter.experts:
            totals.view(-1, width)[start : start + len(scores)] = scores.sum(1).cpu()
        else:
            totals += lines.sum(0).cpu()
    if structure == "head":
        totals = totals.view(-1, parameter.head_size or 1).sum(1)
    yield 0, totals


def scores_at(
    loaded: LoadedModel, statistics: Statistics, metric: Metric, structure: str, units: Selection
) -> dict[str, NDArray[np.float64]]:
    """The scores of chosen units, in their order, of every parameter that the metric ranks."""
    found = {}
    for parameter in rankable(loaded, statistics, metric, structure):
        if parameter.name in units:
            wanted = torch.from_numpy(units[parameter.name])
            pieces = []
            for offset, scores in unit_scores(loaded, parameter, statistics[parameter.name], metric, structure):
                inside = wanted[(wanted >= offset) & (wanted < offset + scores.numel())] - offset
                pieces.append(scores.reshape(-1)[inside.to(scores.device)].cpu().double())
            found[parameter.name] = torch.cat(pieces).numpy()
    return found


def _scored_rows(
    loaded: LoadedModel, parameter: Parameter, stats: WeightStats, metric: Metric
) -> Iterator[tuple[int, Tensor]]:
    """(first row, scores) of the stored tensor, some rows of its first axis at a time."""
    weight = loaded.model.get_parameter(parameter.name).detach()
    if not parameter.shape:
        weight = weight.reshape(1)
    precision = torch.promote_types(weight.dtype, torch.float32)
    piece = _PIECE if weight.device.type == "cpu" else _PIECE_ON_GPU
    step = max(1, piece * len(weight) // max(1, parameter.numel))
    for start in range(0, len(weight), step):
        stop = min(start + step, len(weight))
        assert metric.score is not None
        factors = weight[start:stop].to(precision)
        yield start, metric.score(factors + parameter.offset if parameter.offset else factors, stats.rows(start, stop))


def describe_unit(
    loaded: LoadedModel, parameter: Parameter, structure: str, unit: int, place: int, score: float | None
) -> TopWeight:
    """A unit of a parameter as a row of a ranking; the value of a structure is its Euclidean norm."""
    return describe_units(loaded, parameter, structure, [unit], [place], [score])[0]


def describe_units(
    loaded: LoadedModel,
    parameter: Parameter,
    structure: str,
    units: Sequence[int],
    places: Sequence[int],
    scores: Sequence[float | None],
    errors: Sequence[float | None] | None = None,
) -> list[TopWeight]:
    """Units of a parameter as rows of a ranking, in their order."""
    numbers = np.array(units, dtype=np.int64)
    first = first_weights(parameter, structure, numbers)
    where = parameter.places(first)
    nothing = itertools.repeat(None)
    return list(
        map(
            TopWeight,
            places,
            itertools.repeat(parameter.name),
            first.tolist(),
            nothing if structure in ("column", "head") else where.out_features.tolist(),
            nothing if structure in ("row", "head") or parameter.is_vector else where.in_features.tolist(),
            _values(loaded, parameter, structure, numbers),
            scores,
            itertools.repeat(parameter.layer),
            itertools.repeat(parameter.component),
            nothing if parameter.experts is None else where.experts.tolist(),
            target_names(parameter, structure, first),
            nothing,  # stable
            itertools.repeat(fan_out(loaded, parameter) if structure == "weight" else None),
            errors or nothing,
        )
    )


def _values(loaded: LoadedModel, parameter: Parameter, structure: str, units: NDArray[np.int64]) -> list[float]:
    """The values of single weights, the Euclidean norms of structures."""
    stored = loaded.model.get_parameter(parameter.name).detach().reshape(-1)
    if structure == "weight":
        return [float(value) for value in stored[torch.from_numpy(units).to(stored.device)].tolist()]
    weights = (torch.from_numpy(unit_weights(parameter, structure, units[i : i + 1])) for i in range(len(units)))
    return [float(stored[indices.to(stored.device)].cpu().double().norm()) for indices in weights]
