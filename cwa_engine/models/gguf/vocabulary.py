"""The tokens of a GGUF file and their metadata. Every key under tokenizer.ggml must be known."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

from cwa_engine.base.errors import ModelBroken
from cwa_engine.models.gguf.file import GgufFile
from cwa_engine.models.gguf.values import checked

PREFIX = "tokenizer.ggml."
HINT = "give the model that the file was made from, as a folder or Hub id; docs/gguf.md lists what is read"

_IDS = ("bos_token_id", "eos_token_id", "unknown_token_id", "padding_token_id")
_LISTS = ("tokens", "token_type", "scores", "merges")
_OTHERS = ("model", "pre", "add_space_prefix", "add_bos_token", "add_eos_token")
_FALSE = ("add_sep_token", "remove_extra_whitespaces", "escape_whitespaces")  # keys without effect if they are false
# Keys without effect: of generation, of other tasks, and of tokens that the vocabulary has by name too.
_WITHOUT_EFFECT = re.compile(
    r"(eot|eom|fim_\w+|prefix|suffix|middle|fsep|mask|cls|sep"
    r"|seperator)_token_id|suppress_tokens|token_type_count"  # codespell:ignore seperator
)
_NO_UTF8 = re.compile("[\ud800-\udfff]")  # reading the header turns bytes that are not UTF-8 into these


class Kind(IntEnum):
    """The kind of a token, in `tokenizer.ggml.token_type`."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a file and their metadata."""

    path: Path
    values: Mapping[str, Any]  # metadata without its prefix
    tokens: tuple[str, ...]
    kinds: tuple[int, ...]

    @functools.cached_property
    def ids(self) -> dict[str, int]:
        """Token -> number, without the tokens that only pad the embedding."""
        named = {self.values.get(key) for key in _IDS}
        every = enumerate(zip(self.tokens, self.kinds, strict=True))
        return {token: number for number, (token, kind) in every if kind != Kind.UNUSED or number in named}

    def of_kind(self, *kinds: Kind) -> list[str]:
        return [token for token, kind in zip(self.tokens, self.kinds, strict=True) if kind in kinds]

    def named(self, key: str, default: int | None = None) -> str | None:
        """The token whose number is the value of `key`. Raises ModelBroken for a number that no token has."""
        number: int | None = self.values.get(key, default)
        if number is None:
            return None
        if not 0 <= number < len(self.tokens):
            raise broken_vocabulary(self.path, f"{PREFIX}{key} is {number}, and it has {len(self.tokens)} tokens")
        return self.tokens[number]


def read_vocabulary(file: GgufFile) -> Vocabulary:
    """The vocabulary of a file. Raises ModelBroken for a broken vocabulary and for unknown keys."""
    values = {key.removeprefix(PREFIX): value for key, value in file.metadata.items() if key.startswith(PREFIX)}
    known = (*_IDS, *_LISTS, *_OTHERS, *(key for key in _FALSE if not values.get(key)))
    unknown = sorted(key for key in values if key not in known and not _WITHOUT_EFFECT.fullmatch(key))
    if unknown:
        raise ModelBroken(
            f"{file.path.name} says {', '.join(PREFIX + key for key in unknown)}, which cwtool does not know: "
            "texts could become other tokens without it",
            hint=HINT,
        )
    for key in set(values).intersection((*_IDS, *_LISTS, *_OTHERS)):
        checked(file.path, PREFIX + key, values[key], key in _LISTS)
    if not values.get("tokens"):
        raise ModelBroken(f"{file.path.name} has no vocabulary ({PREFIX}tokens)", hint=HINT)
    tokens = tuple(token or f"[EMPTY_{number}]" for number, token in enumerate(values["tokens"]))
    kinds = tuple(values.get("token_type", [Kind.NORMAL] * len(tokens)))
    if len(kinds) != len(tokens):
        raise broken_vocabulary(file.path, f"it has {len(tokens)} tokens and {len(kinds)} kinds of tokens")
    if odd := set(kinds) - set(Kind):
        raise broken_vocabulary(file.path, f"it has tokens of the unknown kind {min(odd)}")
    if len(set(tokens)) < len(tokens):
        twice, _ = Counter(tokens).most_common(1)[0]
        raise broken_vocabulary(file.path, f"it has '{twice}' more than once")
    for number, token in enumerate(tokens):
        if _NO_UTF8.search(token):
            raise broken_vocabulary(file.path, f"token {number} is not UTF-8")
    return Vocabulary(file.path, values, tokens, kinds)


def broken_vocabulary(path: Path, why: str) -> ModelBroken:
    return ModelBroken(f"the vocabulary of {path.name} is broken: {why}", hint="download or convert the model again")
