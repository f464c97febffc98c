"""Encoding of texts: tokens, the bytes that each token stands for, and long texts in bounded memory.

The bytes of a token are given by byte ends: token i stands for the UTF-8 bytes from end i-1 to end i, so the bytes of all
tokens add up to the text. Characters that a tokenizer drops between tokens (blanks, in WordPiece) belong to the next token.
"""

from __future__ import annotations

import functools
import math
import re
from array import array
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import pre_tokenizers

from cwa_engine.base.cancellation import check_cancelled

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHARACTERS_A_TOKEN = 8  # above the average of texts, so that the first attempt mostly has enough tokens
# Lengths that are compared differ by a number without the factors 2, 3, 5 and 7. How a tokenizer splits a run of one
# character can depend on its length modulo the length of a token, and equal remainders would hide a difference.
ROUND = 2 * 3 * 5 * 7
STRIDE = 1250 * ROUND + 1  # characters of a piece of a long text: about 40 MB of memory,
OVERLAP = 20 * ROUND  # and the characters before it that the piece starts with


@dataclass(frozen=True, slots=True)
class Encoded:
    """The tokens of a text without special tokens, and for each the UTF-8 bytes of the text up to its end; None if unknown."""

    ids: Sequence[int]
    ends: Sequence[int] | None

    def utf8_bytes(self, first: int, last: int) -> int | None:
        """Bytes of the tokens from `first` up to, not including, `last`; None if unknown."""
        if self.ends is None:
            return None
        return self.ends[last - 1] - (self.ends[first - 1] if first else 0)


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> Encoded:
    """The tokens of a text, tokenized in one piece."""
    check_cancelled()
    if not tokenizer.is_fast:
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return Encoded(ids, _spelled_ends(tokenizer, text, ids))
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    processor = backend.post_processor
    backend.post_processor = None  # it adds special tokens, and may trim blanks from the offsets of a token
    try:
        found = backend.encode(text, add_special_tokens=False)
    finally:
        backend.post_processor = processor
    return Encoded(found.ids, _byte_ends(text, found, backend))


def encode_start(tokenizer: PreTrainedTokenizerBase, text: str, count: int) -> tuple[Encoded, bool]:
    """At least the first `count` tokens of a text, and whether the text has more tokens.

    Only the beginning of a long text is tokenized, at two lengths, the second more than twice the first. If the first
    `count` tokens agree, they are those of the whole text. If not, both lengths are doubled, up to the whole text.
    """
    length = math.ceil(CHARACTERS_A_TOKEN * count / ROUND) * ROUND
    while 2 * length + 1 < len(text):
        short, long = encode(tokenizer, text[:length]), encode(tokenizer, text[: 2 * length + 1])
        if len(short.ids) >= count < len(long.ids) and short.ids[:count] == long.ids[:count]:
            return long, True
        length *= 2
    whole = encode(tokenizer, text)
    return whole, len(whole.ids) > count


def encode_long(tokenizer: PreTrainedTokenizerBase, text: str, stride: int = STRIDE, overlap: int = OVERLAP) -> Encoded:
    """All tokens of a text. A long text is tokenized in overlapping pieces.

    Two pieces are joined in the middle of their overlap if the tokens of its middle half agree in ids and places. A token
    border that both pieces have is a border of the whole text: the tokens on one side do not depend on the other side.
    If the tokens disagree, the overlap is widened, at most to the beginning of the text.

    A slow tokenizer does not report the places of its tokens, so its text is tokenized in one piece.
    """
    if not tokenizer.is_fast or len(text) <= stride + overlap:
        return encode(tokenizer, text)
    ids, ends = array("I"), array("q")
    read, read_bytes = 0, 0  # characters of the text, and their bytes
    while read < len(text):
        upto = min(read + stride, len(text))
        back = min(overlap, read)
        while True:
            start = read - back
            before = read_bytes - len(text[start:read].encode())
            piece = encode(tokenizer, text[start:upto])
            places = array("q", (before + end for end in piece.ends or ()))
            if start == 0 or _join(ids, ends, piece.ids, places, before, read_bytes):
                break
            back = min(4 * back, read)
        if start == 0:
            ids, ends = array("I", piece.ids), places
        read_bytes += len(text[read:upto].encode())
        read = upto
    # Share one object for equal numbers: a place in a window then takes 8 bytes instead of 36.
    numbers = list(range(max(ids, default=0) + 1))
    return Encoded([numbers[token] for token in ids], ends)


