"""From texts to token sequences, and from sequences to batches with exact padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from cwa_engine.base.errors import DataError, InvalidInput
from cwa_engine.data.corpus import Text
from cwa_engine.data.encoding import Encoded, encode_long, encode_start
from cwa_engine.data.prefix import Prefix

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NO_PREFIX = Prefix()


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """A text, or a window of joined texts, as the model reads it."""

    ids: tuple[int, ...]
    utf8_bytes: int | None  # of the text that the scored tokens stand for; None where the tokenizer does not tell
    truncated: bool
    unscored: int = 1  # tokens at the beginning: the prefix, or without one the first token, which nothing predicts

    @property
    def scored_tokens(self) -> int:
        return max(0, len(self.ids) - self.unscored)


def tokenize(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[Text], max_tokens: int, prefix: Prefix = NO_PREFIX
) -> list[TokenSequence]:
    """Each text as at most `max_tokens` tokens, prefix included; nothing is put behind it.

    A text may be too short to have a scored token.
    """
    _check_room(max_tokens, prefix)
    sequences = []
    for text in texts:
        encoded, more = encode_start(tokenizer, text.content, max_tokens)
        sequence, used = _window(encoded, 0, max_tokens, prefix)
        sequences.append(replace(sequence, truncated=more or used < len(encoded.ids)))
    return sequences


def pack(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[Text], window: int, prefix: Prefix = NO_PREFIX
) -> list[TokenSequence]:
    """The texts joined by blank lines, cut into windows of `window` tokens, each with the prefix, which counts.

    What is left over at the end is not used. The usual protocol of perplexities on WikiText. Raises DataError where there
    is not enough for one window.
    """
    _check_room(window, prefix)
    encoded = encode_long(tokenizer, "\n\n".join(text.content for text in texts))
    sequences, start = [], 0
    while start < len(encoded.ids):
        sequence, start = _window(encoded, start, window, prefix)
        if len(sequence.ids) == window:
            sequences.append(sequence)
    if not sequences:
        most = len(encoded.ids) + len(prefix.ids)
        raise DataError(
            f"{len(texts)} texts have {most} tokens together, less than one window of {window}",
            hint=f"give more texts, or a --seq-len of at most {most}",
        )
    return sequences


def batched(
    sequences: Sequence[TokenSequence], size: int, unbatched_above: int | None = None
) -> list[list[TokenSequence]]:
    """Batches of at most `size`, longest first: little padding, and too large a batch fails at once, not at the end.

    Sequences of more than `unbatched_above` tokens have a batch of their own.
    """
    ordered = sorted(sequences, key=lambda sequence: -len(sequence.ids))
    alone = 0 if unbatched_above is None else sum(len(sequence.ids) > unbatched_above for sequence in ordered)
    rest = ordered[alone:]
    return [[one] for one in ordered[:alone]] + [rest[start : start + size] for start in range(0, len(rest), size)]


def _check_room(size: int, prefix: Prefix) -> None:
    if size <= len(prefix.ids):
        raise InvalidInput(
            f"--seq-len {size} leaves no room beside {prefix.text}", hint=f"give at least {len(prefix.ids) + 1}"
        )


def _window(encoded: Encoded, start: int, size: int, prefix: Prefix) -> tuple[TokenSequence, int]:
    """A sequence of at most `size` tokens, prefix included, from a text's token `start` on, and where the next one begins."""
    first = start + prefix.length_at(encoded.ids, start)
    stop = min(first + size - len(prefix.ids), len(encoded.ids))
    scored = first if prefix.ids else first + 1
    return TokenSequence(
        ids=(*prefix.ids, *encoded.ids[first:stop]),
        utf8_bytes=encoded.utf8_bytes(scored, stop) if scored < stop else 0,
        truncated=False,
        unscored=len(prefix.ids) or 1,
    ), stop
