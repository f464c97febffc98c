"""Statistics over sequences. numpy only.

A sequence is the unit of resampling, for tokens of one text are not independent.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

RESAMPLES = 2000
_LEVELS = (2.5, 97.5)


def bootstrap_weights(sequences: int, seed: int, resamples: int = RESAMPLES) -> Array:
    """How often each sequence occurs in each bootstrap resample. [resamples, sequences]"""
    rng = np.random.default_rng(seed)
    return rng.multinomial(sequences, np.full(sequences, 1 / sequences), size=resamples).astype(np.float64)


def paired_delta(damaged: Array, intact: Array, tokens: Array, weights: Array) -> tuple[float, float, float]:
    """Token-weighted mean of damaged minus intact NLL with its bootstrap 95 % interval, in nats per token.

    `damaged`, `intact`: NLL sums per sequence. [sequences]  `tokens`: scored tokens per sequence. [sequences]
    `weights`: from `bootstrap_weights`. Percentile interval (Efron & Tibshirani 1993, section 13.3).
    """
    change = damaged - intact
    resampled = (weights @ change) / (weights @ tokens)
    low, high = np.percentile(resampled, _LEVELS)
    return float(change.sum() / tokens.sum()), float(low), float(high)


def separation_ratio(
    critical: Array, draws: list[Array], intact: Array, tokens: Array, weights: Array
) -> tuple[float, float, float] | None:
    """Change of NLL by the critical set over the mean absolute change by control draws, with its 95 % interval.

    All arrays are NLL sums per sequence [sequences]; the interval resamples sequences, the same for both sides.
    None where the controls changed nothing, or where a loss is not finite: there is no ratio then. An end of the
    interval is infinite where the controls changed nothing in too many resamples to bound it.
    """
    if not draws or not all(np.isfinite(side).all() for side in (critical, *draws)):
        return None
    total = np.vstack([np.ones_like(tokens), weights])  # first row: the sample itself
    per_token = total @ tokens
    numerator = (total @ (critical - intact)) / per_token
    denominator = np.mean([np.abs((total @ (draw - intact)) / per_token) for draw in draws], axis=0)
    if not denominator[0] > 0:
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(denominator > 0, numerator / denominator, np.copysign(np.inf, numerator))
    low = np.percentile(ratio[1:], _LEVELS[0], method="lower")  # no interpolation, which infinity would not survive
    high = np.percentile(ratio[1:], _LEVELS[1], method="higher")
    return float(ratio[0]), float(low), float(high)
