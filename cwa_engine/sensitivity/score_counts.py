"""How the scores of all units are distributed, counted while they pass by.

The bins are the same for every model, metric and run, so no second pass is needed and runs can be laid over each other: a
score's bin is its first 12 bits as float32, which are its sign, its exponent and three bits of its mantissa. That makes eight
bins of equal width for each doubling of |score|, with edges that a float has exactly.
"""

from __future__ import annotations

import struct

import torch
from torch import Tensor

from cwa_engine.rows import ScoreBin

_KEPT_BITS = 12
_BINS = 1 << _KEPT_BITS
_NEGATIVE = _BINS // 2  # the first bin of negative scores
_NOT_FINITE = 0xFF << 3  # the first bin of an exponent that only infinity and NaN have
_LEAST = 2.0**-149  # the smallest positive float32: zeros are counted apart, so the lowest bin begins there


class ScoreCounts:
    """Exact counts of scores by bin, in int64: 32 KB on the device of the scores, however many there are."""

    def __init__(self) -> None:
        self._counts: Tensor | None = None  # [bins]
        self._zeros: Tensor | None = None

    def offer(self, scores: Tensor) -> None:
        """Count scores of any shape. Each counts as float32, as rankings have it."""
        flat = scores.detach().reshape(-1).float()
        counts = _counted(flat)
        if counts[_NEGATIVE]:
            counts = _counted(flat + 0.0)  # which makes a zero of -0.0
        if counts[0]:  # few pieces have zeros, and a look at every score takes as long as half of the counting
            zeros = (flat == 0).sum()
            self._zeros = zeros if self._zeros is None else self._zeros.add_(zeros.to(self._zeros.device))
        self._counts = counts if self._counts is None else self._counts.add_(counts.to(self._counts.device))

    def rows(self, metric: str) -> tuple[ScoreBin, ...]:
        """Every bin that has scores, the lowest score first and zeros among them; what is not finite last."""
        if self._counts is None:
            return ()
        counts, zeros = self._counts.tolist(), 0 if self._zeros is None else int(self._zeros)
        counts[0] -= zeros
        above, below = counts[:_NEGATIVE], counts[_NEGATIVE:]
        not_finite = sum(above[_NOT_FINITE:]) + sum(below[_NOT_FINITE:])
        return (
            *(_row(metric, -1, place, below[place]) for place in reversed(range(_NOT_FINITE)) if below[place]),
            ScoreBin(metric, 0, 0.0, 0.0, zeros),
            *(_row(metric, 1, place, above[place]) for place in range(_NOT_FINITE) if above[place]),
            ScoreBin(metric, None, None, None, not_finite),
        )


def _counted(flat: Tensor) -> Tensor:
    """How many of these float32 begin with which bits. [bins]"""
    return torch.bincount((flat.view(torch.int32) >> (32 - _KEPT_BITS)).bitwise_and_(_BINS - 1), minlength=_BINS)


def _row(metric: str, sign: int, place: int, count: int) -> ScoreBin:
    return ScoreBin(metric, sign, _edge(place) or _LEAST, _edge(place + 1), count)


def _edge(place: int) -> float:
    """The smallest |score| of a bin: the float32 that begins with its bits, and what would follow the largest of all."""
    if place == _NOT_FINITE:
        return 2.0**128
    (edge,) = struct.unpack(">f", (place << (32 - _KEPT_BITS)).to_bytes(4, "big"))
    return float(edge)
