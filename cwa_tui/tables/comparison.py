"""A comparison of runs as tables: columns and rows for the command line and the full-screen interface. No Textual in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cwa_engine.base.p_values import p_text
from cwa_engine.records.compared import ComparedRun, Comparison, RankingOverlap
from cwa_engine.records.curves import MEDIAN, DamageLevel
from cwa_engine.records.differences import NATS
from cwa_engine.records.profiles import COMPONENT, DEPTH, ProfileShare
from cwa_engine.rows import MATRICES, exp
from cwa_tui.tables.columns import Column
from cwa_tui.tables.rows import TableRow, ViewTable
from cwa_tui.text import format as fmt

ALL = "all ranked"
_BARS = {1: 14, 2: 14, 3: 10, 4: 6}  # cells of a bar, by the number of runs beside each other
INTERVAL = " interval"  # behind the key of a figure, of its 95 % interval


def metrics_of(found: Comparison) -> list[str]:
    """The rankings that there is something to say of, in the order of the runs."""
    metrics = [row.metric for row in found.overlaps]
    metrics += [row.metric for row in found.shares]
    metrics += [row.metric for row in found.damage]
    return list(dict.fromkeys(metrics))


def ranking_name(metric: str) -> str:
    return f"{metric.removesuffix(MATRICES)}, matrices alone" if metric.endswith(MATRICES) else metric


def perturbations_of(found: Comparison, metric: str) -> list[str]:
    """How critical sets of a ranking were damaged in any of the runs."""
    return list(dict.fromkeys(level.perturbation for level in found.damage if level.metric == metric))


def runs_table(found: Comparison) -> ViewTable:
    """The runs by the names that the other tables give them."""
    columns = (
        Column("label", "run", 6, most=32),
        Column("model", "model", 14, most=40, cut="start"),
        Column("perplexity", "perplexity", 10, right=True),
        Column("bits_per_byte", "bits/byte", 9, right=True, optional=1),
        Column("run", "run id", 24, most=60, cut="start"),
    )
    rows = []
    for run in found.runs:
        values = {
            "label": run.label, "model": run.model, "perplexity": run.perplexity, "bits_per_byte": run.bits_per_byte,
            "run": run.run,
        }  # fmt: skip
        shown = {"perplexity": fmt.perplexity(run.perplexity), "bits_per_byte": _fixed(run.bits_per_byte)}
        rows.append(_row(run.run, values, shown))
    return ViewTable("runs", columns, tuple(rows))


def differences_table(found: Comparison) -> ViewTable:
    """Everything that is not the same in all runs, a line each."""
    columns = (
        Column("part", "", 8),
        Column("what", "differs", 18, most=22),
        *(Column(run.run, run.label, 12, most=30, cut="middle") for run in found.runs),
    )
    rows = []
    for entry in found.differences:
        values = dict(zip((run.run for run in found.runs), entry.values, strict=True))
        rows.append(_row(f"{entry.part} {entry.what}", {"part": entry.part, "what": entry.what, **values}, {}))
    return ViewTable("what differs", columns, tuple(rows))


def overlaps_table(found: Comparison, metric: str) -> ViewTable:
    """What the top k of each pair of runs share, beside what random sets share."""
    columns = (
        Column("pair", "runs", 9, most=40),
        Column("k", "k", 6, right=True),
        Column("common", "shared", 9, most=16, right=True),
        Column("expected", "chance", 8, right=True),
        Column("p_value", "p", 7, right=True),
        Column("expected_within", "within", 8, right=True),
        Column("p_within", "p within", 8, right=True),
        Column("kendall", "tau", 6, right=True, optional=1),
        Column("rbo", "RBO", 5, right=True, optional=2),
        Column("jaccard", "Jaccard", 7, right=True, optional=3),
        Column("spearman", "rho", 6, right=True, optional=4),
        Column("kendall_p", "p of tau", 8, right=True, optional=5),
        Column("population", "ranked", 13, right=True, optional=6),
    )
    rows = [_overlap_row(found, row) for row in found.overlaps if row.metric == metric]
    return ViewTable("shared weights", columns, tuple(rows))


def _overlap_row(found: Comparison, row: RankingOverlap) -> TableRow:
    pair = f"{found.label(row.first)} {found.label(row.second)}"
    sizes = f"{row.of_first:,}" if row.of_first == row.of_second else f"{row.of_first:,}/{row.of_second:,}"
    values: dict[str, Any] = {
        name: getattr(row, name)
        for name in (
            "metric", "k", "first", "second", "of_first", "of_second", "common", "expected", "p_value", "expected_within",
            "p_within", "kendall", "rbo", "jaccard", "spearman", "kendall_p", "population",
        )
    }  # fmt: skip
    shown = {
        "k": f"{row.k:,}",
        "common": f"{row.common:,} of {sizes}",
        **{name: _short(values[name]) for name in ("expected", "p_value", "expected_within", "p_within", "kendall_p")},
        **{name: _fixed(values[name]) for name in ("rbo", "jaccard")},
        **{name: "-" if values[name] is None else f"{values[name]:+.2f}" for name in ("kendall", "spearman")},
        "population": "-" if row.population is None else f"{row.population:,}",
    }
    return _row(f"{pair} {row.k}", {"pair": pair, **values}, shown)


def damage_table(found: Comparison, metric: str, perturbation: str) -> ViewTable:
    """The logarithm of the perplexity ratio by k: of each run's critical set, and of the leading draw of each control."""
    levels = [level for level in found.damage if (level.metric, level.perturbation) == (metric, perturbation)]
    runs = [run for run in found.runs if any(level.run == run.run for level in levels)]
    columns = [
        Column("k", "k", max(len(f"{level.k:,}") for level in levels) if levels else 1, right=True),
        Column("selection", "selection", 12, most=24, cut="middle"),
        *(Column(run.run, f"Δ {run.label}"[-8:], 8, most=9, right=True) for run in runs),
        *(Column(run.run + INTERVAL, f"95 % {run.label}", 18, most=22, optional=1) for run in runs),
    ]
    rows = []
    for k in sorted({level.k for level in levels}):
        for selection in dict.fromkeys(level.selection for level in levels if level.k == k):
            here = {
                level.run: level
                for level in levels
                if (level.k, level.selection) == (k, selection) and level.figure != MEDIAN
            }
            rows.append(_level_row(k, selection, here))
    return ViewTable(f"damage by {perturbation}, nats per token", tuple(columns), tuple(rows))


def _level_row(k: int, selection: str, here: Mapping[str, DamageLevel]) -> TableRow:
    values: dict[str, Any] = {"k": k, "selection": selection}
    shown = {"k": f"{k:,}"}
    for run, level in here.items():
        values |= {run: level.log_ratio, run + INTERVAL: _ends(level)}
        shown[run] = "collapsed" if level.collapsed else fmt.delta(level.log_ratio)
        shown[run + INTERVAL] = fmt.interval(level.low, level.high)
    return _row(f"{k} {selection}", values, shown, "bold" if selection == "critical" else "")


def levels_table(found: Comparison, metric: str, perturbation: str) -> ViewTable:
    """The same with a row for each run, which fits any number of runs; of controls the leading draw."""
    columns = (
        Column("k", "k", 6, right=True),
        Column("selection", "selection", 14, most=24, cut="middle"),
        Column("run", "run", 5, most=32, cut="start"),
        Column("log_ratio", "Δ nats", 9, right=True),
        Column("ratio", "perplexity", 10, right=True),
        Column("interval", "95 % interval", 20),
        Column("texts", "texts", 5, right=True, optional=1),
        Column("bits_per_byte", "Δ bits/byte", 11, right=True, optional=2),
    )
    levels = [
        level
        for level in found.damage
        if (level.metric, level.perturbation) == (metric, perturbation) and level.figure != MEDIAN
    ]
    order = {selection: place for place, selection in enumerate(dict.fromkeys(level.selection for level in levels))}
    rows = []
    for level in sorted(levels, key=lambda level: (level.k, order[level.selection])):
        ratio = None if level.log_ratio is None else exp(level.log_ratio)
        values = {
            "k": level.k, "selection": level.selection, "run": found.label(level.run), "log_ratio": level.log_ratio,
            "ratio": ratio, "interval": _ends(level), "texts": level.texts, "bits_per_byte": level.bits_per_byte,
        }  # fmt: skip
        shown = {
            "k": f"{level.k:,}",
            "log_ratio": "collapsed" if level.collapsed else fmt.delta(level.log_ratio),
            "ratio": fmt.ratio(ratio),
            "interval": fmt.interval(level.low, level.high),
            "bits_per_byte": fmt.delta(level.bits_per_byte),
        }
        key = f"{level.k} {level.selection} {level.run}"
        rows.append(_row(key, values, shown, "bold" if level.selection == "critical" else ""))
    return ViewTable(f"damage by {perturbation}; of controls the leading draw", columns, tuple(rows))


def _ends(level: DamageLevel) -> str:
    return "" if level.low is None or level.high is None else f"[{level.low!r}, {level.high!r}]"


