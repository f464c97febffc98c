"""From texts to token sequences, and from sequences to batches with exact padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cwa_engine.data.corpus import Text
from cwa_engine.data.encoding import Encoded, encode_long, encode_start
from cwa_engine.data.prefix import Prefix
from cwa_engine.errors import DataError, InvalidInput

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
        sequences.append(TokenSequence(*sequence, more or used < len(encoded.ids), len(prefix.ids) or 1))
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
        (ids, utf8_bytes), start = _window(encoded, start, window, prefix)
        if len(ids) == window:
            sequences.append(TokenSequence(ids, utf8_bytes, False, len(prefix.ids) or 1))
    if not sequences:
        most = len(encoded.ids) + len(prefix.ids)
        raise DataError(
            f"{len(texts)} texts have {most} tokens together, less than one window of {window}",
            hint=f"give more texts, or a --seq-len of at most {most}",
        )
    return sequences


def batched(sequences: Sequence[TokenSequence], size: int) -> list[list[TokenSequence]]:
    """Batches of at most `size`, longest first: little padding, and too large a batch fails at once, not at the end."""
    ordered = sorted(sequences, key=lambda sequence: -len(sequence.ids))
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


def _check_room(size: int, prefix: Prefix) -> None:
    if size <= len(prefix.ids):
        raise InvalidInput(
            f"--seq-len {size} leaves no room beside {prefix.text}", hint=f"give at least {len(prefix.ids) + 1}"
        )


def _window(encoded: Encoded, start: int, size: int, prefix: Prefix) -> tuple[tuple[tuple[int, ...], int | None], int]:
    """((tokens, bytes of those that are scored), where the next window begins) of at most `size` tokens."""
    first = start + prefix.of(encoded.ids, start)
    stop = min(first + size - len(prefix.ids), len(encoded.ids))
    scored = first if prefix.ids else min(first + 1, stop)
    ids = (*prefix.ids, *encoded.ids[first:stop])
    return (ids, encoded.utf8_bytes(scored, stop) if scored < stop else 0), stop
