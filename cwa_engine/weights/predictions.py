"""What a weight does to the model's predictions: which tokens it makes likelier, and how far apart the two models are."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from cwa_engine.damage.patch import patched
from cwa_engine.data.token_text import token_text
from cwa_engine.data.tokens import TokenSequence
from cwa_engine.evaluation.divergence import predictions
from cwa_engine.evaluation.perplexity import padded
from cwa_engine.methods.perturbations import PERTURBATIONS
from cwa_engine.models.loading import LoadedModel
from cwa_engine.rows import DamagePoint
from cwa_engine.weight_rows import StopwordMass, TokenShift
from cwa_engine.weights.examined import ExaminedWeight, Unknown
from cwa_engine.weights.stopwords import STOPWORDS, stopword_tokens

SHIFTS = 10  # tokens that are shown on either side


@dataclass(frozen=True)
class MeanPredictions:
    """Means over all scored tokens of what the intact and the damaged model predict."""

    intact: Tensor  # probability of each token of the vocabulary, float64 [vocabulary]
    damaged: Tensor
    kl: float  # KL(intact ‖ damaged), nats per token
    top1_agreement: float

    def told_in(self, point: DamagePoint) -> DamagePoint:
        """The point with the divergence of both models."""
        kl = self.kl if math.isfinite(self.kl) else None
        return dataclasses.replace(point, kl=kl, top1_agreement=self.top1_agreement)


@torch.no_grad()
def mean_predictions(
    loaded: LoadedModel,
    weight: ExaminedWeight,
    sequences: Sequence[TokenSequence],
    size: int,
    report: Callable[[int], None],
) -> MeanPredictions:
    """One pass by the intact model and one with the weight zeroed. Raises Unknown where predictions are NaN."""

    def damaged() -> AbstractContextManager[object]:
        return patched(loaded.model, weight.alone, PERTURBATIONS["zero"], offsets=loaded.anatomy.offsets)

    sums: list[Tensor] = []
    kl_sum, agreed, tokens, done = 0.0, 0, 0, 0
    report(0)
    for batch in loaded.batched(sequences, size):
        texts = padded(loaded, batch)
        scored = texts.scored[:, 1:].bool()
        before = predictions(loaded, texts)[scored].log_softmax(-1)  # [tokens, vocabulary]
        with damaged():
            after = predictions(loaded, texts)[scored].log_softmax(-1)
        if after.isnan().any():
            raise Unknown("without the weight the model's predictions are no numbers")
        kl_sum += float((before.exp() * (before - after)).sum(-1).double().sum())
        agreed += int((before.argmax(-1) == after.argmax(-1)).sum())
        tokens += int(scored.sum())
        fresh = [of.exp_().sum(0, dtype=torch.float64).cpu() for of in (before, after)]
        sums = [total + more for total, more in zip(sums, fresh, strict=True)] if sums else fresh
        done += len(batch)
        report(done)
    intact, without = (total / tokens for total in sums)
    return MeanPredictions(intact, without, kl_sum / tokens, agreed / tokens)


def token_shifts(loaded: LoadedModel, means: MeanPredictions) -> tuple[tuple[TokenShift, ...], tuple[TokenShift, ...]]:
    """(tokens whose mean probability the weight raises most, those that it lowers most), the largest change first.

    A token that the weight does not change is in neither. Of equal changes the lower id counts.
    """
    change = means.intact - means.damaged
    raised, lowered = (change.sort(descending=descending, stable=True).indices[:SHIFTS] for descending in (True, False))

    def shifts(ids: Tensor, sign: int) -> tuple[TokenShift, ...]:
        return tuple(
            TokenShift(_text(loaded, number), number, float(means.intact[number]), float(means.damaged[number]))
            for number in ids.tolist()
            if sign * float(change[number]) > 0
        )

    return shifts(raised, 1), shifts(lowered, -1)


def stopword_mass(loaded: LoadedModel, means: MeanPredictions) -> StopwordMass:
    """The mean probability of all stopwords together. Raises Unknown where the vocabulary has none."""
    tokens = [number for number in stopword_tokens(loaded.tokenizer) if number < len(means.intact)]
    if not tokens:
        raise Unknown("no token of the vocabulary is an English stopword")
    intact, damaged = (float(of[tokens].sum()) for of in (means.intact, means.damaged))
    return StopwordMass(len(STOPWORDS), len(tokens), intact, damaged)


def _text(loaded: LoadedModel, token_id: int) -> str:
    """Vocabularies are padded with rows that no text gives."""
    return token_text(loaded.tokenizer, token_id) if token_id < len(loaded.tokenizer) else f"unused token {token_id}"
