"""Perplexity: exp of the mean token negative log-likelihood, padding excluded."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cwa_engine.base.errors import RunFailed
from cwa_engine.data.tokens import TokenSequence
from cwa_engine.evaluation.losses import Evaluation
from cwa_engine.models.anatomy import config_number
from cwa_engine.models.chain import Chain, NotAChain, ResumePoint, chain_of
from cwa_engine.models.forward import logits_of
from cwa_engine.models.loading import LoadedModel
from cwa_engine.rows import Baseline, TextUse

LOGITS = 2**24  # the most logits computed at once: 64 MiB in float32, and a few copies
PROTOCOL = "one text a sequence, at most {seq_len} tokens, {beginning}"
PACKED_PROTOCOL = "texts joined and cut into windows of {seq_len} tokens, {beginning}"
WITH_BOS, WITHOUT_BOS = "each after {bos}, which is not scored", "without BOS, the first token of each not scored"


@dataclass(frozen=True)
class PaddedBatch:
    """A batch as tensors of shape [B, T]. Shorter sequences are padded on the right."""

    ids: Tensor
    mask: Tensor  # 1 for tokens, 0 for padding
    scored: Tensor  # factor of a token's NLL: 1, 0 if it is not scored, -1 too in a sum with random signs

    @property
    def attention_mask(self) -> Tensor | None:
        """The mask that the model gets: None if nothing is padded."""
        return None if len(self.ids) == 1 else self.mask

    def part(self, rows: slice) -> PaddedBatch:
        """Some sequences of the batch, with their padding."""
        return PaddedBatch(self.ids[rows], self.mask[rows], self.scored[rows])

    def copies(self, number: int) -> PaddedBatch:
        """`number` copies of a batch of one text."""
        return PaddedBatch(*(tensor.expand(number, -1) for tensor in (self.ids, self.mask, self.scored)))

    def nll(self, logits: Tensor, start: int = 0) -> Tensor:
        """Summed NLL of each sequence over the tokens that these logits predict. [B]

        `logits` [B, tokens, vocabulary] are those at the tokens from `start` on. The prediction after the last token is
        not used.
        """
        stop = min(start + logits.shape[1], self.ids.shape[1] - 1)
        ids, counted = self.ids[:, start + 1 : stop + 1], self.scored[:, start + 1 : stop + 1]
        precision = torch.promote_types(logits.dtype, torch.float32)  # sums of a loss need more than half precision
        scored = logits[:, : stop - start].to(precision)
        token_nll = F.cross_entropy(scored.flatten(0, 1), ids.flatten(), reduction="none")
        return (token_nll.view(len(ids), -1) * counted).sum(dim=1)


def padded(loaded: LoadedModel, batch: Sequence[TokenSequence]) -> PaddedBatch:
    """The batch as tensors on the model's device."""
    longest = max(len(sequence.ids) for sequence in batch)
    ids = torch.zeros(len(batch), longest, dtype=torch.long)
    mask, scored = torch.zeros_like(ids), torch.zeros_like(ids)
    for row, sequence in enumerate(batch):
        ids[row, : len(sequence.ids)] = torch.tensor(sequence.ids)
        mask[row, : len(sequence.ids)] = 1
        scored[row, sequence.unscored : len(sequence.ids)] = 1
    return PaddedBatch(ids.to(loaded.device), mask.to(loaded.device), scored.to(loaded.device))


def sequence_nll(loaded: LoadedModel, batch: Sequence[TokenSequence]) -> Tensor:
    """Summed token NLL of each sequence of a batch, differentiable. [batch]"""
    texts = padded(loaded, batch)
    return texts.nll(logits_of(loaded.model, texts.ids, texts.attention_mask))


