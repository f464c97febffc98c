"""Exact top-k over all weights of a model, in one pass and O(k) memory.

The current k-th best score is a threshold; of each tensor only what reaches it is looked at. Ties are broken by
parameter order, then flat index, so the same scores give the same table whatever order the tensors come in.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cwa_engine.base.errors import RunFailed
from cwa_engine.models.anatomy import Parameter

ROW = 1024  # scores that are passed over together where the largest of them is too small


class TopKSelection:
    """Offer scores tensor by tensor; `ranked` gives the k largest, largest first."""

    def __init__(self, k: int) -> None:
        self.k = k
        self._scores = torch.empty(0)  # [kept], largest first
        self._orders = torch.empty(0, dtype=torch.long)
        self._indices = torch.empty(0, dtype=torch.long)

    @property
    def threshold(self) -> float:
        """The least score that can still enter."""
        return float(self._scores[-1]) if len(self._scores) == self.k else float("-inf")

    def offer(self, parameter: Parameter, scores: Tensor, offset: int = 0) -> None:
        """Consider `scores` of the weights of `parameter` from flat index `offset` on, any shape.

        Raises RunFailed for a score that is NaN or infinite: it must not vanish from a ranking unseen.
        """
        flat = scores.reshape(-1)
        if not len(flat):
            return
        largest = _row_maxima(flat)
        best = float(largest.max())  # NaN propagates through max
        if not (abs(best) < float("inf")):
            raise RunFailed(
                f"a score of {parameter.name} is {best}: the gradient is not finite",
                hint="float16 overflows easily; try --dtype float32 or bfloat16",
            )
        if best < self.threshold:
            return
        indices = _reaching(flat, largest, self.threshold) if len(self._scores) == self.k else None
        values = flat if indices is None else flat[indices]
        chosen = _first_largest(values, self.k)
        indices = chosen if indices is None else indices[chosen]
        self._merge(values[chosen].float().cpu(), parameter.order, indices.cpu() + offset)

    def _merge(self, scores: Tensor, order: int, indices: Tensor) -> None:
        scores = torch.cat([self._scores, scores])
        orders = torch.cat([self._orders, torch.full_like(indices, order)])
        indices = torch.cat([self._indices, indices])
        ranks = torch.arange(len(scores))
        for key, descending in ((indices, False), (orders, False), (scores, True)):  # stable: last key decides first
            ranks = ranks[torch.argsort(key[ranks], stable=True, descending=descending)]
        ranks = ranks[: self.k]
        self._scores, self._orders, self._indices = scores[ranks], orders[ranks], indices[ranks]

    def ranked(self) -> list[tuple[int, int, float]]:
        """(parameter order, flat index, score), largest score first."""
        return list(zip(self._orders.tolist(), self._indices.tolist(), self._scores.tolist(), strict=True))


def _row_maxima(flat: Tensor) -> Tensor:
    """The largest of every ROW scores, and of what is left over at the end."""
    whole = len(flat) // ROW * ROW
    maxima = flat[:whole].view(-1, ROW).amax(1)
    return maxima if whole == len(flat) else torch.cat([maxima, flat[whole:].max().view(1)])


def _reaching(flat: Tensor, largest: Tensor, threshold: float) -> Tensor:
    """Ascending places of the scores that are not below the threshold; only rows whose largest is are looked at."""
    rows = (largest >= threshold).nonzero()  # [rows, 1]
    places = (rows * ROW + torch.arange(ROW, device=flat.device)).flatten()
    places = places[places < len(flat)]
    return places[flat[places] >= threshold]


def _first_largest(values: Tensor, k: int) -> Tensor:
    """Positions of the k largest values; among equal ones the first. torch.topk alone picks any of equals."""
    if len(values) <= k:
        return torch.arange(len(values), device=values.device)
    kth = values.topk(k).values[-1]
    above = (values > kth).nonzero().squeeze(1)
    level = (values == kth).nonzero().squeeze(1)[: k - len(above)]
    return torch.cat([above, level])
