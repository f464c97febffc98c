"""Exact top-k over all weights of a model, in one pass and O(k) memory.

The current k-th best score is a threshold; of each tensor only what reaches it is looked at. Ties are broken by
parameter order, then flat index, so the same scores give the same table whatever order the tensors come in.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from cwa_engine.base.errors import RunFailed
from cwa_engine.models.anatomy import Parameter

ROW = 1024  # scores that are passed over together where the largest of them is too small


class TopKSelection:
    """Offer scores tensor by tensor; `ranked` gives the k largest, largest first.

    What may enter waits until k have come together and is then merged, so that a large k costs one merge for each k
    candidates and not one for each tensor. Until then the threshold is lower than it could be, which lets in more and
    never less.
    """

    def __init__(self, k: int) -> None:
        self.k = k
        self._scores = torch.empty(0)  # [kept], in no order
        self._orders = torch.empty(0, dtype=torch.long)
        self._indices = torch.empty(0, dtype=torch.long)
        self._waiting: list[tuple[Tensor, Tensor, Tensor]] = []  # scores, orders and indices of what may enter
        self._candidates = 0  # that wait
        self._threshold = float("-inf")

    @property
    def threshold(self) -> float:
        """The least score that can still enter."""
        self._merge()
        return self._threshold

    def offer(self, parameter: Parameter, scores: Tensor, offset: int = 0) -> None:
        """Consider `scores` of the weights of `parameter` from flat index `offset` on, any shape.

        Raises RunFailed for a score that is NaN or infinite: it must not vanish from a ranking unseen.
        """
        flat = scores.reshape(-1).float()  # what is compared is what is kept
        if not len(flat):
            return
        largest = _row_maxima(flat)
        best = float(largest.max())  # NaN propagates through max
        if not (abs(best) < float("inf")):
            raise RunFailed(
                f"a score of {parameter.name} is {best}: the gradient is not finite",
                hint="float16 overflows easily; try --dtype float32 or bfloat16",
            )
        if best < self._threshold:
            return
        indices = _reaching(flat, largest, self._threshold) if len(self._scores) == self.k else None
        values = flat if indices is None else flat[indices]
        chosen = _first_largest(values, self.k)
        indices = chosen if indices is None else indices[chosen]
        indices = indices.cpu() + offset
        self._waiting.append((values[chosen].cpu(), torch.full_like(indices, parameter.order), indices))
        self._candidates += len(indices)
        if self._candidates >= self.k:
            self._merge()

    def _merge(self) -> None:
        """Let in what waits, and keep the k largest."""
        if not self._waiting:
            return
        columns = [(self._scores, self._orders, self._indices), *self._waiting]
        scores, orders, indices = (torch.cat(column) for column in zip(*columns, strict=True))
        self._waiting, self._candidates = [], 0
        if len(scores) > self.k:
            kth = scores.topk(self.k, sorted=False).values.min()
            above, level = (scores > kth).nonzero().squeeze(1), (scores == kth).nonzero().squeeze(1)
            first = _in_order(orders[level], indices[level])[: self.k - len(above)]
            stay = torch.cat([above, level[first]])
            scores, orders, indices = scores[stay], orders[stay], indices[stay]
        if len(scores) == self.k:
            self._threshold = float(scores.min())
        self._scores, self._orders, self._indices = scores, orders, indices

    def columns(self) -> tuple[Tensor, Tensor, Tensor]:
        """(parameter orders, flat indices, scores) of the k largest, largest score first. [kept] each"""
        self._merge()
        ranks = _in_order(-self._scores, self._orders, self._indices)
        return self._orders[ranks], self._indices[ranks], self._scores[ranks]

    def ranked(self) -> list[tuple[int, int, float]]:
        """(parameter order, flat index, score), largest score first."""
        return list(zip(*(column.tolist() for column in self.columns()), strict=True))


def _in_order(*keys: Tensor) -> Tensor:
    """Positions in ascending order of these keys, the first key deciding first."""
    return torch.from_numpy(np.lexsort([key.numpy() for key in reversed(keys)]))


def _row_maxima(flat: Tensor) -> Tensor:
    """The largest of every ROW scores, and of what is left over at the end."""
    whole = len(flat) // ROW * ROW
    maxima = flat[:whole].view(-1, ROW).amax(1)
    return maxima if whole == len(flat) else torch.cat([maxima, flat[whole:].max().view(1)])


def _reaching(flat: Tensor, largest: Tensor, threshold: float) -> Tensor:
    """Ascending places of the scores that are not below the threshold; only rows whose largest is are looked at."""
    rows = (largest >= threshold).nonzero()  # [rows, 1]
    if 4 * len(rows) > len(largest):  # so many that it is faster to look at every score
        return (flat >= threshold).nonzero().squeeze(1)
    places = (rows * ROW + torch.arange(ROW, device=flat.device)).flatten()
    places = places[places < len(flat)]
    return places[flat[places] >= threshold]


def _first_largest(values: Tensor, k: int) -> Tensor:
    """Positions of the k largest values; among equal ones the first. torch.topk alone picks any of equals."""
    if len(values) <= k:
        return torch.arange(len(values), device=values.device)
    kth = values.topk(k, sorted=False).values.min()
    above = (values > kth).nonzero().squeeze(1)
    level = (values == kth).nonzero().squeeze(1)[: k - len(above)]
    return torch.cat([above, level])
