"""How few weights it takes to break each model of a study, and how that goes with size. torch-free."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cwa_engine.base.p_values import LEVEL, p_text
from cwa_engine.records.run_summary import DamageSummary
from cwa_engine.studies.analysis.laws import LEAST_SIZES, require_scipy, trend
from cwa_engine.studies.analysis.series import model_of, others_of
from cwa_engine.studies.analysis.words import counted, figure, listed
from cwa_engine.studies.answer import Finding, StudyRun

FACTOR = 10.0  # of perplexity, as `cwtool ablate` looks for
SEARCHED, BY_FACTOR, BY_CONTROLS = "critical set", "perplexity", "controls"


@dataclass(frozen=True, slots=True)
class KillSet:
    """How many weights break a model. `size` is None where no set that was measured does; `most` is the largest of them.

    By "critical set" it is the smallest set that the run found (`--critical-set`); by "perplexity" the smallest k of those
    measured that multiplies perplexity by the factor, by "controls" the smallest that is told from its controls.
    """

    model: str
    parameters: int
    others: str
    metric: str
    by: str
    factor: float | None
    size: int | None
    below: int | None  # the largest k measured that is not enough; the true size is above it
    most: int
    ratio: float | None  # of perplexities on the evaluation texts


def kill_sets(runs: Sequence[StudyRun]) -> list[KillSet]:
    """One for each model and metric, by one rule for all: the first of the three by which all have a size, else the last."""
    searched = [_searched(run) for run in runs]
    if runs and all(searched) and len({entry.factor for entry in searched if entry}) == 1:
        return _sorted([entry for entry in searched if entry])
    by_factor = [entry for run in runs for entry in _measured(run, BY_FACTOR)]
    if by_factor and all(entry.size is not None for entry in by_factor):
        return _sorted(by_factor)
    return _sorted([entry for run in runs for entry in _measured(run, BY_CONTROLS)])


def _sorted(found: list[KillSet]) -> list[KillSet]:
    return sorted(found, key=lambda entry: (entry.metric, entry.others, entry.parameters))


def _searched(run: StudyRun) -> KillSet | None:
    found = run.report.critical_set
    if found is None:
        return None
    size = len(found.steps) if found.reached else None
    ratio = found.steps[-1].perplexity_ratio if found.steps else None
    return KillSet(
        model_of(run), run.report.model.parameters, others_of(run), "ablation", SEARCHED, found.factor, size, None,
        len(found.steps), ratio,
    )  # fmt: skip


def _measured(run: StudyRun, by: str) -> Iterator[KillSet]:
    """By the critical sets of each metric that were zeroed."""
    groups = [group for group in run.report.summary.damage if group.critical and group.perturbation == "zero"]
    for metric in dict.fromkeys(group.metric for group in groups):
        of_metric = sorted((group for group in groups if group.metric == metric), key=lambda group: group.k)
        enough = next((group for group in of_metric if _is_enough(group, by)), None)
        below = [group.k for group in of_metric if enough is None or group.k < enough.k]
        ratio = enough.critical.perplexity_ratio if enough and enough.critical else None
        yield KillSet(
            model_of(run), run.report.model.parameters, others_of(run), metric, by, FACTOR if by == BY_FACTOR else None,
            enough.k if enough else None, max(below, default=None), of_metric[-1].k,
            ratio if ratio is not None and math.isfinite(ratio) else None,
        )  # fmt: skip


def _is_enough(group: DamageSummary, by: str) -> bool:
    assert group.critical
    if by == BY_CONTROLS:
        return group.outcome == "harmful"
    return group.critical.collapsed_at is not None or group.critical.perplexity_ratio >= FACTOR


def kill_set_findings(found: Sequence[KillSet]) -> Iterator[Finding]:
    """How many weights each model takes, and whether that goes with size."""
    for metric, others in dict.fromkeys((entry.metric, entry.others) for entry in found):
        entries = [entry for entry in found if (entry.metric, entry.others) == (metric, others)]
        head = entries[0]
        rule = {
            SEARCHED: f"the smallest set found that multiplies perplexity by {head.factor or 0:g} on the scoring texts",
            BY_FACTOR: f"the smallest k measured that multiplies perplexity by {FACTOR:g}",
            BY_CONTROLS: "the smallest k measured that is told from its controls",
        }[head.by]
        sizes = listed([f"{entry.model} {_size(entry)}" for entry in entries])
        name = f"{metric}{f', {others}' * bool(others)}"
        yield Finding(
            f"weights needed by {name} ({rule}): {sizes}{_law(entries)}",
            "a smaller set of other weights that does as much: these are the smallest found, not the smallest there are",
        )


def _size(entry: KillSet) -> str:
    if entry.size is None:
        return f"more than {entry.most}" if entry.by != SEARCHED else f"not with all {entry.most} of the pool"
    return f"{entry.size}" if entry.below is None else f"{entry.size} (more than {entry.below})"


def _law(entries: Sequence[KillSet]) -> str:
    """What can be said of a power law: sizes of sets have no errors, so orders and bends are tested, not misfit."""
    sizes = [entry.parameters for entry in entries]
    if len(set(sizes)) < LEAST_SIZES:
        return f"; no law is fitted to {counted(len(set(sizes)), 'size')}"
    if entries[0].by != SEARCHED:
        return (
            "; no law is fitted to sets of the few sizes that were measured (add --metric ablation --critical-set 10)"
        )
    if any(entry.size is None for entry in entries):
        return "; no law is fitted, as not every model has such a set"
    if why := require_scipy():
        return f"; no law is fitted: {why}"
    if len({entry.size for entry in entries}) == 1:
        return "; all are of one size, so no scaling was found"
    found = trend(sizes, [float(entry.size or 0) for entry in entries])
    said = (
        f"; exponent of a power law {figure(found.slope, found.low, found.high)}, {p_text(found.p_trend)} of all orders"
    )
    if found.p_trend > LEVEL:
        return f"{said}: no scaling was found"
    if found.p_bend is None:
        return f"{said}; whether it is a power law is not tested with fewer than {LEAST_SIZES + 1} sizes"
    if found.p_bend <= LEVEL:
        return f"{said}, but it bends ({p_text(found.p_bend)}): no power law"
    return f"{said}; no bend was found ({p_text(found.p_bend)})"
