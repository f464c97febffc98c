"""The share of the top of a ranking in each layer, beside that of weights drawn at random. torch-free."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from cwa_engine.figures.captions import LAYER_OUTSIDE, model_of, ranking_of, scored_on, units_of
from cwa_engine.figures.figure import Axis, Figure, FigureKind, Layer, figure_name, table_of
from cwa_engine.records.places import Places, places_of
from cwa_engine.records.profiles import top
from cwa_engine.records.run_report import RunReport

TOP, CHANCE = "top k", "by chance"


@dataclass(frozen=True, slots=True)
class LayerShare:
    """The share of one layer in the top k, or in all units that were ranked."""

    layer: str  # its number, or "outside" the blocks
    series: str  # TOP or CHANCE
    units: int
    share: float


def depth_profiles(report: RunReport) -> Iterator[Figure]:
    """A figure for each ranking."""
    for metric in report.metrics:
        if weights := top(report, metric, report.spec.largest_k):
            yield _profile(report, metric, places_of(weights, report.layers))


def _profile(report: RunReport, metric: str, places: Places) -> Figure:
    ranked: Counter[int | None] = Counter()
    for row in report.ranked:
        if metric in row.metrics:
            ranked[row.layer] += row.units
    has_outside = None in ranked and None not in places.layers
    layers = [None, *places.layers] if has_outside else places.layers
    rows = [
        LayerShare(_name(layer), series, of[layer], of[layer] / of.total())
        for series, of in ((TOP, places.by_layer), (CHANCE, ranked))
        for layer in layers
        if of
    ]
    name, k = figure_name("depth_profile", metric), report.spec.largest_k
    return Figure(
        name=name,
        title=f"Depth of the top {k:,} by {ranking_of(metric)}",
        caption=f"{model_of(report)}. {scored_on(report)} Bars: the share of each layer in the "
        f"{places.total:,} {units_of(report, metric)} of the top k = {k:,}. {_of_chance(bool(ranked))}",
        table=table_of(name, LayerShare, rows),
        x=Axis("layer", "layer", "category", tuple(_name(layer) for layer in layers)),
        y=Axis("share", f"share of {units_of(report, metric)}"),
        colour=Axis("series", "", "category", (TOP, CHANCE) if ranked else (TOP,)),
        layers=(
            Layer("bar", where=(("series", TOP),)),
            Layer("line", where=(("series", CHANCE),)),
            Layer("point", where=(("series", CHANCE),)),
        ),
    )


def _name(layer: int | None) -> str:
    return LAYER_OUTSIDE if layer is None else str(layer)


def _of_chance(is_known: bool) -> str:
    if not is_known:
        return "What was ranked in each layer is not known of this run."
    return "Line: its share in all that was ranked, which a random choice would have on average."


FIGURES = (
    FigureKind(
        "depth_profile", 40, "run", "the share of each layer in the top k, beside a random choice", depth_profiles
    ),
)
