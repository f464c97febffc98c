"""The tokenizer of a GGUF file, as the package tokenizers has it: byte-level BPE, or the BPE of sentencepiece.

What each piece of metadata means: src/llama-vocab.cpp of llama.cpp. Kinds of vocabulary that are not read are refused.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, normalizers, processors
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from cwa_engine.errors import ModelBroken, did_you_mean
from cwa_engine.models.gguf.file import GgufFile
from cwa_engine.models.gguf.pretokenizers import CUTTINGS

_GGML = "tokenizer.ggml."
_SPACE = "▁"
_SPM_PRE = (None, "default", "llama-spm", "phi-3", "gemma", "gemma-2")
_IDS = ("bos_token_id", "eos_token_id", "unknown_token_id", "padding_token_id")
_READ = (
    "model",
    "pre",
    "tokens",
    "token_type",
    "scores",
    "merges",
    "add_space_prefix",
    "add_bos_token",
    "add_eos_token",
)
# Of generation, of other tasks, and of tokens that are in the vocabulary by name as well.
_WITHOUT_EFFECT = re.compile(
    r"(eot|eom|fim_\w+|prefix|suffix|middle|fsep|mask|cls|seperator|sep)_token_id|suppress_tokens|token_type_count"
)
_HINT = "give the model that the file was made from, as a folder or Hub id; docs/gguf.md lists what is read"


class Kind(IntEnum):
    """Of a token, in `tokenizer.ggml.token_type`."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a file and what it says of them."""

    path: Path
    values: Mapping[str, Any]  # metadata without its prefix
    tokens: tuple[str, ...]
    kinds: tuple[int, ...]

    @property
    def ids(self) -> dict[str, int]:
        """Of all tokens but those that fill up the embedding, which no text may become."""
        named = {self.values.get(key) for key in _IDS}
        every = enumerate(zip(self.tokens, self.kinds, strict=True))
        return {token: number for number, (token, kind) in every if kind != Kind.UNUSED or number in named}

    def of_kind(self, *kinds: Kind) -> list[str]:
        return [token for token, kind in zip(self.tokens, self.kinds, strict=True) if kind in kinds]

    def named(self, key: str, default: int | None = None) -> str | None:
        """The token whose number is at `key`. Raises ModelBroken for a number that no token has."""
        number: int | None = self.values.get(key, default)
        if number is None:
            return None
        if not 0 <= number < len(self.tokens):
            raise broken(self.path, f"{_GGML}{key} is {number}, and it has {len(self.tokens)} tokens")
        return self.tokens[number]


def read_tokenizer(file: GgufFile) -> tuple[PreTrainedTokenizerFast, list[str]]:
    """The tokenizer, and notes for whoever reads the results.

    Raises ModelBroken that names a vocabulary, a pre-tokenizer or a key which is not read here, and for broken vocabularies.
    """
    vocabulary = _vocabulary(file)
    match vocabulary.values.get("model"):
        case "gpt2":
            tokenizer, starts, notes = _byte_level(vocabulary)
        case "llama":
            tokenizer, starts, notes = _sentencepiece(vocabulary)
        case other:
            raise ModelBroken(
                f"{file.path.name} has a vocabulary of the kind {_GGML}model = '{other}', which cwtool does not read",
                hint=f"it reads gpt2 (byte-level BPE) and llama (sentencepiece BPE): {_HINT}",
            )
    _add_tokens(tokenizer, vocabulary, str(file.metadata.get("general.name", "")))
    spm = vocabulary.values["model"] == "llama"
    special = {
        "bos_token": vocabulary.named("bos_token_id", 1 if spm else None),
        "eos_token": vocabulary.named("eos_token_id", 2 if spm else None),
        "unk_token": vocabulary.named("unknown_token_id", 0 if spm else None),
        "pad_token": vocabulary.named("padding_token_id"),
    }
    first = _added(vocabulary, "add_bos_token", special["bos_token"], starts)
    last = _added(vocabulary, "add_eos_token", special["eos_token"], False)
    tokenizer.post_processor = _template(vocabulary, first, last)
    make: Any = PreTrainedTokenizerFast  # untyped
    template = file.metadata.get("tokenizer.chat_template")
    named = {name: token for name, token in special.items() if token is not None}
    return (
        make(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, chat_template=template, **named),
        notes,
    )


