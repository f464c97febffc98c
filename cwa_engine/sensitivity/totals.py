"""What backward passes add up to: g, and squares of the gradients of sequences.

There are two losses to go back from. The mean token NLL gives the gradient g and the Fisher diagonal per sequence. For the
token-level Fisher diagonal, the mean over tokens t of (dl_t/dw)^2, each token's NLL is multiplied by a random sign r_t
before backward: the square of sum_t r_t dl_t/dw has sum_t (dl_t/dw)^2 as its mean, because E[r_t r_u] = 0 for t != u
(Hutchinson 1990, as Martens et al. 2012 use it for curvature). One backward a sequence serves all its tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from cwa_engine.data.tokens import TokenSequence
from cwa_engine.evaluation.loss_scale import MeanLoss
from cwa_engine.evaluation.perplexity import PaddedBatch
from cwa_engine.methods.metrics import Needs
from cwa_engine.sensitivity.signs import token_signs


class Totals:
    """Sums over the gradients of one loss, by parameter, from one batch after the other.

    Gradients are those of (NLL sum) / (tokens of all sequences): of a batch, or where they are squared of one sequence.
    """

    def __init__(
        self, needs: Needs, sequences: Sequence[TokenSequence], seed: int | None = None, scale: float | None = None
    ) -> None:
        """With a `seed` the tokens' losses have random signs, and what is squared is the token-level Fisher's."""
        self.needs, self.loss = needs, MeanLoss(sequences, scale)
        self._sequences, self._seed = len(sequences), seed
        self._shares_of: tuple[Sequence[TokenSequence], Tensor] | None = (
            None  # the last batch, and its sequences' shares
        )
        self._gradient: dict[str, Tensor] = {}
        self._squares: dict[str, Tensor] = {}

    def prepared(self, texts: PaddedBatch, batch: Sequence[TokenSequence]) -> PaddedBatch:
        """The batch as this loss weighs its tokens."""
        if self._seed is None:
            return texts
        scored = torch.zeros(texts.ids.shape, dtype=torch.long)
        for row, sequence in enumerate(batch):
            scored[row, sequence.unscored : len(sequence.ids)] = torch.tensor(token_signs(sequence, self._seed))
        return dataclasses.replace(texts, scored=scored.to(texts.ids.device))

    def _share(self, sequence: TokenSequence) -> float:
        """What a sequence's squared gradient is multiplied by.

        Of L_s, the mean over the sequence's own tokens, (dL_s/dw)^2 / sequences. With signs, the square of the gradient
        of the sum over its tokens, divided by all tokens.
        """
        if self._seed is not None:
            return self.loss.tokens
        return (self.loss.tokens / sequence.scored_tokens) ** 2 / self._sequences

    def _shares(self, batch: Sequence[TokenSequence], like: Tensor) -> Tensor:
        """The shares of a batch's sequences, in the dtype and on the device of `like`. [B]

        They are brought to the device once for a batch: each copy would make the program wait for the device.
        """
        known = self._shares_of
        if known is None or known[0] is not batch or known[1].device != like.device or known[1].dtype != like.dtype:
            shares = torch.tensor([self._share(sequence) for sequence in batch], dtype=like.dtype)
            known = self._shares_of = batch, shares.to(like.device)
        return known[1]

    def add(self, name: str, gradient: Tensor, batch: Sequence[TokenSequence]) -> None:
        """Take a parameter's gradient of a batch, which for squares is one sequence. The tensor is ours to keep."""
        fresh = self.loss.unscaled(gradient)
        # A total begins with its first summand: a buffer of zeros would cost a pass over all weights.
        if self.needs.squares:
            (sequence,) = batch
            if name in self._squares:
                self._squares[name].addcmul_(fresh, fresh, value=self._share(sequence))
            else:
                self._squares[name] = fresh.square() * self._share(sequence)
        if Needs.GRADIENT in self.needs:
            if name in self._gradient:
                self._gradient[name].add_(fresh)
            else:
                self._gradient[name] = fresh

    def add_rows(self, parameter: Tensor, name: str, start: int, rows: Tensor, batch: Sequence[TokenSequence]) -> None:
        """Take the gradients of every sequence of a batch, [B, rows, ...], of some rows of a parameter's first axis."""
        fresh = self.loss.unscaled(rows).flatten(1)  # [B, weights]
        if Needs.GRADIENT in self.needs:
            if name not in self._gradient:
                self._gradient[name] = _zeros(parameter)
            self._gradient[name][start : start + rows.shape[1]].view(-1).add_(fresh.sum(0))
        if name not in self._squares:
            self._squares[name] = _zeros(parameter)
        shares = self._shares(batch, fresh)
        self._squares[name][start : start + rows.shape[1]].view(-1).addmv_(fresh.square_().T, shares)

    def join(self, name: str, rows: Tensor, first: Tensor, second: Tensor, sequence: TokenSequence) -> None:
        """Take the second part of a sequence's gradient in some rows, where its `first` has been added already."""
        first, second = self.loss.unscaled(first), self.loss.unscaled(second)
        if self.needs.squares:  # (first + second)^2 - first^2
            self._squares[name].index_add_(0, rows, second * (2 * first + second), alpha=self._share(sequence))
        if Needs.GRADIENT in self.needs:
            self._gradient[name].index_add_(0, rows, second)

    def of(self, name: str, parameter: Tensor) -> dict[str, Tensor]:
        """The fields of `WeightStats` for a parameter; zeros for one that the loss does not depend on."""
        found = {}
        if Needs.GRADIENT in self.needs:
            found["gradient"] = self._gradient[name] if name in self._gradient else _zeros(parameter)
        if self.needs.squares:
            field = "fisher" if self._seed is None else "token_fisher"
            found[field] = self._squares[name] if name in self._squares else _zeros(parameter)
        return found

    def forget(self, names: Iterable[str]) -> None:
        """Free the totals of these parameters."""
        for name in names:
            self._gradient.pop(name, None)
            self._squares.pop(name, None)


def totals_of(
    needs: Needs, sequences: Sequence[TokenSequence], seed: int = 0, scale: float | None = None
) -> list[Totals]:
    """One for each loss that these needs take going back from: the mean NLL, the signed NLL, both or none."""
    plain, signed = needs & (Needs.GRADIENT | Needs.FISHER), needs & Needs.TOKEN_FISHER
    found = [Totals(plain, sequences, scale=scale)] if plain else []
    return [*found, Totals(signed, sequences, seed, scale)] if signed else found


def _zeros(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter, dtype=torch.promote_types(parameter.dtype, torch.float32))
