"""What a unit is to its critical set. torch-free.

A unit matters where it makes a tenth of an equal share of the set's damage, and the whole interval is a loss.
"""

from __future__ import annotations

import math

Delta = tuple[float, float, float]  # nats per token, with its 95 % interval


def role_of(alone: Delta, share: Delta, without: float, together: float, k: int, rounding: float) -> str:
    """ "alone", "together" or "inert", see `result.Interaction`.

    `without` is the change by the set without the unit, `together` that by the whole set of k, `rounding` the numerical
    floor.
    """
    least = max(rounding, together / (10 * k) if math.isfinite(together) else 0)
    if _is_loss(alone, least):
        return "alone"
    return "together" if _is_loss(share, least) and math.isfinite(without) else "inert"


def _is_loss(delta: tuple[float, float, float], least: float) -> bool:
    """Whether a loss is at least so large, and its whole interval above zero; one that is not finite is."""
    return not (delta[0] < least or delta[1] <= 0)