def pieces(loaded: LoadedModel, texts: PaddedBatch) -> list[slice]:
    """Ranges of tokens whose logits are computed together. With a large vocabulary, one range at a time saves memory."""
    tokens, known = texts.ids.shape[1] - 1, config_number(loaded.model, "vocab_size") or 1
    step = max(1, LOGITS // (len(texts.ids) * known))
    return [slice(start, min(start + step, tokens)) for start in range(0, tokens, step)]


def tail_nll(loaded: LoadedModel, chain: Chain, tail: ResumePoint, texts: PaddedBatch) -> Iterator[Tensor]:
    """The NLL sums in parts of shape [B], one for each range of `pieces`, from the output of the last block."""
    some = pieces(loaded, texts)
    if len(some) == 1 or not chain.tail_by_token:
        yield texts.nll(chain.logits_from(tail, texts.ids, texts.attention_mask))
        return
    for piece in some:
        part = replace(tail, hidden=tail.hidden[:, piece])
        yield texts.nll(chain.logits_from(part, texts.ids[:, piece], None), piece.start)


def nll_from(loaded: LoadedModel, chain: Chain, start: ResumePoint | None, texts: PaddedBatch) -> Tensor:
    """NLL sums of a batch, computed from a resume point on; from the beginning if `start` is None. [B]"""
    if len(pieces(loaded, texts)) == 1:
        return texts.nll(chain.logits_from(start, texts.ids, texts.attention_mask))
    if start is None or start.index < len(chain.blocks):
        start = chain.tail(chain.run_blocks(texts.ids, texts.attention_mask, start, keep=lambda index: False))
    return torch.stack(list(tail_nll(loaded, chain, start, texts))).sum(0)


def measured_nll(loaded: LoadedModel, batch: Sequence[TokenSequence]) -> Tensor:
    """The same sums as `sequence_nll`, without autograd, and with logits in pieces if they are many. [batch]"""
    texts = padded(loaded, batch)
    if len(pieces(loaded, texts)) > 1:
        with suppress(NotAChain):
            return nll_from(loaded, chain_of(loaded), None, texts)
    return texts.nll(logits_of(loaded.model, texts.ids, texts.attention_mask))


def non_finite_loss(loss: Tensor, batch: int, batches: int) -> RunFailed:
    """The error for a loss that overflows or is NaN while weights are scored."""
    return RunFailed(
        f"the loss of scoring batch {batch} of {batches} is {loss.item()}",
        hint="float16 overflows easily; try --dtype float32, and look at that batch's texts",
    )


def evaluate(
    loaded: LoadedModel,
    sequences: Sequence[TokenSequence],
    batch_size: int | None = None,
    after_batch: Callable[[int], None] = lambda done: None,
) -> Evaluation:
    """NLL sums in the order of `sequences`. `after_batch(done)` is called with the number of measured sequences."""
    batches = loaded.batched(sequences, batch_size)
    return collect(sequences, batches, lambda number: measured_nll(loaded, batches[number]), after_batch)


@torch.inference_mode()
def collect(
    sequences: Sequence[TokenSequence],
    batches: Sequence[Sequence[TokenSequence]],
    nll_sums: Callable[[int], Tensor],
    after_batch: Callable[[int], None],
) -> Evaluation:
    """The evaluation of all batches. `nll_sums(number)` gives the NLL sums of one batch. [batch]"""
    measured: dict[int, float] = {}
    for number, batch in enumerate(batches):
        sums = nll_sums(number).cpu().double().tolist()
        measured.update(zip(map(id, batch), sums, strict=True))
        after_batch(len(measured))
    return Evaluation(
        nll_sums=np.array([measured[id(sequence)] for sequence in sequences]),
        tokens=np.array([sequence.scored_tokens for sequence in sequences], dtype=np.float64),
    )


def baseline_of(evaluation: Evaluation, sequences: Sequence[TokenSequence], use: TextUse, vocabulary: int) -> Baseline:
    """The figures of the intact model, with their evaluation protocol and the size of the vocabulary."""
    sizes = [sequence.utf8_bytes for sequence in sequences]
    known = sum(size or 0 for size in sizes) if None not in sizes else 0  # a token may stand for no bytes
    beginning = WITH_BOS.format(bos=use.bos) if use.bos else WITHOUT_BOS
    return Baseline(
        nll=evaluation.nll,
        perplexity=evaluation.perplexity,
        bits_per_byte=float(evaluation.nll_sums.sum()) / (math.log(2) * known) if known else None,
        sequences=len(sequences),
        tokens=int(evaluation.tokens.sum()),
        protocol=(PACKED_PROTOCOL if use.packed else PROTOCOL).format(seq_len=use.seq_len, beginning=beginning),
        vocabulary=vocabulary,
    )
