"""Vocabulary files without a `tokenizer.json`: SentencePiece models and tiktoken ranks."""

from __future__ import annotations

import base64
import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from cwa_engine.base.errors import ModelBroken
from cwa_engine.hub.sources import ModelSource

_OTHER_VOCABULARIES = ("vocab.json", "vocab.txt", "tekken.json")  # a folder with one of these needs no .model file
_USUAL_NAMES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "spm.model", "tiktoken.model")
_TIKTOKEN_LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d+\s*")
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED = 1, 2, 3, 4, 5  # kinds of pieces
_UNIGRAM, _BPE = 1, 2  # kinds of models


def vocabulary_file(folder: Path) -> Path | None:
    """The SentencePiece or tiktoken file from which a folder's tokenizer is made; None if it has another vocabulary."""
    if any((folder / name).is_file() for name in _OTHER_VOCABULARIES):
        return None
    return next((folder / name for name in _USUAL_NAMES if (folder / name).is_file()), None)


def is_tiktoken(path: Path) -> bool:
    """Whether a file begins with a line of base64 and a rank."""
    with path.open("rb") as file:
        line = file.readline(4096)
    if not _TIKTOKEN_LINE.fullmatch(line):
        return False
    try:
        return bool(base64.b64decode(line.split()[0], validate=True))
    except ValueError:
        return False


def is_sentencepiece(path: Path) -> bool:
    """Whether a file begins like a SentencePiece model: a protobuf whose field 1 is a piece, whose field 1 is its text."""
    with path.open("rb") as file:
        head = file.read(3)
    return len(head) == 3 and head[0] == 0x0A and head[2] == 0x0A


def refuse_missing_package(source: ModelSource, path: Path) -> None:
    """Raises ModelBroken if the package that reads this file is not installed, or if no package can read it."""
    if is_sentencepiece(path):
        kind, modules = "a SentencePiece model", {"sentencepiece": "sentencepiece", "google.protobuf": "protobuf"}
        extra = "sentencepiece"
    elif is_tiktoken(path):
        kind, modules, extra = "a tiktoken file", {"tiktoken": "tiktoken"}, "tiktoken"
    else:
        raise ModelBroken(
            f"{path.name} of {source.name} is neither a SentencePiece model nor a tiktoken file",
            hint="download it again; a git clone without LFS leaves a short text in its place",
        )
    missing = [package for module, package in modules.items() if not _installed(module)]
    if missing:
        raise ModelBroken(
            f"the tokenizer of {source.name} is {kind} ({path.name}), which needs {' and '.join(missing)}",
            hint=f"pip install 'cwtool[{extra}]', then `cwtool daemon restart`",
        )


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package it is in
        return False


def sentencepiece_tokenizer(source: ModelSource, path: Path, sample: Sequence[str]) -> tuple[Tokenizer, dict[str, str]]:
    """A tokenizer with the tokens of sentencepiece, and the names of its special tokens.

    The two are compared on a sample. If two splits have equal scores, as in a row of dashes, they may differ. Raises
    ModelBroken for a broken model, and for rules that cannot be followed exactly.
    """
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2

    described = cast(Any, sentencepiece_model_pb2).ModelProto()  # the generated module defines it at run time
    try:
        described.ParseFromString(path.read_bytes())
        own = sentencepiece.SentencePieceProcessor(model_file=str(path))
    except Exception as error:  # each package has its own errors
        raise ModelBroken(f"{path.name} of {source.name} is broken: {error}", hint="download it again") from error
    tokenizer = _built(described)
    symbols = [piece.piece.replace("▁", " ") for piece in described.pieces if piece.type == _USER_DEFINED]
    controls = [
        piece.piece for piece in described.pieces if piece.type == _CONTROL
    ]  # sentencepiece does not look for these in a text
    texts = [text for text in sample if not any(control in text for control in controls)]
    texts += [f"a {symbol} b{symbol}c" for symbol in symbols]
    if not tokenizer or any(tokenizer.encode(text, add_special_tokens=False).ids != own.encode(text) for text in texts):
        raise ModelBroken(
            f"{path.name} of {source.name} splits texts by rules that cannot be followed exactly",
            hint="put a tokenizer.json into the folder",
        )
    rules = described.trainer_spec
    return tokenizer, {
        "bos_token": rules.bos_piece,
        "eos_token": rules.eos_piece,
        "unk_token": rules.unk_piece,
    }


def _built(described: Any) -> Tokenizer | None:
    """A tokenizer from the protobuf of a SentencePiece model; None for an unknown kind of model."""
    pieces = [(piece.piece, piece.score) for piece in described.pieces]
    unknown = next(number for number, piece in enumerate(described.pieces) if piece.type == _UNKNOWN)
    # User-defined symbols are never split; of two that match, the longer one is taken.
    symbols = sorted((piece.piece for piece in described.pieces if piece.type == _USER_DEFINED), key=len, reverse=True)
    kind, fallback = described.trainer_spec.model_type, described.trainer_spec.byte_fallback
    if kind == _UNIGRAM:
        tokenizer = Tokenizer(models.Unigram(pieces, unknown, fallback))
    elif kind == _BPE:
        merged = [piece for piece in described.pieces if piece.type in (_NORMAL, _UNUSED)]
        tokenizer = Tokenizer(
            models.BPE(
                {piece: number for number, (piece, _) in enumerate(pieces)},
                _merges(merged),
                unk_token=pieces[unknown][0],
                fuse_unk=True,
                byte_fallback=fallback,
                ignore_merges=bool(symbols),
            )
        )
    else:
        return None
    tokenizer.normalizer = _normalizer(described.normalizer_spec)
    if symbols:
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("|".join(map(re.escape, symbols))), "isolated")
    tokenizer.add_special_tokens([piece.piece for piece in described.pieces if piece.type == _CONTROL])
    return tokenizer


def _merges(pieces: Sequence[Any]) -> list[tuple[str, str]]:
    """All pairs that form a piece, highest score of the piece first, which is the order of sentencepiece's merges."""
    known = {piece.piece for piece in pieces}
    return [
        (text[:cut], text[cut:])
        for text in (piece.piece for piece in sorted(pieces, key=lambda piece: -piece.score))
        for cut in range(1, len(text))
        if text[:cut] in known and text[cut:] in known
    ]


def _normalizer(rules: Any) -> normalizers.Normalizer:
    """The normalisation of a SentencePiece model: its table of characters, then its rules for blanks."""
    steps: list[normalizers.Normalizer] = []
    if rules.precompiled_charsmap:
        steps.append(normalizers.Precompiled(rules.precompiled_charsmap))
    if rules.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex("^ +| +$"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    steps.append(normalizers.Replace(" ", "▁"))
    if rules.add_dummy_prefix:
        steps.append(normalizers.Prepend("▁"))
    return normalizers.Sequence(steps)
