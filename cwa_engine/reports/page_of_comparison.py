"""The page of a comparison: what runs share, in what they differ, and what may not be compared."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cwa_engine.records.compared import Comparison, RunPair
from cwa_engine.records.comparison_words import limits
from cwa_engine.reports.page_figures import figure_section
from cwa_engine.reports.page_of_run import ranking_name
from cwa_engine.reports.page_parts import Block, Code, Headline, Page, Prose, Section, Statement, Statements
from cwa_engine.reports.page_tables import Column, ends, number, percent, signed, table, text

_NOTES = (
    "Chance: what random sets of all ranked weights share; within: random sets with as many weights of each parameter; p: how "
    "often they share at least as many.",
    "Tau is Kendall's and rho Spearman's, of the places of shared weights. Δ is the change of the loss, the logarithm of the "
    "perplexity ratio.",
    "Each p and each interval is for its row alone; of twenty rows one misleads by chance.",
)


def comparison_parts(found: Comparison) -> Page:
    """All that the page of a comparison says."""
    runs = [run.run for run in found.runs]
    refused = tuple(limits(found))
    said = [sentence for sentence in found.sentences if sentence not in refused]
    return Page(
        subject=f"comparison {' '.join(runs)}",
        kicker=f"Comparison of {len(runs)} runs",
        title=" and ".join(dict.fromkeys(run.model for run in found.runs)),
        question="Do these runs name the same weights, and does damage to them do the same?",
        answer=tuple(map(Statement, (f"{found.differing[:1].upper()}{found.differing[1:]}.", *said))),
        headlines=tuple(Headline(f"Perplexity, {run.label}", number(run.perplexity), run.model) for run in found.runs),
        sections=(
            Section("refused", "Not compared", (Statements(tuple(map(Statement, refused))),) if refused else ()),
            figure_section(found, "comparison", " ".join(runs)),
            Section("shared", "Shared weights", tuple(_overlaps(found))),
            Section("damage", "Damage", tuple(_damage(found))),
            Section("places", "Where the weights are", tuple(_places(found))),
            Section("runs", "Runs, and in what they differ", tuple(_runs(found))),
            Section("limits", "How to read it", tuple(map(Prose, _NOTES))),
            Section("repeat", "How to repeat it", tuple(_repeat(found))),
        ),
    )


def _pair(found: Comparison) -> Column:
    return text("runs", lambda row: f"{found.label(row.first)} {found.label(row.second)}")


def _run(found: Comparison) -> Column:
    return text("run", lambda row: found.label(row.run))


def _metric() -> Column:
    return text("metric", lambda row: ranking_name(row.metric))


def _overlaps(found: Comparison) -> Iterator[Block]:
    if not found.overlaps:
        return
    columns = (
        _metric(), _pair(found), Column("k", "k"), Column("shared", "common"), Column("of the first", "of_first"),
        Column("of the second", "of_second"), Column("chance", "expected"), Column("p", "p_value"),
        Column("within", "expected_within"), Column("p within", "p_within"), Column("tau", "kendall"),
        Column("p of tau", "kendall_p"), Column("rho", "spearman"), Column("rank-biased overlap", "rbo"),
        Column("Jaccard", "jaccard"), Column("ranked", "population"), text("not known, as", "unknown"),
    )  # fmt: skip
    yield table("What the top k of two runs share", found.overlaps, columns, _whole(found))


def _damage(found: Comparison) -> Iterator[Block]:
    key = (_metric(), text("perturbation", "perturbation"), Column("k", "k"))
    if found.damage_differences:
        yield table(
            "Difference of damage, the first run less the second",
            found.damage_differences,
            (
                _pair(found), *key, Column("Δ − Δ", "difference", signed), ends("95 % interval", "low", "high"),
                text("unit", "unit"), Column("texts", "texts"), text("paired by text", "paired"),
                text("although", lambda row: "; ".join(row.reasons)),
            ),
            _whole(found),
        )  # fmt: skip
    if found.damage:
        yield table(
            "Damage of each run",
            found.damage,
            (
                _run(found), *key, text("selection", "selection"), text("draw", "figure"),
                Column("Δ loss (nats/token)", "log_ratio", signed), ends("95 % interval", "low", "high"),
                Column("Δ bits/byte", "bits_per_byte", signed), Column("texts", "texts"), text("collapsed", "collapsed"),
            ),
            _whole(found),
        )  # fmt: skip


def _places(found: Comparison) -> Iterator[Block]:
    if found.shares:
        columns: tuple[Column, ...] = (
            _run(found), _metric(), Column("k", "k"), text("by", "by"), text("part", "part"), Column("weights", "count"),
            Column("share", "share", percent), Column("share of all ranked", "eligible", percent),
        )  # fmt: skip
        rows = [row for row in found.shares if row.count or row.eligible]
        yield table("Shares of components and of depths", rows, columns, _whole(found))
    if found.distances:
        columns = (
            _pair(found), _metric(), Column("k", "k"), text("by", "by"), Column("apart", "distance", percent),
            Column("by chance", "expected", percent), Column("p", "p_value"),
        )  # fmt: skip
        yield table("How far the shares lie apart", found.distances, columns, _whole(found))


def _runs(found: Comparison) -> Iterator[Block]:
    columns = (
        text("run", "label"), text("model", "model"), Column("perplexity", "perplexity"),
        Column("bits/byte", "bits_per_byte"), text("run id", "run"),
    )  # fmt: skip
    yield table("Runs", found.runs, columns, _whole(found))
    if found.differences:
        values = (text(run.label, _value(place)) for place, run in enumerate(found.runs))
        yield table(
            "What differs", found.differences, (text("of", "part"), text("what", "what"), *values), _whole(found)
        )
    reasons = [Statement(line) for pair in found.pairs for line in _unlike(found, pair)]
    if reasons:
        yield Statements(tuple(reasons), "Why not all may be compared")


def _value(place: int) -> Any:
    return lambda row: row.values[place]


def _unlike(found: Comparison, pair: RunPair) -> Iterator[str]:
    both = f"{found.label(pair.first)} and {found.label(pair.second)}"
    for reason in pair.other_measuring:
        yield f"{both}: {reason}"
    for reason in pair.damage.reasons:
        yield f"{both}: {reason}"


def _whole(found: Comparison) -> str:
    return f"`cwtool compare {' '.join(run.run for run in found.runs)} --json`"


def _repeat(found: Comparison) -> Iterator[Block]:
    runs = " ".join(run.run for run in found.runs)
    yield Code("", "\n".join((f"cwtool compare {runs}", *(f"cwtool verify {run.run}" for run in found.runs))))
    if found.forced:
        yield Prose("Damage that was not measured alike was subtracted too, as --force asks.")
