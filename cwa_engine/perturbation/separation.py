"""Whether a critical set stands out from its controls: ratios, p-values and one plain sentence."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from cwa_engine.perturbation.damage import Ground, Measured
from cwa_engine.result import Separation, Verdict
from cwa_engine.statistics import empirical_p, holm, paired_delta, separation_ratio

LEAST_DELTA = 0.01  # nats per token, 1 % of perplexity: below, a set is not critical however significant the difference

_DONE = {
    "zero": "zeroing",
    "mean": "setting to the mean",
    "resample": "resampling",
    "sign_flip": "flipping the sign of",
    "scale": "scaling",
    "gaussian_noise": "adding noise to",
    "bit_flip": "flipping a bit of",
    "quantize": "quantizing",
}


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
    deltas = [ground.delta(draw.evaluation)[0] for draw in draws]
    control: tuple[float | None, ...] = (None, None, None)
    if np.isfinite(sums).all():
        control = paired_delta(np.mean(sums, axis=0), intact.nll_sums, intact.tokens, ground.resamples)
    ratio = separation_ratio(critical.evaluation.nll_sums, sums, intact.nll_sums, intact.tokens, ground.resamples)
    p_value = empirical_p(ground.delta(critical.evaluation)[0], deltas)
    return Separation(
        *critical.case.group,
        draws[0].case.selection,
        len(draws),
        *control,
        max(deltas) if np.isfinite(deltas).all() else None,
        *(ratio or (None, None, None)),
        p_value,
        p_value,
        _is_beyond(ground, critical, draws, deltas),
    )


def _is_beyond(ground: Ground, critical: Measured, draws: Sequence[Measured], deltas: Sequence[float]) -> bool:
    if not np.isfinite(deltas).all():
        return False
    if critical.collapsed_at:
        return True
    worst = draws[int(np.argmax(deltas))]
    _, low, _ = ground.delta(critical.evaluation, worst.evaluation)
    return low > 0


def verdicts(ground: Ground, measured: Sequence[Measured], rows: Sequence[Separation]) -> list[Verdict]:
    """One sentence for every critical set that was compared with controls."""
    found = []
    for critical in measured:
        against = [row for row in rows if (row.metric, row.k, row.perturbation) == critical.case.group]
        if critical.is_critical and against:
            found.append(_verdict(ground, critical, against))
    return found


def _verdict(ground: Ground, critical: Measured, against: Sequence[Separation]) -> Verdict:
    case = critical.case
    delta, low, high = ground.delta(critical.evaluation)
    collapsed = critical.collapsed_at is not None
    least = max(LEAST_DELTA, abs(ground.floor))
    matters = collapsed or low > least
    rivals = [row.control for row in against if not row.beyond]
    distinguishable = matters and not rivals
    what = f"{_DONE[case.perturbation]} the {case.k} weights of {case.metric}"
    cost = "makes the model collapse" if collapsed else f"costs {delta:+.4g} nats per token [{low:+.4g}, {high:+.4g}]"
    if distinguishable:
        beyond = " and ".join(f"{row.control} ({_evidence(row)})" for row in against)
        sentence = f"The critical set is distinguishable from its controls: {what} {cost}, more than any draw of {beyond}."
    else:
        why = f"a draw of {' and of '.join(rivals)} is as bad within the interval" if rivals else (
            f"that is no loss above {least:g} nats per token with 95 % confidence"
        )
        sentence = f"The critical set is NOT distinguishable from its controls: {what} {cost}, and {why}."
    return Verdict(*case.group, distinguishable, sentence)


def _evidence(row: Separation) -> str:
    worst = "" if row.worst is None else f"worst {row.worst:+.4g}, "
    draws = f"{row.draws} draw{'s' * (row.draws != 1)}"
    return f"{worst}p = {row.p_holm:.2g} of {draws}"
