"""How likely a model finds answers: log-likelihoods of continuations of contexts, as lm-evaluation-harness asks for them.

The model is used as it is in memory; nothing of it is set, moved or loaded. Contexts and answers become tokens by the rules of
the package's own `HFLM`, save that a context begins as every text of the run does (`--bos`); likelihoods are summed in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cwa_engine.base.errors import DataError, ModelBroken
from cwa_engine.data.prefix import Prefix
from cwa_engine.data.tokens import TokenSequence
from cwa_engine.evaluation.batch_size import BatchSize
from cwa_engine.evaluation.perplexity import padded
from cwa_engine.models.forward import logits_of
from cwa_engine.models.loading import LoadedModel


@dataclass(frozen=True, slots=True)
class Asked:
    """What a model reads, and the answer behind it whose likelihood is asked for. Of the answer the last token is not read."""

    read: TokenSequence  # truncated where the context was longer than the model reads, and lost its beginning
    answer: tuple[int, ...]


def asked_tokens(loaded: LoadedModel, prefix: Prefix, context: str, answer: str) -> Asked:
    """A context and an answer as tokens. Raises DataError for an answer that has none, or more than the model reads.

    The tokens of an answer are those that it adds to its context's. Spaces at the end of a context belong to the answer,
    because tokenizers join them with the next word. An empty context is the BOS token, or EOS where there is none.
    """
    if bare := context.rstrip():
        before = _tokens(loaded, prefix, bare)
        after = _tokens(loaded, prefix, context + answer)[len(before) :]
    else:
        before, after = _first(loaded), _tokens(loaded, Prefix(), context + answer)
        if after[:1] == before:
            after = after[1:]
    most = loaded.max_tokens or len(before) + len(after)
    if not 0 < len(after) <= most:
        raise DataError(
            f"the answer {answer[:40]!r} has {len(after)} tokens, and the model reads 1 to {most}",
            hint="another --task-limit leaves out documents at the end",
        )
    read = (*before, *after)[:-1]
    return Asked(TokenSequence(read[-most:], None, len(read) > most), tuple(after))


def _tokens(loaded: LoadedModel, prefix: Prefix, text: str) -> list[int]:
    ids = list(loaded.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    return ids if prefix.length_at(ids, 0) else [*prefix.ids, *ids]


def _first(loaded: LoadedModel) -> list[int]:
    tokenizer = loaded.tokenizer
    token = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if token is None:
        raise ModelBroken(
            "an answer without a context needs a BOS or an EOS token, and the tokenizer has neither",
            hint="take tasks in which every answer has a context",
        )
    return [int(token)]


def likelihoods(
    loaded: LoadedModel,
    asked: Sequence[Asked],
    batch_size: BatchSize,
    after_batch: Callable[[int], None] = lambda done: None,
) -> list[tuple[float, bool]]:
    """(log-likelihood of the answer in nats, whether the model finds each of its tokens likeliest), in order.

    The log-likelihood is NaN where it is no finite number. `after_batch(done)` hears how many are answered.
    """
    found: dict[int, tuple[float, bool]] = {}
    by_read = {id(each.read): each for each in asked}

    def work(size: int) -> None:
        for batch in loaded.batched([each.read for each in asked if id(each.read) not in found], size):
            found.update(zip(map(id, batch), _answered(loaded, [by_read[id(read)] for read in batch]), strict=True))
            after_batch(len(found))

    batch_size.run(work)
    return [found[id(each.read)] for each in asked]


@torch.inference_mode()
def _answered(loaded: LoadedModel, batch: Sequence[Asked]) -> list[tuple[float, bool]]:
    """Of a batch in one pass, padded on the right."""
    texts = padded(loaded, [each.read for each in batch])
    logits = logits_of(loaded.model, texts.ids, texts.attention_mask)
    return [_likelihood(logits[row, : len(each.read.ids)], each.answer) for row, each in enumerate(batch)]


def _likelihood(logits: Tensor, answer: Sequence[int]) -> tuple[float, bool]:
    """`logits` [tokens, vocabulary]: the last of them predict the answer."""
    predicted = logits[-len(answer) :]  # [answer, vocabulary]
    wanted = torch.tensor(answer, device=logits.device)
    log_shares = predicted.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    total = float(log_shares.gather(1, wanted[:, None]).sum())
    if not math.isfinite(total):
        return math.nan, False
    return total, bool((log_shares.argmax(-1) == wanted).all())
