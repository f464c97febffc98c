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
    """The tokens of a text, or of a window of joined texts."""

    ids: tuple[int, ...]
    utf8_bytes: int | None  # bytes that the scored tokens stand for; None if the tokenizer does not report them
    truncated: bool
    unscored: int = (
        1  # tokens at the beginning: the prefix, or without a prefix the first token, which nothing predicts
    )

    @property
    def scored_tokens(self) -> int:
        return max(0, len(self.ids) - self.unscored)


def tokenize(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[Text], max_tokens: int, prefix: Prefix = NO_PREFIX
) -> list[TokenSequence]:
    """Each text as a sequence of at most `max_tokens` tokens, including the prefix. No end token is added.

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
    """The texts joined by blank lines and cut into windows of `window` tokens, including the prefix of each.

    This is the usual protocol of perplexities on WikiText. The rest after the last window is not used. Raises DataError if
    the texts do not fill one window.
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
    """Batches of at most `size` sequences, longest first. This needs little padding, and a batch too large fails first.

    Sequences of more than `unbatched_above` tokens get a batch of their own.
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
    """A sequence of at most `size` tokens, including the prefix, from token `start` on; and the start of the next sequence."""
    first = start + prefix.length_at(encoded.ids, start)
    stop = min(first + size - len(prefix.ids), len(encoded.ids))
    scored = first if prefix.ids else first + 1
    return TokenSequence(
        ids=(*prefix.ids, *encoded.ids[first:stop]),
        utf8_bytes=encoded.utf8_bytes(scored, stop) if scored < stop else 0,
        truncated=False,
        unscored=len(prefix.ids) or 1,
    ), stop