def _join(ids: array[int], ends: array[int], more: Sequence[int], places: array[int], start: int, stop: int) -> bool:
    """Append the tokens of a piece that overlaps the earlier ones from byte `start` to `stop`. False if they disagree."""
    quarter = (stop - start) // 4
    low, middle, high = (start + part * quarter for part in (1, 2, 3))
    here, there = (slice(bisect_left(side, low), bisect_left(side, high)) for side in (ends, places))
    agree = ends[here] == places[there] and ids[here] == array("I", more[there])
    if not agree or here.start == here.stop:
        return False
    kept, new = bisect_left(ends, middle), bisect_left(places, middle)
    del ids[kept:], ends[kept:]
    ids.extend(more[new:])
    ends.extend(places[new:])
    return True


def _byte_ends(text: str, found: Any, backend: Any) -> list[int]:
    """Byte ends from the characters of each token. Tokens that share characters divide their bytes.

    They divide them in proportion to the bytes they spell. This is exact if the tokenizer does not change the text.
    """
    if not found.ids:
        return []
    bounds = _byte_bounds(text)
    offsets = np.array(found.offsets, dtype=np.int64)
    stops = np.maximum.accumulate(offsets[:, 1])
    stops[-1] = len(text)
    ends: list[int] = bounds[stops].tolist()
    shared = (offsets[1:, 0] < stops[:-1]).nonzero()[0].tolist()  # tokens that end inside the next one
    if shared:
        byte_level = "ByteLevel(" in f"{backend.normalizer} {backend.pre_tokenizer}"
        _divide(ends, shared, found.tokens, byte_level)
    return ends


def _byte_bounds(text: str) -> np.ndarray[Any, np.dtype[np.int64]]:
    """UTF-8 bytes before each character, and at the end those of the whole text."""
    if text.isascii():
        return np.arange(len(text) + 1)
    codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    sizes = 1 + sum((codes >= least).astype(np.int64) for least in (0x80, 0x800, 0x10000))
    return np.concatenate([[0], np.cumsum(sizes)])


def _divide(ends: list[int], shared: Sequence[int], tokens: Sequence[str], byte_level: bool) -> None:
    """Set the byte ends of the `shared` tokens, each of which shares characters with the next one."""
    place = 0
    while place < len(shared):
        first = last = shared[place]
        while place < len(shared) and shared[place] == last:
            last, place = last + 1, place + 1
        begin = ends[first - 1] if first else 0
        size = ends[last] - begin
        spelled = list(accumulate(_spelled_bytes(token, byte_level) for token in tokens[first : last + 1]))
        for index in range(first, last):
            ends[index] = begin + size * spelled[index - first] // max(spelled[-1], 1)


_BYTE_ALPHABET = frozenset(pre_tokenizers.ByteLevel.alphabet())


@functools.lru_cache(maxsize=2**16)
def _spelled_bytes(token: str, byte_level: bool) -> int:
    """How many bytes a token spells: in the byte-level alphabet, as the name of a byte (<0x0A>), or as text."""
    if byte_level and _BYTE_ALPHABET.issuperset(token):
        return len(token)
    if re.fullmatch(r"<0x[0-9A-F]{2}>", token):
        return 1
    return len(token.replace("▁", " ").encode())


def _spelled_ends(tokenizer: PreTrainedTokenizerBase, text: str, ids: Sequence[int]) -> list[int] | None:
    """Byte ends if the tokens, decoded one by one, spell the text; None if they do not."""
    pieces = [str(tokenizer.decode([token], clean_up_tokenization_spaces=False)) for token in ids]
    return list(accumulate(len(piece.encode()) for piece in pieces)) if "".join(pieces) == text else None
