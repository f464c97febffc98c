"""What each token adds to a text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_HALF = "\ufffd"  # decoding yields this for a part of a character
_LONGEST = 4  # a character of UTF-8 has at most four bytes, so no more tokens are waited for
_BEFORE = 4  # tokens before it that a token is decoded with: some tokenizers drop the blank of a text's first token


def text_of(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """The text of tokens, special ones among them, with nothing tidied up."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def text_pieces(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> Iterator[str]:
    """The text that each token adds; an empty one for a token whose character goes on, which the last of them then has."""
    done = 0  # tokens whose text was given
    for end in range(1, len(ids) + 1):
        start = max(0, done - _BEFORE)
        before, now = text_of(tokenizer, ids[start:done]), text_of(tokenizer, ids[start:end])
        if now.endswith(_HALF) and end - done < _LONGEST and end < len(ids):
            yield ""
            continue
        done = end
        yield now[len(before) :]
