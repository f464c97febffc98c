"""One weight in words and characters: where it sits, the values of its tensor, its row and column. No Textual in it."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cwa_engine.rows import PlacedValue, TopWeight, ValueDistribution, WeightFacts, WeightLine
from cwa_tui.store.measured_alone import Alone
from cwa_tui.tables.columns import shorten
from cwa_tui.text import format as fmt
from cwa_tui.text.visible import words

BLOCKS = " ▁▂▃▄▅▆▇█"
HERE = "▲"
_TABLE: dict[str, Any] = {
    "box": None, "pad_edge": False, "padding": (0, 2, 0, 0), "title_justify": "left", "title_style": "bold",
    "header_style": "dim",
}  # fmt: skip
_KINDS = {"weight": "weights", "row": "rows", "column": "columns", "head": "heads"}


@dataclass(frozen=True, slots=True)
class Ranked:
    """The weight in one ranking of the run; without `weight` it is not in it. `depth` is how many weights that has."""

    metric: str
    depth: int | None  # None while the ranking is on its way
    weight: TopWeight | None = None


def place(weight: TopWeight, facts: WeightFacts | None) -> Text:
    """Where it sits."""
    layer = "outside the decoder blocks" if weight.layer is None else f"decoder block {weight.layer}"
    at = [layer, f"component {weight.component}"]
    at += [
        f"{name} {number}"
        for name, number in (
            ("expert", weight.expert),
            ("out feature", weight.out_feature),
            ("in feature", weight.in_feature),
        )
        if number is not None
    ]
    lines = [words(weight.target, "bold"), Text(" · ".join(at))]
    if weight.fan_out is not None:
        lines.append(Text(f"{weight.fan_out:,} weight{'s read' if weight.fan_out != 1 else ' reads'} what it writes"))
    if facts:
        shape = " x ".join(f"{size:,}" for size in facts.shape)
        order = "[in, out]" if facts.transposed else "[out, in]" if len(facts.shape) > 1 else "one dimension"
        lines.append(Text(f"tensor {shape}, stored as {order}, {facts.dtype} · flat index {facts.flat_index:,}"))
    return Text("\n").join(lines)


def value(weight: TopWeight, facts: WeightFacts | None) -> Text:
    """Its value and its rank among its like."""
    said = Text("norm " if facts and facts.structure != "weight" else "value ", "")
    if facts is None:
        return said.append(fmt.number(weight.value), "bold")
    said.append(f"{facts.value:.6g}" if math.isfinite(facts.value) else fmt.NOT_FINITE, "bold")
    spread, like = facts.distribution, _KINDS[facts.structure]
    if facts.rank is not None and facts.smaller_share is not None:
        ties = f", {facts.equal:,} equal" if facts.equal else ""
        said.append(f" · rank {facts.rank:,} of {spread.count:,} by |value|{ties} · ")
        said.append(f"larger than {_percent(facts.smaller_share)} of the {like} of its tensor")
    if spread.std > 0 and math.isfinite(facts.value):
        said.append(f" · {(facts.value - spread.mean) / spread.std:+.2f} standard deviations from the mean")
    if spread.not_finite:
        said.append(f" · {spread.not_finite:,} are not finite", "bold")
    return said


def changed_since(weight: TopWeight, facts: WeightFacts | None) -> str:
    """A warning where the model holds another value than the run found; empty where it does not."""
    close = 1e-6 if facts and facts.structure == "weight" else 1e-3
    if facts is None or math.isclose(facts.value, weight.value, rel_tol=close, abs_tol=1e-30):
        return ""
    return f"the run found {fmt.number(weight.value)} here: the model's files have changed since"


def _percent(share: float) -> str:
    """`99.9987 %`: as many digits as it takes to tell it from all."""
    missing = 100 * (1 - share)
    digits = 1 if missing >= 0.1 else 0 if missing <= 0 else min(9, 1 - math.floor(math.log10(missing)))
    return f"{100 * share:.{digits}f} %"


def histogram(spread: ValueDistribution, at: float, width: int, height: int = 6) -> Text:
    """The counts of all values in columns of a logarithmic height, with a mark below the bin of one value."""
    if not spread.counts:
        return Text("no value of its tensor is finite")
    each = max(1, -(-len(spread.counts) // max(8, width)))  # bins to a column
    counts = [sum(spread.counts[start : start + each]) for start in range(0, len(spread.counts), each)]
    edges = [*spread.edges[:-1:each], spread.edges[-1]]
    most = math.log1p(max(counts))
    levels = [max(1, round(8 * height * math.log1p(count) / most)) if count else 0 for count in counts]
    here = min(len(counts) - 1, max(0, bisect.bisect_right(edges, at) - 1)) if math.isfinite(at) else None
    lines = []
    for row in reversed(range(height)):
        line = Text(no_wrap=True)
        for number, level in enumerate(levels):
            line.append(
                BLOCKS[min(8, max(0, level - 8 * row))], "bold reverse" if number == here and level > 8 * row else ""
            )
        lines.append(line)
    if here is not None:
        lines.append(Text(" " * here + HERE, "bold"))
    low, high = fmt.number(edges[0]), fmt.number(edges[-1])
    lines.append(Text(low + " " * max(1, len(counts) - len(low) - len(high)) + high, "dim"))
    lines.append(Text(f"heights are logarithms: the highest column has {max(counts):,} values", "dim"))
    return Text("\n").join(lines)


def quantiles(spread: ValueDistribution) -> RenderableType:
    """Mean, standard deviation and quantiles of its tensor."""
    table = Table(show_header=False, **_TABLE)
    pairs = [("mean", spread.mean), ("std", spread.std)]
    pairs += [(_quantile_name(row.share), row.value) for row in spread.quantiles]
    rows = -(-len(pairs) // 3)
    for start in range(rows):
        table.add_row(*(cell for name, number in pairs[start::rows] for cell in (name, fmt.number(number))))
    return table


def _quantile_name(share: float) -> str:
    return {0.0: "least", 0.5: "median", 1.0: "most"}.get(share, f"{100 * share:g} %")


def ranks(rows: Sequence[Ranked]) -> Table:
    """Its score and rank by each metric of the run."""
    table = Table(title="by the metrics of this run", **_TABLE)
    for name in ("metric", "rank", "score"):
        table.add_column(name, justify="left" if name == "metric" else "right")
    for row in rows:
        if row.depth is None:
            table.add_row(row.metric, "...", "")
        elif row.weight is None:
            table.add_row(row.metric, f"not in the top {row.depth:,}", "")
        else:
            score = "-" if row.weight.score is None else fmt.number(row.weight.score)
            table.add_row(row.metric, f"{row.weight.rank:,} of {row.depth:,}", score)
    return table


def alone(rows: Sequence[Alone], nothing: str) -> RenderableType:
    """What damaging it alone does to the loss, as far as that was measured."""
    if not rows:
        return words(nothing)
    table = Table(title="damaged alone", **_TABLE)
    for name in ("change", "Δ nats/token", "95 % interval"):
        table.add_column(name, justify="right" if name.startswith("Δ") else "left")
    for row in rows:
        delta = fmt.delta(row.delta) if math.isfinite(row.delta) else fmt.NOT_FINITE
        table.add_row(row.what, delta, fmt.interval(row.low, row.high))
    return table


def line(found: WeightLine, target: str, width: int) -> RenderableType:
    """A row or column: the weights around it in order, and the largest of all."""
    rank = "" if found.rank is None else f", this one is rank {found.rank:,} by |value|"
    title = words(f"{found.kind} {found.target}: {found.weights:,} weights, norm {fmt.number(found.norm)}{rank}")
    room = max(12, (width - 30) // (2 if found.around else 1))
    table = Table(**_TABLE)
    sides: list[tuple[str, Sequence[PlacedValue]]] = [("largest", found.largest)]
    if found.around:
        sides.insert(0, ("around", found.around))
    for name, _ in sides:
        table.add_column(name)
        table.add_column("value", justify="right")
    for at in range(max(len(values) for _, values in sides)):
        cells: list[Text] = []
        for _, values in sides:
            if at >= len(values):
                cells += [Text(""), Text("")]
                continue
            style = "bold" if values[at].target == target else ""
            mark = f"{HERE} " if style else "  "
            name = "[" + values[at].target.partition("[")[2]
            cells += [words(mark + shorten(name, room, "start"), style), Text(fmt.number(values[at].value), style)]
        table.add_row(*cells)
    return Group(title, table)
