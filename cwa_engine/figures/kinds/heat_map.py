"""Where the top of a ranking lies: layer by component. torch-free."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from cwa_engine.figures.captions import LAYER_OUTSIDE, model_of, ranking_of, scored_on, units_of
from cwa_engine.figures.figure import Axis, Figure, FigureKind, Layer, figure_name, table_of
from cwa_engine.records.places import Places, places_of
from cwa_engine.records.profiles import top
from cwa_engine.records.run_report import RunReport


@dataclass(frozen=True, slots=True)
class HeatMapCell:
    """How many of the top k are in one component of one layer."""

    layer: str  # its number, or "outside" the blocks
    component: str
    count: int
    share: float  # of the top k
    by_chance: float | None  # the share of weights drawn at random; None where it is not known what was ranked


def heat_maps(report: RunReport) -> Iterator[Figure]:
    """A figure for each ranking."""
    for metric in report.metrics:
        weights = top(report, metric, report.spec.largest_k)
        if weights:
            yield _heat_map(report, metric, places_of(weights, report.layers))


def _heat_map(report: RunReport, metric: str, places: Places) -> Figure:
    name = figure_name("heat_map", metric)
    ranked: Counter[tuple[int | None, str]] = Counter()
    for row in report.ranked:
        if metric in row.metrics:
            ranked[row.layer, row.component] += row.units
    components = list(dict.fromkeys([*places.components, *(component for _, component in ranked)]))
    layers = (
        [None, *places.layers] if None not in places.layers and any(at is None for at, _ in ranked) else places.layers
    )
    cells = [
        HeatMapCell(
            layer=LAYER_OUTSIDE if layer is None else str(layer),
            component=component,
            count=places.counts.get((layer, component), 0),
            share=places.counts.get((layer, component), 0) / places.total,
            by_chance=ranked[layer, component] / ranked.total() if ranked else None,
        )
        for component in components
        for layer in layers
        if not ranked or (layer, component) in ranked or (layer, component) in places.counts
    ]
    k = report.spec.largest_k
    return Figure(
        name=name,
        title=f"Where the top {k:,} by {ranking_of(metric)} lie",
        caption=f"{model_of(report)}. {scored_on(report)} How many of the {places.total:,} "
        f"{units_of(report, metric)} of the top k = {k:,} are in "
        "each component of each layer; parts of the model that the metric does not rank have no cell.",
        table=table_of(name, HeatMapCell, cells),
        x=Axis("layer", "layer", "category", tuple(LAYER_OUTSIDE if layer is None else str(layer) for layer in layers)),
        y=Axis("component", "component", "category", tuple(components)),
        colour=Axis("count", f"of the top {places.total:,}", "symlog"),
        layers=(Layer("cell"),),
    )


FIGURES = (FigureKind("heat_map", 30, "run", "how many of the top k are in each component of each layer", heat_maps),)
