"""The prefix of every text: the BOS token, or nothing. It is never scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cwa_engine.base.errors import InvalidInput, ModelBroken

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Parts of the types of models that predict badly without BOS, even if their tokenizer adds none. On LAMBADA lm-eval
# measured a perplexity of 5.9e9 for Gemma without BOS and of 3.5 with it (pull request 1465; 2049 for Gemma 2).
NEEDS_BOS = ("gemma",)


@dataclass(frozen=True, slots=True)
class Prefix:
    """The tokens that every sequence or window begins with."""

    ids: tuple[int, ...] = ()
    text: str = ""  # "<s>"; empty for none

    def length_at(self, ids: Sequence[int], start: int) -> int:
        """How many tokens from `start` on are already the prefix. A text that begins with the prefix does not get it twice."""
        length = len(self.ids)
        return length if self.ids == tuple(ids[start : start + length]) else 0


def prefix_of(tokenizer: PreTrainedTokenizerBase, model_type: str, bos: str) -> Prefix:
    """The prefix by the rule `bos`.

    "auto": what the tokenizer itself puts before a text, or BOS for models that need it. "always": BOS, or EOS if the
    tokenizer has no BOS, as in lm-eval. "never": nothing. Raises InvalidInput or ModelBroken if a required token is missing.
    """
    if bos == "never":
        return Prefix()
    named = tokenizer.special_tokens_map
    token = named.get("bos_token") or named.get("eos_token")
    if bos == "always":
        if token is None:
            raise InvalidInput("--bos always: the tokenizer has neither a BOS nor an EOS token", hint="leave out --bos")
        return _named(tokenizer, _ids(tokenizer, token))
    own = _own_prefix(tokenizer)
    if own or not any(part in model_type for part in NEEDS_BOS):
        return _named(tokenizer, own)
    if token is None:
        raise ModelBroken(
            f"a {model_type} model needs BOS before each text, and its tokenizer has none",
            hint="--bos never measures the model without BOS",
        )
    return _named(tokenizer, _ids(tokenizer, token))


def _ids(tokenizer: PreTrainedTokenizerBase, token: str) -> list[int]:
    ids = tokenizer.convert_tokens_to_ids([token])
    assert isinstance(ids, list)
    return ids


def _named(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> Prefix:
    return Prefix(tuple(ids), "".join(tokenizer.convert_ids_to_tokens(list(ids))))


def _own_prefix(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that the tokenizer itself puts before a text."""
    bare, whole = (tokenizer("a", add_special_tokens=add, verbose=False)["input_ids"] for add in (False, True))
    place = next((place for place in range(len(whole)) if whole[place : place + len(bare)] == bare), 0)
    return list(whole[:place])