def broken(path: Path, why: str) -> ModelBroken:
    return ModelBroken(f"the vocabulary of {path.name} is broken: {why}", hint="download or convert the model again")


def _vocabulary(file: GgufFile) -> Vocabulary:
    values = {key.removeprefix(_GGML): value for key, value in file.metadata.items() if key.startswith(_GGML)}
    unknown = sorted(key for key in values if key not in _READ + _IDS and not _WITHOUT_EFFECT.fullmatch(key))
    for key in ("add_sep_token", "remove_extra_whitespaces", "escape_whitespaces"):
        if key in unknown and not values[key]:
            unknown.remove(key)
    if unknown:
        raise ModelBroken(
            f"{file.path.name} says {', '.join(_GGML + key for key in unknown)}, which cwtool does not know: "
            "texts could become other tokens without it",
            hint=_HINT,
        )
    tokens = values.get("tokens")
    if not tokens:
        raise ModelBroken(f"{file.path.name} has no vocabulary ({_GGML}tokens)", hint=_HINT)
    tokens = tuple(token or f"[EMPTY_{number}]" for number, token in enumerate(tokens))
    kinds = tuple(values.get("token_type", [Kind.NORMAL] * len(tokens)))
    if len(kinds) != len(tokens):
        raise broken(file.path, f"it has {len(tokens)} tokens and {len(kinds)} kinds of tokens")
    if odd_kinds := set(kinds) - set(Kind):
        raise broken(file.path, f"it has tokens of the unknown kind {min(odd_kinds)}")
    if len(set(tokens)) < len(tokens):
        twice, _ = Counter(tokens).most_common(1)[0]
        raise broken(file.path, f"it has '{twice}' more than once")
    if odd := next((token for token in tokens if not _is_text(token)), None):
        raise broken(file.path, f"token {tokens.index(odd)} is no UTF-8")
    return Vocabulary(file.path, values, tokens, kinds)


def _is_text(token: str) -> bool:
    return token.isprintable() or not any("\ud800" <= character <= "\udfff" for character in token)


def _byte_level(vocabulary: Vocabulary) -> tuple[Tokenizer, bool, list[str]]:
    """(tokenizer, whether texts start with bos where the file does not say, notes)"""
    pre = vocabulary.values.get("pre")
    if pre not in CUTTINGS:
        near = did_you_mean(pre or "", CUTTINGS) if pre != "default" else ""
        said = f"cuts text as {_GGML}pre = '{pre}'" if pre else f"does not say how it cuts text ({_GGML}pre)"
        why = "cwtool does not know how" if pre and pre != "default" else "so that it cannot become the right tokens"
        raise ModelBroken(
            f"{vocabulary.path.name} {said}: {why}",
            hint=f"{near} Convert the model again with a current convert_hf_to_gguf.py of llama.cpp, or {_HINT}".strip(),
        )
    cutting = CUTTINGS[pre]
    if "merges" not in vocabulary.values:
        raise broken(vocabulary.path, f"it has no {_GGML}merges")
    merges = [_pair(merge) for merge in vocabulary.values["merges"]]
    tokenizer = Tokenizer(_bpe(vocabulary, merges, ignore_merges=cutting.whole_words))
    if normalizer := cutting.normalizer():
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = cutting.pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, cutting.starts, []


def _pair(merge: str) -> tuple[str, str]:
    """The two parts, which a space divides. The first is no space."""
    first, _, second = merge[1:].partition(" ")
    return merge[:1] + first, second


