"""Small tokenizers of the kinds that models have, trained on the built-in passages, and folders that hold them."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

SIZE = 700  # tokens of each
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
LLAMA3_WORDS = (  # how Llama 3 splits texts first
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = ["<unk>", "<s>", "</s>"]


@functools.cache
def training_texts() -> list[str]:
    passages = (files("cwa_engine.data") / "passages.txt").read_text("utf-8").split("\n\n")
    return [
        *passages,
        "In 1987 it's 12345, 67890 or 3.14; naïve café, Ünïcödé, 日本語, 한국어 🦙🎉\n\n\tdef f(x):\n    return x" * 9,
    ]


def byte_level(
    first: Any = None, normalizer: Any = None, *, prefix_space: bool = False, trim: bool = False, bos: bool = False
) -> Tokenizer:
    """Byte-level BPE as GPT-2 has it; `first` is a splitting rule of its own."""
    tokenizer = Tokenizer(models.BPE())
    if normalizer:
        tokenizer.normalizer = normalizer
    last = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space, use_regex=first is None)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([first, last]) if first else last
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE,
        special_tokens=["<|endoftext|>", "<|begin|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(training_texts(), trainer)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=trim)
    if bos:
        tokenizer.post_processor = processors.Sequence([tokenizer.post_processor, _template("<|begin|>", tokenizer)])
    return tokenizer


def sentencepiece_like(kind: str, *, split: bool = False, byte_fallback: bool = True) -> Tokenizer:
    """What SentencePiece models are converted to: blanks are ▁, unknown characters bytes, BOS before a text."""
    special = SPECIAL + (BYTES if byte_fallback else [])
    trained = Tokenizer(models.BPE(unk_token="<unk>") if kind == "bpe" else models.Unigram())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer: Any = trainers.BpeTrainer(vocab_size=SIZE, special_tokens=special, show_progress=False)
    if kind == "unigram":
        trainer = trainers.UnigramTrainer(
            vocab_size=SIZE, special_tokens=special, unk_token="<unk>", show_progress=False
        )
    trained.train_from_iterator(training_texts(), trainer)
    described = json.loads(trained.to_str())["model"]
    if kind == "bpe":
        merges = [tuple(merge) for merge in described["merges"]]
        model: Any = models.BPE(
            described["vocab"], merges, unk_token="<unk>", fuse_unk=True, byte_fallback=byte_fallback
        )
    else:
        model = models.Unigram([tuple(piece) for piece in described["vocab"]], described["unk_id"], byte_fallback)
    tokenizer = Tokenizer(model)
    if split:
        tokenizer.normalizer = normalizers.NFKC()
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    else:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.post_processor = _template("<s>", tokenizer)
    return tokenizer


def word_piece() -> Tokenizer:
    """As BERT has it: lower case, no accents, [CLS] before and [SEP] behind a text."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=SIZE, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], show_progress=False
    )
    tokenizer.train_from_iterator(training_texts(), trainer)
    numbers = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=numbers)
    return tokenizer


def _template(bos: str, tokenizer: Tokenizer) -> Any:
    return processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))])


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "gpt2": byte_level,
    "prefix space": lambda: byte_level(prefix_space=True),
    "single digits": lambda: byte_level(pre_tokenizers.Digits(individual_digits=True)),
    "llama3": lambda: byte_level(pre_tokenizers.Split(Regex(LLAMA3_WORDS), "isolated"), trim=True, bos=True),
    "lower case": lambda: byte_level(normalizer=normalizers.Lowercase()),
    "nfkc": lambda: byte_level(normalizer=normalizers.NFKC()),
    "no accents": lambda: byte_level(normalizer=normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()])),
    "llama": lambda: sentencepiece_like("bpe"),
    "unigram": lambda: sentencepiece_like("unigram"),
    "unigram of words": lambda: sentencepiece_like("unigram", split=True),
    "unigram without bytes": lambda: sentencepiece_like("unigram", byte_fallback=False),
    "wordpiece": word_piece,
}


@functools.cache
def _made(kind: str) -> str:
    return KINDS[kind]().to_str()


def tokenizer_of(kind: str) -> Tokenizer:
    """A fresh tokenizer."""
    return Tokenizer.from_str(_made(kind))


@functools.cache
def wrapped(kind: str) -> Any:
    """The same in transformers' shell."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=tokenizer_of(kind))


def tokenizer_folder(folder: Path, kind: str, model_type: str, **config: Any) -> Path:
    """A folder with the tokenizer, as a model's folder has it, and a `tokenizer_config.json` of these fields."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(_made(kind), "utf-8")
    (folder / "config.json").write_text(json.dumps({"model_type": model_type, "vocab_size": SIZE}))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder
