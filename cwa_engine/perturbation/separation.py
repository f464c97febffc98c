"""Whether a critical set stands out from its controls: ratios, p-values and one plain sentence."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from cwa_engine.perturbation.cases import Case
from cwa_engine.perturbation.damage import Ground, Measured
from cwa_engine.result import GIVEN, Separation, Verdict
from cwa_engine.statistics import Array, empirical_p, holm, paired_delta, separation_ratio

# In nats per token, 10 % of perplexity. Models with random weights lose up to 0.04 by their top 5 to 100 (six
# architectures, widths 32 to 128), some of it beyond every draw of a control: less than this is no proof of anything.
LEAST_DELTA = 0.1


def separations(ground: Ground, measured: Sequence[Measured]) -> list[Separation]:
    """Each critical set against each of its controls; p-values are corrected for all sets that meet the same control."""
    found = []
    for critical in (entry for entry in measured if entry.is_critical and entry.case.treatment.has_controls):
        rivals = [m for m in measured if m.case.group == critical.case.group and not m.is_critical]
        for control in dict.fromkeys(rival.case.selection for rival in rivals):
            found.append(_separation(ground, critical, [m for m in rivals if m.case.selection == control]))
    for control in {row.control for row in found}:
        places = [place for place, row in enumerate(found) if row.control == control]
        for place, corrected in zip(places, holm([found[p].p_value for p in places]), strict=True):
            found[place] = dataclasses.replace(found[place], p_holm=corrected)
    return found


def _separation(ground: Ground, critical: Measured, draws: Sequence[Measured]) -> Separation:
    intact, sums = ground.intact, [draw.evaluation.nll_sums for draw in draws]
    deltas = [draw.point.delta_nll for draw in draws]
    delta, low, high = None, None, None
    if np.isfinite(sums).all():
        delta, low, high = paired_delta(np.mean(sums, axis=0), intact.nll_sums, intact.tokens, ground.resamples)
    ratio = separation_ratio(critical.evaluation.nll_sums, sums, intact.nll_sums, intact.tokens, ground.resamples)
    p_value = empirical_p(critical.point.delta_nll, deltas)
    metric, k, perturbation = critical.case.group
    return Separation(
        metric=metric,
        k=k,
        perturbation=perturbation,
        control=draws[0].case.selection,
        draws=len(draws),
        control_delta=delta,
        control_low=low,
        control_high=high,
        worst=max(deltas) if np.isfinite(deltas).all() else None,
        ratio=ratio[0] if ratio else None,
        low=ratio[1] if ratio else None,
        high=ratio[2] if ratio else None,
        p_value=p_value,
        p_holm=p_value,  # corrected when all are known
        beyond=_is_beyond(ground, critical, draws, deltas),
    )


def _is_beyond(ground: Ground, critical: Measured, draws: Sequence[Measured], deltas: Sequence[float]) -> bool:
    """Whether the critical set changes the loss more than the draw that changes it most, in either direction."""
    if not np.isfinite(deltas).all():
        return False
    if critical.point.collapsed_at:
        return True
    strongest = draws[int(np.argmax(np.abs(deltas)))]
    ours, theirs = _change_size(ground, critical), _change_size(ground, strongest)
    _, low, _ = paired_delta(ours, theirs, ground.intact.tokens, ground.resamples)
    return low > 0


def _change_size(ground: Ground, measured: Measured) -> Array:
    """Change of the NLL sums, turned so that its total is positive. [sequences]"""
    change = measured.evaluation.nll_sums - ground.intact.nll_sums
    return np.asarray(change * np.sign(change.sum()))


def verdicts(measured: Sequence[Measured], rows: Sequence[Separation]) -> list[Verdict]:
    """One sentence for every critical set that was compared with controls."""
    found = []
    for critical in measured:
        against = [row for row in rows if (row.metric, row.k, row.perturbation) == critical.case.group]
        if critical.is_critical and against:
            found.append(_verdict(critical, against))
    return found


def _verdict(critical: Measured, against: Sequence[Separation]) -> Verdict:
    case = critical.case
    delta, low, high = critical.point.delta_nll, critical.point.delta_low, critical.point.delta_high
    collapsed = critical.point.collapsed_at is not None
    costs = "costs" if delta > 0 else "changes the loss by"
    effect = f"{costs} {delta:+.4g} nats per token [{low:+.4g}, {high:+.4g}]"
    if collapsed:
        effect = "makes the model collapse"
    found = f"{case.treatment.perturbation.doing} {_set_name(case)} {effect}"
    rivals = [row.control for row in against if not row.beyond]
    if rivals:
        found += f", which a draw of {' and one of '.join(rivals)} cannot be told from"
    elif not collapsed and abs(delta) < LEAST_DELTA:
        found += f", beyond every draw, but less than {LEAST_DELTA} (10 % of perplexity), as in untrained models too"
    else:
        found += f", beyond every draw of {' and of '.join(f'{row.control} ({_evidence(row)})' for row in against)}"
    distinguishable = not rivals and (collapsed or abs(delta) >= LEAST_DELTA)
    verb = "is" if distinguishable else "is NOT"
    return Verdict(*case.group, distinguishable, f"The critical set {verb} distinguishable from its controls: {found}.")


def _set_name(case: Case) -> str:
    units = f"{case.k} {case.structure}s" if case.k > 1 else case.structure
    return f"the given {units}" if case.metric == GIVEN else f"the {units} with the largest {case.metric}"


def _evidence(row: Separation) -> str:
    draws = f"{row.draws} draw{'s' * (row.draws != 1)}"
    return f"worst of {draws} {row.worst or 0:+.4g}, p = {row.p_holm:.2g}"
