"""What stands before a text: the BOS token, by rule. None of it is ever scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cwa_engine.base.errors import InvalidInput, ModelBroken

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Models that predict badly without BOS even where their tokenizer adds none, by a part of their type. For Gemma lm-eval
# measured perplexity 5.9e9 without and 3.5 with it on LAMBADA (pull request 1465; 2049 for Gemma 2).
NEEDS_BOS = ("gemma",)


@dataclass(frozen=True, slots=True)
class Prefix:
    """The tokens every sequence or window begins with."""

    ids: tuple[int, ...] = ()
    text: str = ""  # "<s>"; empty for none

    def length_at(self, ids: Sequence[int], start: int) -> int:
        """How many of the tokens from `start` on are the prefix already: a text that begins with it has it once."""
        length = len(self.ids)
        return length if self.ids == tuple(ids[start : start + length]) else 0


def prefix_of(tokenizer: PreTrainedTokenizerBase, model_type: str, bos: str) -> Prefix:
    """The prefix by the rule `bos`.

    "auto": what the tokenizer itself puts before a text, or BOS for models that need it; "always": BOS, or EOS where the
    tokenizer has no BOS, as lm-eval has it; "never": nothing. Raises InvalidInput or ModelBroken where there is neither.
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
            hint="--bos never measures it without",
        )
    return _named(tokenizer, _ids(tokenizer, token))


def _ids(tokenizer: PreTrainedTokenizerBase, token: str) -> list[int]:
    ids = tokenizer.convert_tokens_to_ids([token])
    assert isinstance(ids, list)
    return ids


def _named(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> Prefix:
    return Prefix(tuple(ids), "".join(tokenizer.convert_ids_to_tokens(list(ids))))


def _own_prefix(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the tokenizer puts before the tokens of a text."""
    bare, whole = (tokenizer("a", add_special_tokens=add, verbose=False)["input_ids"] for add in (False, True))
    place = next((place for place in range(len(whole)) if whole[place : place + len(bare)] == bare), 0)
    return list(whole[:place])
