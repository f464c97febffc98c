"""The predictions of the intact and of the damaged model on the same tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cwa_engine.evaluation.divergence import kl_by_token
from cwa_engine.models.anatomy import config_number
from cwa_engine.models.chain import NotAChain, ResumePoint, chain_of
from cwa_engine.models.forward import logits_of
from cwa_engine.models.loading import LoadedModel
from cwa_engine.models.precision import doubled
from cwa_engine.prompting.generation import Steps

LOGITS = 2**22  # at once: 32 MiB in float64, and a few copies

Damaged = Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a token is predicted by. Figures of a damaged model that gives NaN or infinity are None."""

    kl: float | None
    intact: float
    damaged: float | None
    intact_top: int
    damaged_top: int | None


class IntactNotFinite(Exception):
    """The intact model's prediction of a token is NaN or infinite."""


def compared(loaded: LoadedModel, ids: Sequence[int], damaged: Damaged) -> list[Prediction]:
    """The predictions of every token but the first; KL(intact ‖ damaged) in nats. Raises IntactNotFinite."""
    if len(ids) < 2:
        return []
    with torch.inference_mode():
        intact, other = _Logits(loaded, ids, nullcontext), _Logits(loaded, ids, damaged)
        pieces = _pieces(loaded, len(ids) - 1)
        found = [each for piece in pieces for each in _compared(intact.at(piece), other.at(piece), ids, piece.start)]
        if all(prediction.kl is not None for prediction in found):
            return found
        # In a whole pass masked attention multiplies a NaN by 0, which is NaN for the tokens before it as well.
        return list(_step_by_step(loaded, ids, damaged))


def _step_by_step(loaded: LoadedModel, ids: Sequence[int], damaged: Damaged) -> Iterator[Prediction]:
    """The same, where no model sees a token after the one that it predicts."""
    intact, other = Steps(loaded), Steps(loaded)
    for place in range(len(ids) - 1):
        before = intact.next_logits(ids[: place + 1])
        with damaged():
            after = other.next_logits(ids[: place + 1])
        yield from _compared(doubled(before[None]), doubled(after[None]), ids, place)


class _Logits:
    """Logits of one model, a few tokens at a time: of all, those of a long text would take gigabytes."""

    def __init__(self, loaded: LoadedModel, ids: Sequence[int], within: Damaged) -> None:
        self._loaded, self._within = loaded, within
        self._ids = torch.tensor([list(ids)], device=loaded.device)  # [1, tokens]
        self._tail: ResumePoint | None = None
        self._whole: Tensor | None = None  # [tokens, vocabulary]
        with within():
            if len(_pieces(loaded, len(ids) - 1)) > 1:
                with suppress(NotAChain):
                    chain = chain_of(loaded)
                    if chain.tail_by_token:
                        self._tail = chain.tail(chain.run_blocks(self._ids, None, keep=lambda index: False))
            if self._tail is None:
                self._whole = logits_of(loaded.model, self._ids, None)[0]

    def at(self, piece: slice) -> Tensor:
        """In float64, which holds the logits of every dtype exactly. [piece, vocabulary]"""
        if self._whole is not None:
            return doubled(self._whole[piece])
        assert self._tail
        part = replace(self._tail, hidden=self._tail.hidden[:, piece])
        with self._within():
            return doubled(chain_of(self._loaded).logits_from(part, self._ids[:, piece], None)[0])


def _pieces(loaded: LoadedModel, tokens: int) -> list[slice]:
    step = max(1, LOGITS // (config_number(loaded.model, "vocab_size") or 1))
    return [slice(start, min(start + step, tokens)) for start in range(0, tokens, step)]


def _compared(before: Tensor, after: Tensor, ids: Sequence[int], start: int) -> Iterator[Prediction]:
    """Predictions by the logits of both models [tokens, vocabulary] at the tokens from `start` on."""
    if not before.isfinite().all():
        raise IntactNotFinite
    finite = after.isfinite().all(-1).tolist()
    before, after = before.log_softmax(-1), after.log_softmax(-1)
    kl = kl_by_token(before, after).clamp(min=0.0)  # rounding may leave -1e-17
    following = torch.tensor(ids[start + 1 : start + 1 + len(before)], device=before.device)[:, None]
    shares = (logits.gather(1, following)[:, 0].exp().tolist() for logits in (before, after))
    tops = (logits.argmax(-1).tolist() for logits in (before, after))
    for is_finite, nats, mine, theirs, top, other_top in zip(finite, kl.tolist(), *shares, *tops, strict=True):
        yield Prediction(nats, mine, theirs, top, other_top) if is_finite else Prediction(None, mine, None, top, None)
