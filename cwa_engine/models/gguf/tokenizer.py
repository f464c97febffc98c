"""The tokenizer of a GGUF file for the package tokenizers: byte-level BPE, or the BPE of sentencepiece.

Source of the meaning of the metadata: src/llama-vocab.cpp of llama.cpp. Other kinds of vocabulary are refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, normalizers, processors
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from cwa_engine.base.cancellation import cancellable_steps
from cwa_engine.base.errors import ModelBroken, did_you_mean
from cwa_engine.models.gguf.file import GgufFile
from cwa_engine.models.gguf.pretokenizers import SPLITTINGS
from cwa_engine.models.gguf.vocabulary import HINT, PREFIX, Kind, Vocabulary, broken_vocabulary, read_vocabulary

_SPACE = "▁"
_LONGEST = 1000  # characters of a token, because merges try every cut of it; tokens in use have at most 256
_SENTENCEPIECE_PRE = (None, "default", "llama-spm", "phi-3", "gemma", "gemma-2")
_SENTENCEPIECE_IDS = {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0}  # defaults


def read_tokenizer(file: GgufFile) -> tuple[PreTrainedTokenizerFast, list[str]]:
    """The tokenizer, and notes for the reader of results.

    Raises ModelBroken for an unknown vocabulary, pre-tokenizer or key, and for a broken vocabulary.
    """
    vocabulary, notes, defaults = read_vocabulary(file), [], {}
    match vocabulary.values.get("model"):
        case "gpt2":
            tokenizer, adds_bos = _byte_level(vocabulary)
        case "llama":
            tokenizer, adds_bos, defaults = _sentencepiece(vocabulary), True, _SENTENCEPIECE_IDS
            notes = _on_scores(vocabulary)
        case other:
            raise ModelBroken(
                f"{file.path.name} has a vocabulary of the kind {PREFIX}model = '{other}', which cwtool does not read",
                hint=f"it reads gpt2 (byte-level BPE) and llama (sentencepiece BPE): {HINT}",
            )
    _add_tokens(tokenizer, vocabulary, str(file.metadata.get("general.name", "")))
    keys = {"bos": "bos_token_id", "eos": "eos_token_id", "unk": "unknown_token_id", "pad": "padding_token_id"}
    special = {f"{name}_token": vocabulary.named(key, defaults.get(key)) for name, key in keys.items()}
    first = _added(vocabulary, "add_bos_token", special["bos_token"], adds_bos)
    last = _added(vocabulary, "add_eos_token", special["eos_token"], False)
    tokenizer.post_processor = _template(vocabulary, first, last)
    make: Any = PreTrainedTokenizerFast  # untyped
    named = {name: token for name, token in special.items() if token is not None}
    return make(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **named), notes


def _byte_level(vocabulary: Vocabulary) -> tuple[Tokenizer, bool]:
    """(tokenizer, whether texts start with BOS by default)"""
    splitting = SPLITTINGS.get(vocabulary.values.get("pre", ""))
    if splitting is None:
        raise _unknown_splitting(vocabulary)
    if vocabulary.values.get("add_space_prefix"):
        raise ModelBroken(
            f"{vocabulary.path.name} says {PREFIX}add_space_prefix of byte-level BPE, which llama.cpp does not do",
            hint=HINT,
        )
    if "merges" not in vocabulary.values:
        raise broken_vocabulary(vocabulary.path, f"it has no {PREFIX}merges")
    merges = [_pair(merge) for merge in cancellable_steps(vocabulary.values["merges"])]
    tokenizer = Tokenizer(_bpe(vocabulary, merges, ignore_merges=splitting.ignore_merges))
    if splitting.nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = splitting.pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, splitting.adds_bos


def _unknown_splitting(vocabulary: Vocabulary) -> ModelBroken:
    """The error for an unknown pre-tokenizer. Older converters wrote "default" if they did not know it."""
    pre = vocabulary.values.get("pre")
    if pre in (None, "default"):
        what, near = f"does not say how its text is split ({PREFIX}pre = '{pre}')", ""
    else:
        what, near = f"splits text as {PREFIX}pre = '{pre}', which cwtool does not know", did_you_mean(pre, SPLITTINGS)
    advice = f"Convert the model again with a current convert_hf_to_gguf.py of llama.cpp, or {HINT}"
    return ModelBroken(f"{vocabulary.path.name} {what}", hint=f"{near} {advice}".strip())


def _pair(merge: str) -> tuple[str, str]:
    """The two parts of a merge, divided by a space. The first part is not a space itself."""
    first, _, second = merge[1:].partition(" ")
    return merge[:1] + first, second


def _sentencepiece(vocabulary: Vocabulary) -> Tokenizer:
    pre = vocabulary.values.get("pre")
    if pre not in _SENTENCEPIECE_PRE:
        raise ModelBroken(
            f"{vocabulary.path.name} has a sentencepiece vocabulary and {PREFIX}pre = '{pre}', which cwtool does not know",
            hint=HINT,
        )
    merges = _merges(_pieces(vocabulary))
    unknown = vocabulary.named("unknown_token_id", _SENTENCEPIECE_IDS["unknown_token_id"])
    options = {"unk_token": unknown, "fuse_unk": True, "byte_fallback": Kind.BYTE in vocabulary.kinds}
    tokenizer = Tokenizer(_bpe(vocabulary, merges, **options))
    prefix = vocabulary.values.get("add_space_prefix", True)
    prepend = [normalizers.Prepend(_SPACE)] if prefix else []
    tokenizer.normalizer = normalizers.Sequence([*prepend, normalizers.Replace(" ", _SPACE)])
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return tokenizer


def _pieces(vocabulary: Vocabulary) -> dict[str, tuple[int, float]]:
    """Token -> (number, score), of the tokens that merges make. Raises ModelBroken if the file has lost the scores."""
    scores = vocabulary.values.get("scores", [])
    if len(scores) != len(vocabulary.tokens):
        raise broken_vocabulary(vocabulary.path, f"it has {len(vocabulary.tokens)} tokens and {len(scores)} scores")
    numbered = enumerate(zip(vocabulary.tokens, vocabulary.kinds, scores, strict=True))
    pieces = {token: (number, score) for number, (token, kind, score) in numbered if kind == Kind.NORMAL}
    longer = [score for token, (_, score) in pieces.items() if len(token) > 1]
    if len(longer) > 1 and len(set(longer)) == 1:
        raise ModelBroken(
            f"all tokens of {vocabulary.path.name} have the same score, so the order of merges is lost",
            hint=f"the converter writes this where a model has no tokenizer.model: {HINT}",
        )
    return pieces


def _on_scores(vocabulary: Vocabulary) -> list[str]:
    """A note if scores are not ranks, as they are in sentencepiece's BPE: unigram models tokenise differently."""
    odd = sum(score != int(score) for _, score in _pieces(vocabulary).values())
    return [f"{odd} tokens have scores as of a unigram vocabulary; merged by score, as llama.cpp does"] if odd else []


