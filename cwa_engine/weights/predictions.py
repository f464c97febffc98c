"""What a weight does to the model's predictions: which tokens it makes likelier, and how far apart the two models are."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cwa_engine.damage.patch import patched
from cwa_engine.data.token_text import token_text
from cwa_engine.evaluation.divergence import kl_by_token
from cwa_engine.evaluation.perplexity import PaddedBatch, padded
from cwa_engine.evaluation.resume import CachedStates
from cwa_engine.methods.perturbations import PERTURBATIONS
from cwa_engine.models.forward import logits_of
from cwa_engine.models.loading import LoadedModel
from cwa_engine.models.precision import doubled
from cwa_engine.rows import DamagePoint
from cwa_engine.weight_rows import StopwordMass, TokenShift
from cwa_engine.weights.examined import Examination, Unknown
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


def mean_predictions(examination: Examination, report: Callable[[int], None]) -> MeanPredictions:
    """Over all evaluation texts, by the intact model and with the weight zeroed. Raises Unknown where these are NaN."""
    return examination.context.batch_size.run(lambda size: _Sums(examination).over_all_texts(size, report))


class _Sums:
    """Adds up predictions, batch after batch. Each batch is predicted by both models in turn."""

    def __init__(self, examination: Examination) -> None:
        self._examination, self._loaded = examination, examination.loaded
        self._intact: Tensor | float = 0.0  # [vocabulary]
        self._damaged: Tensor | float = 0.0
        self._kl, self._agreed, self._tokens = 0.0, 0, 0

    @torch.no_grad()
    def over_all_texts(self, size: int, report: Callable[[int], None]) -> MeanPredictions:
        done = 0
        report(0)
        for part in self._examination.context.parts:
            kept = part.kept if part.kept and len(part.kept.batches[0]) <= size else None
            for number, batch in enumerate(kept.batches if kept else self._loaded.batched(part.sequences, size)):
                self._add(padded(self._loaded, batch), kept, number)
                done += len(batch)
                report(done)
        assert isinstance(self._intact, Tensor) and isinstance(self._damaged, Tensor)
        tokens = self._tokens
        return MeanPredictions(self._intact / tokens, self._damaged / tokens, self._kl / tokens, self._agreed / tokens)

    def _add(self, texts: PaddedBatch, kept: CachedStates | None, number: int) -> None:
        weight, model = self._examination.weight, self._loaded.model
        first = kept.chain.first_block(self._loaded, [weight.parameter.name]) if kept else 0
        before = self._predicted(texts, kept, number, len(kept.chain.blocks) if kept else 0)  # [tokens, vocabulary]
        with patched(model, weight.alone, PERTURBATIONS["zero"], offsets=self._loaded.anatomy.offsets):
            after = self._predicted(texts, kept, number, first)
        if after.isnan().any():
            raise Unknown("without the weight the model's predictions are no numbers")
        self._kl += float(doubled(kl_by_token(before, after)).sum())
        self._agreed += int((before.argmax(-1) == after.argmax(-1)).sum())
        self._tokens += len(before)
        self._intact = self._intact + doubled(before.exp_()).sum(0).cpu()
        self._damaged = self._damaged + doubled(after.exp_()).sum(0).cpu()

    def _predicted(self, texts: PaddedBatch, kept: CachedStates | None, number: int, first: int) -> Tensor:
        """Log probabilities at all scored tokens of a batch, where nothing is changed before block `first`."""
        if kept:
            logits = kept.chain.logits_from(kept.start(number, first), texts.ids, texts.attention_mask)
        else:
            logits = logits_of(self._loaded.model, texts.ids, texts.attention_mask)
        scored = logits[:, :-1][texts.scored[:, 1:].bool()]
        return scored.to(torch.promote_types(scored.dtype, torch.float32)).log_softmax(-1)


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
