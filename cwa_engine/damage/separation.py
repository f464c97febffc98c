"""Whether a critical set is distinguishable from its controls: a rank test, a stated rule and one plain sentence.

The rule. A critical set is distinguishable where, for every control, it comes out of an elimination so far ahead of its draws,
of which there are at least 19, that p <= 0.05, and also changes the loss on all texts more than the first of the draws, by as
many texts as make that clear (`elimination.py`), and where its change is larger than the numerical floor. Sets of several
sizes are tested from the largest on, and no further once one fails: a fixed sequence keeps the error of the whole at that of
one test (Maurer et al. 1995). Fewer draws, fewer than 16 texts, or a model that is no better than guessing mean that nothing
was tested. The measured error rates are in docs/evidence.md.
torch-free: `records.verification` judges what is in files by the same rule.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from cwa_engine.base.p_values import LEVEL, p_text
from cwa_engine.base.statistics import as_extreme
from cwa_engine.damage.competition import compete, has_p, p_value
from cwa_engine.damage.elimination import LEAST_DRAWS, SAMPLE, comparable
from cwa_engine.damage.measured import Damaged, MeasuredComparison, Reference
from cwa_engine.damage.treatments import Comparison
from cwa_engine.methods.controls import CONTROLS
from cwa_engine.rows import GIVEN, MATRICES, SMALL, Baseline, Separation, Verdict

LEAST_TEXTS = 16


def separations(reference: Reference, measured: Sequence[MeasuredComparison]) -> list[Separation]:
    """Each critical set beside each of its controls."""
    return [
        _separation(reference, entry, entry.critical, control, draws)
        for entry in measured
        if entry.critical
        for control, draws in entry.draws.items()
    ]


def _separation(
    reference: Reference,
    entry: MeasuredComparison,
    critical: Damaged,
    control: str,
    draws: Sequence[Damaged],
) -> Separation:
    ours = _on_sample(reference, critical)
    ahead, largest, theirs = (_by_sample if reference.rule == SAMPLE else _by_elimination)(
        reference, critical, control, draws
    )
    size = max(largest.size, reference.rounding)
    finite = math.isfinite(critical.size) and math.isfinite(size) and size > 0
    metric, k, perturbation = entry.group
    return Separation(
        metric=metric,
        k=k,
        perturbation=perturbation,
        control=control,
        draws=len(draws),
        texts=len(reference.sample),
        critical=_finite(ours),
        median=_finite(statistics.median(theirs)),
        as_extreme=ahead,
        p_value=p_value(len(draws), ahead) if has_p(control, len(draws)) else None,
        largest=_finite(largest.point.delta_nll),
        largest_low=_finite(largest.point.delta_low),
        largest_high=_finite(largest.point.delta_high),
        ratio=critical.size / size if finite else None,
        beyond=critical.size > largest.size,
        largest_texts=None if reference.rule == SAMPLE else len(largest.measured.places),
    )


def _by_elimination(
    reference: Reference, critical: Damaged, control: str, draws: Sequence[Damaged]
) -> tuple[int, Damaged, list[float]]:
    """(how many draws are ahead of the critical set, the first draw, the change by each on the texts it was measured on)"""
    found = compete(reference, control, critical.measured, len(draws), lambda draw, texts: draws[draw].measured)
    return found.ahead, draws[found.first_draw], [comparable(draw.point.delta_nll) for draw in draws]


def _by_sample(
    reference: Reference, critical: Damaged, control: str, draws: Sequence[Damaged]
) -> tuple[int, Damaged, list[float]]:
    """The same by the earlier rule: every draw is measured on the sample, and the worst one there on all texts."""
    ours, *theirs = (_on_sample(reference, damaged) for damaged in (critical, *draws))
    largest = max(draws, key=lambda damaged: (len(damaged.measured.places), damaged.size))
    return as_extreme(ours, theirs), largest, theirs


def _on_sample(reference: Reference, damaged: Damaged) -> float:
    return damaged.measured.on(reference.sample).nll - reference.on(reference.sample).nll


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def verdicts(
    reference: Reference, baseline: Baseline, measured: Sequence[MeasuredComparison], rows: Sequence[Separation]
) -> list[Verdict]:
    """One verdict for every critical set that was compared with controls, in the order they were measured."""
    found: dict[tuple[str, int, str], Verdict] = {}
    compared = [entry for entry in measured if entry.critical and entry.draws]
    failed: dict[tuple[str, str], int] = {}  # (metric, perturbation) -> the size at which the sequence of tests ended
    for entry in sorted(compared, key=lambda entry: -entry.comparison.k):
        group = entry.group
        family = group[0], group[2]
        against = [row for row in rows if (row.metric, row.k, row.perturbation) == group]
        missing = _missing(reference, baseline, against)
        if not missing and family in failed:
            missing = [
                f"the larger set of {failed[family]:,} is not distinguishable, and sets are tested from the largest on"
            ]
        outcome, evidence = _outcome(reference, entry, against, missing)
        if outcome == "indistinguishable":
            failed.setdefault(family, group[1])
        found[group] = Verdict(*group, outcome, _sentence(entry, outcome, evidence))
    return [found[entry.group] for entry in compared]


def _missing(reference: Reference, baseline: Baseline, against: Sequence[Separation]) -> list[str]:
    """What a test would need and is not there."""
    missing = []
    for row in against:
        if CONTROLS[row.control].is_random and row.draws < LEAST_DRAWS:
            missing.append(
                f"{row.draws} draw{'s' * (row.draws != 1)} of {row.control} {'are' if row.draws != 1 else 'is'} too few for a "
                f"p-value, {LEAST_DRAWS} can show {LEVEL}"
            )
    if not any(CONTROLS[row.control].is_random for row in against):
        missing.append("no control is drawn at random")
    if len(reference.intact.tokens) < LEAST_TEXTS:
        texts = len(reference.intact.tokens)
        missing.append(f"{texts} text{'s were' if texts > 1 else ' was'} measured, {LEAST_TEXTS} are needed")
    if baseline.is_guessing:
        missing.append("the intact model is no better than guessing")
    return missing


def _outcome(
    reference: Reference, entry: MeasuredComparison, against: Sequence[Separation], missing: Sequence[str]
) -> tuple[str, str]:
    """(outcome, the evidence in words)"""
    critical = entry.critical
    assert critical
    if missing:
        return "not tested", f"{'; '.join(missing)} ({', '.join(map(_as_bad, against))})"
    if critical.size <= reference.rounding:
        return "indistinguishable", f"rounding alone changes the loss by up to {reference.rounding:.2g}"
    everything = len(reference.intact.tokens)
    rivals = [row for row in against if (row.p_value or 0) > LEVEL or not row.beyond]
    if rivals:
        return "indistinguishable", ", ".join(_why_not(row, everything) for row in rivals)
    return ("helpful" if critical.point.delta_nll < 0 else "harmful"), ", ".join(
        _beside(row, everything) for row in against
    )


def _why_not(row: Separation, everything: int) -> str:
    """What a critical set fails by: its place among the draws, or the draw that does as much on more texts."""
    if (row.p_value or 0) > LEVEL:
        return f"{_as_bad(row)}{_p(row)}"
    return f"{_beside(row, everything)}, but the set does no more than that draw"


def _beside(row: Separation, everything: int) -> str:
    return f"{_first(row)} {_change(row.largest)}{_on_texts(row, everything)}{_p(row)}"


def _as_bad(row: Separation) -> str:
    """ "0 of 3 draws of random came out ahead" """
    draws = f"{row.as_extreme} of {row.draws} draw{'s' * (row.draws != 1)} of {row.control}"
    return f"{draws} {'came out ahead' if _by_places(row) else 'change it as much'}"


def _first(row: Separation) -> str:
    """The draw that stands for a control: the others were measured on too few texts to say that it is the largest."""
    if not _by_places(row):
        return f"the largest of {row.draws} draws of {row.control}"
    others = f" that came out ahead of {row.draws - 1} others" if row.draws > 1 else ""
    return f"the draw of {row.control}{others}"


def _by_places(row: Separation) -> bool:
    """Whether draws competed on growing parts of the texts, or all were measured on the same, as in early versions."""
    return row.largest_texts is not None


def _p(row: Separation) -> str:
    return "" if row.p_value is None else f", {p_text(row.p_value)}"


def _on_texts(row: Separation, everything: int) -> str:
    """On how many texts that draw was measured, where these are not all."""
    return f" on {row.largest_texts} texts" if row.largest_texts not in (None, everything) else ""


def _change(delta: float | None) -> str:
    return "makes the model collapse" if delta is None else f"changes it by {delta:+.4g}"


_SAYS = {
    "harmful": "is distinguishable from its controls",
    "helpful": "is distinguishable from its controls, and the model is better without it",
    "indistinguishable": "is NOT distinguishable from its controls",
    "not tested": "was not tested against its controls",
}


def _sentence(entry: MeasuredComparison, outcome: str, evidence: str) -> str:
    critical = entry.critical
    assert critical
    point = critical.point
    effect = f"changes the loss by {point.delta_nll:+.4g} nats per token"
    if math.isfinite(point.delta_low) and math.isfinite(point.delta_high):  # one text has no interval
        effect += f" [{point.delta_low:+.4g}, {point.delta_high:+.4g}]"
    if point.collapsed_at:
        effect = "makes the model collapse"
    elif outcome in ("harmful", "helpful") and critical.size < SMALL:
        effect += f", a small effect (less than {SMALL})"
    gerund = entry.treatment.perturbation.gerund
    return f"The critical set {_SAYS[outcome]}: {gerund} {_set_name(entry.comparison)} {effect}; {evidence}."


def _set_name(comparison: Comparison) -> str:
    units = f"{comparison.k} {comparison.structure}s" if comparison.k > 1 else comparison.structure
    if comparison.metric == GIVEN:
        return f"the given {units}"
    if comparison.metric.endswith(MATRICES):
        return f"the {units} of the blocks' matrices with the largest {comparison.metric.removesuffix(MATRICES)}"
    return f"the {units} with the largest {comparison.metric}"