def paired_table(found: Comparison, metric: str) -> ViewTable:
    """How much more one run's critical set does than another's, and of a forced difference what speaks against it."""
    rows_of = [row for row in found.damage_differences if row.metric == metric]
    columns = [
        Column("pair", "first − second", 14, most=40),
        Column("k", "k", 6, right=True),
        Column("perturbation", "perturbation", 12, most=20),
        Column("difference", "Δ − Δ", 9, right=True),
        Column("interval", "95 % interval", 20),
        Column("texts", "texts", 6, right=True, optional=1),
    ]
    columns += [Column("unit", "unit", 14)] if any(row.unit != NATS for row in rows_of) else []
    columns += [Column("reasons", "although", 20, most=200)] if any(row.reasons for row in rows_of) else []
    rows = []
    for row in rows_of:
        pair = f"{found.label(row.first)} − {found.label(row.second)}"
        values = {
            "pair": pair, "k": row.k, "perturbation": row.perturbation, "difference": row.difference,
            "interval": f"[{row.low!r}, {row.high!r}]", "texts": row.texts, "unit": row.unit,
            "reasons": "; ".join(row.reasons),
        }  # fmt: skip
        shown = {
            "k": f"{row.k:,}",
            "difference": fmt.delta(row.difference),
            "interval": fmt.interval(row.low, row.high),
        }
        rows.append(_row(f"{pair} {row.k} {row.perturbation}", values, shown, "bold" if row.is_clear else ""))
    alike = all(row.paired for row in rows_of)
    return ViewTable(f"difference of damage{', on the same texts' if alike else ''}", tuple(columns), tuple(rows))


def profile_table(found: Comparison, metric: str, by: str, k: int) -> ViewTable:
    """The share of each part of the model in each run's top k, and in all that was ranked."""
    rows_of = [row for row in found.shares if (row.metric, row.by, row.k) == (metric, by, k)]
    runs = [run for run in found.runs if any(row.run == run.run for row in rows_of)]
    length = _BARS[len(runs)]
    columns = [Column("part", by, 18)]
    columns += [Column(run.run, run.label, 5 + length) for run in runs]
    columns += [
        Column(f"{run.run} {ALL}", label, 12, right=True, optional=2) for run, label in _populations(runs, rows_of)
    ]
    rows = []
    for part in dict.fromkeys(row.part for row in rows_of):
        here = {row.run: row for row in rows_of if row.part == part}
        if not any(row.count or row.eligible for row in here.values()):
            continue
        values: dict[str, Any] = {"part": part}
        shown: dict[str, str] = {}
        for run, row in here.items():
            values |= {run: row.share, f"{run} {ALL}": row.eligible}
            shown |= {
                run: f"{row.share:4.0%} {'█' * round(length * row.share)}",
                f"{run} {ALL}": "-" if row.eligible is None else f"{row.eligible:.2%}",
            }
        rows.append(_row(part, values, shown))
    return ViewTable(f"top {k:,} by {by}", tuple(columns), tuple(rows))


def _populations(runs: Sequence[ComparedRun], shares: Sequence[ProfileShare]) -> list[tuple[ComparedRun, str]]:
    """(run, heading) of the shares in all that was ranked: once where they are the same in all runs."""
    of_run = {run.run: [row.eligible for row in shares if row.run == run.run] for run in runs}
    if len(set(map(tuple, of_run.values()))) == 1:
        return [(runs[0], "of all")]
    return [(run, f"{run.label}, all") for run in runs]


def profile_tables(found: Comparison, metric: str) -> Iterator[ViewTable]:
    """By component and by depth, at the largest k."""
    for by in (COMPONENT, DEPTH):
        if k := largest_k(found, metric, by):
            yield profile_table(found, metric, by, k)


def largest_k(found: Comparison, metric: str, by: str) -> int:
    """The largest k of which shares are known; 0 for none."""
    return max((row.k for row in found.shares if (row.metric, row.by) == (metric, by)), default=0)


def distance_lines(found: Comparison, metric: str, by: str, k: int) -> list[str]:
    """How far the shares of each pair of runs lie apart: `a1b2 c3d4: 40 % apart, by chance 25 % (p = 0.08)`."""
    return [
        f"{found.label(row.first)} {found.label(row.second)}: {row.distance:.0%} apart, by chance {row.expected:.0%} "
        f"({p_text(row.p_value)})"
        for row in found.distances
        if (row.metric, row.by, row.k) == (metric, by, k)
    ]


def _row(key: str, values: Mapping[str, Any], shown: Mapping[str, str], style: str = "") -> TableRow:
    cells = {name: "-" if value is None else str(value) for name, value in values.items()} | dict(shown)
    return TableRow(key, cells, style, values=values)


def _short(value: float | None) -> str:
    """`0.025`, `2e-58`, `0` where it is below what floats hold."""
    return "-" if value is None else f"{value:.2g}"


def _fixed(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
