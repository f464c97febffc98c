"""From texts to token sequences, and from sequences to batches with exact padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cwa_engine.data.corpus import Text
from cwa_engine.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """One text as the model reads it. All tokens but the first are scored."""

    ids: tuple[int, ...]
    utf8_bytes: int  # of the text these tokens stand for
    truncated: bool

    @property
    def scored_tokens(self) -> int:
        return len(self.ids) - 1


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: Sequence[Text], max_tokens: int) -> list[TokenSequence]:
    """Each text as at most `max_tokens` tokens, special tokens as the tokenizer adds them.

    Raises DataError, naming the text, for one shorter than two tokens: there is nothing to predict in it.
    """
    sequences = []
    for text in texts:
        ids = tokenizer(text.content, verbose=False)["input_ids"]
        if len(ids) < 2:
            raise DataError(
                f"{text.where} has {len(ids)} token{'s' * (len(ids) != 1)}: '{text.content[:40]}'",
                hint="a text needs at least two tokens, so that one can be predicted; remove it or join it to another",
            )
        kept = ids[:max_tokens]
        truncated = len(kept) < len(ids)
        covered = str(tokenizer.decode(kept, skip_special_tokens=True)) if truncated else text.content
        sequences.append(TokenSequence(tuple(kept), len(covered.encode()), truncated))
    return sequences


def pack(tokenizer: PreTrainedTokenizerBase, texts: Sequence[Text], window: int) -> list[TokenSequence]:
    """The texts joined by blank lines, cut into windows of `window` tokens; what is left over at the end is not used.

    The usual protocol of perplexities on WikiText. Raises DataError where there is not enough for one window.
    """
    joined = "\n\n".join(text.content for text in texts)
    ids = tokenizer(joined, verbose=False)["input_ids"]
    if len(ids) < window:
        raise DataError(
            f"{len(texts)} texts have {len(ids)} tokens together, less than one window of {window}",
            hint=f"give more texts, or a --seq-len of at most {len(ids)}",
        )
    windows = [ids[start : start + window] for start in range(0, len(ids) - window + 1, window)]
    return [
        TokenSequence(tuple(kept), len(str(tokenizer.decode(kept, skip_special_tokens=True)).encode()), False)
        for kept in windows
    ]


def batched(sequences: Sequence[TokenSequence], size: int, alone_above: int | None = None) -> list[list[TokenSequence]]:
    """Batches of at most `size`, longest first: little padding, and too large a batch fails at once, not at the end.

    Sequences of more than `alone_above` tokens have a batch of their own.
    """
    ordered = sorted(sequences, key=lambda sequence: -len(sequence.ids))
    alone = 0 if alone_above is None else sum(len(sequence.ids) > alone_above for sequence in ordered)
    rest = ordered[alone:]
    return [[one] for one in ordered[:alone]] + [rest[start : start + size] for start in range(0, len(rest), size)]