def _sentencepiece(vocabulary: Vocabulary) -> tuple[Tokenizer, bool, list[str]]:
    pre = vocabulary.values.get("pre")
    if pre not in _SPM_PRE:
        raise ModelBroken(
            f"{vocabulary.path.name} has a sentencepiece vocabulary and {_GGML}pre = '{pre}', which cwtool does not know",
            hint=_HINT,
        )
    scores = vocabulary.values.get("scores")
    if scores is None or len(scores) != len(vocabulary.tokens):
        raise broken(vocabulary.path, f"it has {len(vocabulary.tokens)} tokens and {len(scores or [])} scores")
    normal = {
        token: (number, score)
        for number, (token, kind, score) in enumerate(zip(vocabulary.tokens, vocabulary.kinds, scores, strict=True))
        if kind == Kind.NORMAL
    }
    own_scores = {score for token, (_, score) in normal.items() if len(token) > 1}
    if len(normal) > len(own_scores) == 1:
        raise ModelBroken(
            f"all tokens of {vocabulary.path.name} have the same score, so that it is lost which are merged first",
            hint=f"the converter writes this where a model has no tokenizer.model: {_HINT}",
        )
    unknown = vocabulary.named("unknown_token_id", 0)
    options = {"unk_token": unknown, "fuse_unk": True, "byte_fallback": Kind.BYTE in vocabulary.kinds}
    tokenizer = Tokenizer(_bpe(vocabulary, _merges(normal), **options))
    prefix = vocabulary.values.get("add_space_prefix", True)
    prepend = [normalizers.Prepend(_SPACE)] if prefix else []
    tokenizer.normalizer = normalizers.Sequence([*prepend, normalizers.Replace(" ", _SPACE)])
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    odd = sum(score != int(score) for score in own_scores)
    notes = [
        f"{odd} of its tokens have scores as unigram vocabularies have them; they are merged by score, as llama.cpp does"
    ]
    return tokenizer, True, notes if odd else []


def _merges(normal: Mapping[str, tuple[int, float]]) -> list[tuple[str, str]]:
    """Every way in which two tokens make a third, the third with the highest score first; as transformers converts them."""
    found = []
    for token, (_, score) in normal.items():
        parts = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        known = [(first, second) for first, second in parts if first in normal and second in normal]
        known.sort(key=lambda pair: (normal[pair[0]][0], normal[pair[1]][0]))
        found += [(score, first, second) for first, second in known]
    found.sort(key=lambda merge: (merge[0], len(merge[1]), len(merge[2])), reverse=True)
    return [(first, second) for _, first, second in found]


def _bpe(vocabulary: Vocabulary, merges: Sequence[tuple[str, str]], **options: Any) -> BPE:
    ids = vocabulary.ids
    for first, second in merges:
        if lacking := [part for part in (first, second, first + second) if part not in ids]:
            raise broken(vocabulary.path, f"'{first}' and '{second}' are merged, but '{lacking[0]}' is no token")
    return BPE(vocab=ids, merges=list(merges), **options)


def _add_tokens(tokenizer: Tokenizer, vocabulary: Vocabulary, model_name: str) -> None:
    """Tokens that are found in a text before it is cut. In texts their names stand for them, as in transformers."""
    # Files do not say which tokens take the spaces behind them. llama.cpp knows Phi-3 by its name.
    phi3 = re.search("phi-?3", model_name.lower()) is not None

    def added(token: str, special: bool) -> AddedToken:
        strips = phi3 and token not in ("<unk>", "<s>", "<|endoftext|>")
        return AddedToken(token, normalized=False, special=special, rstrip=strips)

    control = vocabulary.of_kind(Kind.CONTROL, Kind.UNKNOWN)
    tokenizer.add_special_tokens([added(token, special=True) for token in control])
    tokenizer.add_tokens([added(token, special=False) for token in vocabulary.of_kind(Kind.USER_DEFINED)])


def _added(vocabulary: Vocabulary, key: str, token: str | None, default: bool) -> str | None:
    """The token that a text starts or ends with, None without one."""
    if not vocabulary.values.get(key, default):
        return None
    if token is None:
        raise broken(vocabulary.path, f"{_GGML}{key} is true, but it does not say which token that is")
    return token


def _template(vocabulary: Vocabulary, first: str | None, last: str | None) -> processors.PostProcessor:
    before, after = [first] if first else [], [last] if last else []
    return processors.TemplateProcessing(
        single=[*before, "$A", *after],
        pair=[*before, "$A", "$B", *after],
        special_tokens=[(token, vocabulary.ids[token]) for token in {*before, *after}],
    )