def _merges(pieces: Mapping[str, tuple[int, float]]) -> list[tuple[str, str]]:
    """All pairs of pieces that form a third, highest score of the third first, in the order of transformers' conversion."""
    found = []
    for token, (_, score) in cancellable_steps(pieces.items()):
        if len(token) > _LONGEST:
            raise ModelBroken(f"a token of the vocabulary has {len(token):,} characters: '{token[:40]}...'", hint=HINT)
        halves = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        known = [(first, second) for first, second in halves if first in pieces and second in pieces]
        known.sort(key=lambda pair: (pieces[pair[0]][0], pieces[pair[1]][0]))
        found += [(score, first, second) for first, second in known]
    found.sort(key=lambda merge: (merge[0], len(merge[1]), len(merge[2])), reverse=True)
    return [(first, second) for _, first, second in found]


def _bpe(vocabulary: Vocabulary, merges: Sequence[tuple[str, str]], **options: Any) -> BPE:
    ids = vocabulary.ids
    for first, second in cancellable_steps(merges):
        if lacking := [part for part in (first, second, first + second) if part not in ids]:
            raise broken_vocabulary(
                vocabulary.path, f"'{first}' and '{second}' are merged, but '{lacking[0]}' is not a token"
            )
    return BPE(vocab=ids, merges=list(merges), **options)


def _add_tokens(tokenizer: Tokenizer, vocabulary: Vocabulary, model_name: str) -> None:
    """Add the tokens that are recognised in a text before it is split, by their names, as in transformers."""
    # Files do not say which tokens absorb the spaces after them. llama.cpp recognises Phi-3 by its name.
    phi3 = re.search("phi-?3", model_name.lower()) is not None

    def added(token: str, special: bool) -> AddedToken:
        strips = phi3 and token not in ("<unk>", "<s>", "<|endoftext|>")
        return AddedToken(token, normalized=False, special=special, rstrip=strips)

    control = vocabulary.of_kind(Kind.CONTROL, Kind.UNKNOWN)
    tokenizer.add_special_tokens([added(token, special=True) for token in control])
    tokenizer.add_tokens([added(token, special=False) for token in vocabulary.of_kind(Kind.USER_DEFINED)])


def _added(vocabulary: Vocabulary, key: str, token: str | None, default: bool) -> str | None:
    """The token that is added at the start or the end of a text; None if there is none."""
    if not vocabulary.values.get(key, default):
        return None
    if token is None:
        raise broken_vocabulary(vocabulary.path, f"{PREFIX}{key} is true, but it does not name the token")
    return token


def _template(vocabulary: Vocabulary, first: str | None, last: str | None) -> processors.PostProcessor:
    before, after = [first] if first else [], [last] if last else []
    return processors.TemplateProcessing(
        single=[*before, "$A", *after],
        pair=[*before, "$A", "$B", *after],
        special_tokens=[(token, vocabulary.ids[token]) for token in {*before, *after}],
    )
