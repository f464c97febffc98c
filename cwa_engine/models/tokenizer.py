"""A model's tokenizer. It splits texts as the model's own files say.

From version 5 on, transformers picks a tokenizer class by model type or by a name in a config. Many classes take only the
vocabulary from `tokenizer.json` and have their own rules for digits, blanks, accents and letter case. We therefore use
`tokenizer.json` unchanged, and take only the names of special tokens (which is BOS, which EOS) from the class. A note says
if the class would have split texts differently.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from cwa_engine.base.cancellation import check_cancelled
from cwa_engine.base.errors import ModelBroken
from cwa_engine.base.plain import JsonMap
from cwa_engine.hub.sources import ModelSource
from cwa_engine.models.model_files import read_json
from cwa_engine.models.tokenizer_trial import tokenizer_problem
from cwa_engine.models.vocabulary_file import (
    is_sentencepiece,
    is_tiktoken,
    refuse_missing_package,
    sentencepiece_tokenizer,
    vocabulary_file,
)

STORED = "tokenizer.json"
SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
VOCABULARIES = ("vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model", "tekken.json")
# Texts that tokenizers split differently: digits, contractions, accents, scripts, signs, blanks, newlines, case, code.
AWKWARD = (
    "In 1987, 12345 and 3.14159; 67,890.5 km² cost €1_000.",
    "It's what they'd said: I'LL pay, we're off, y'all.",
    "Ünïcödé: café, cafe\u0301, naïve, ﬁne, Å, ½, ẞ, İ, Σας.",
    "中文字符 日本語 한국어 العربية हिन्दी 🦙🎉🏳️‍🌈\u200b\u00a0\u3000end",
    "a  b   c    d\t\te\n\nf \n  g\r\nh ",
    " ===== ----- ..... !!! ((a)) [b] <c> {d}",
    "def f(x):\n    return x**2  # camelCase snake_case\n\tprint(f'{x!r}')\n",
)
_REPEATED = "a" * 60 + "!"  # some regular expressions try 2^60 ways to match this


def load_tokenizer(
    source: ModelSource, folder: Path, **options: Any
) -> tuple[PreTrainedTokenizerBase, tuple[str, ...]]:
    """The tokenizer of a folder, and notes for the reader of results.

    `options` go to `AutoTokenizer.from_pretrained`. If there is a `tokenizer.json`, the tokens of every text are those of
    `tokenizers.Tokenizer.from_file`; if there is only a SentencePiece model, those of sentencepiece; else those of the class
    that transformers picks. Raises ModelBroken, and without these files what transformers raises.
    """
    config = _read_json(folder / "tokenizer_config.json")
    if (folder / STORED).is_file():
        return _as_described(source, folder, STORED, _stored(source, folder), config, options)
    vocabulary = vocabulary_file(folder)
    if vocabulary:
        refuse_missing_package(source, vocabulary)
        own_code = bool(config.get("auto_map")) and options.get("trust_remote_code")
        if is_sentencepiece(vocabulary) and not own_code:
            described, names = sentencepiece_tokenizer(source, vocabulary, _sample())
            return _as_described(source, folder, vocabulary.name, described, {**names, **config}, options)
    tokenizer = _by_class(source, folder, options, vocabulary)
    if vocabulary and is_tiktoken(vocabulary):
        rule = "does not say at which signs texts are split first: the rule that transformers knows is used"
        return tokenizer, (f"{vocabulary.name} {rule}",)
    return tokenizer, ()


def _stored(source: ModelSource, folder: Path) -> Tokenizer:
    def refused(why: str) -> ModelBroken:
        return ModelBroken(
            f"{STORED} of {source.name} cannot be read: {why}", hint="download it, or save the tokenizer, again"
        )

    if why := tokenizer_problem(folder / STORED, [*_sample(), _REPEATED], check_cancelled):
        raise refused(why)
    try:
        return Tokenizer.from_file(str(folder / STORED))
    except Exception as error:  # the package raises plain Exception
        raise refused(str(error)) from error


def _as_described(
    source: ModelSource,
    folder: Path,
    file: str,
    described: Tokenizer,
    config: dict[str, object],
    options: dict[str, object],
) -> tuple[PreTrainedTokenizerBase, tuple[str, ...]]:
    """The tokenizer that a file describes, wrapped for transformers, with special tokens named as transformers names them."""
    notes = [*_without_dropout(described, file), *_add_numbered_tokens(source, described, folder, config, file)]
    names = _read_json(folder / "special_tokens_map.json") | config
    try:
        picked = AutoTokenizer.from_pretrained(folder, **options)
        notes += _difference(picked, described, file)
        names |= {
            name: token for name, token in picked.special_tokens_map.items() if described.token_to_id(token) is not None
        }
    except Exception as error:  # a class that does not fit the file may raise any error
        if file != STORED or "trust_remote_code" in str(error):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        notes.append(f"{file} is used alone, for transformers makes no tokenizer class of these files: {reason}")
    else:
        if file != STORED:
            _refuse_other_numbers(source, picked, described, file)
    tokenizer = _wrapped(described, names)
    if file != STORED and config.get("add_bos_token") and "bos_token" in tokenizer.special_tokens_map:
        tokenizer.add_bos_token = True
    return refuse_empty(source, tokenizer), (*notes, *_bos_disagreement(tokenizer, config, file))


def _by_class(
    source: ModelSource, folder: Path, options: dict[str, object], vocabulary: Path | None
) -> PreTrainedTokenizerBase:
    """The tokenizer of the class that transformers picks, from the files that this class reads."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **options)
    except ImportError as error:
        raise ModelBroken(
            f"the tokenizer of {source.name} needs a package that is not installed: {str(error).strip().splitlines()[0]}",
            hint=f"install it, or put a {STORED} into the folder",
        ) from error
    except (TypeError, ValueError) as error:
        if "trust_remote_code" in str(error):
            raise
        there = [name for name in VOCABULARIES if (folder / name).is_file()]
        what = f"none of {' and '.join(there)}" if there else "none, for there are no files of one"
        raise _no_tokenizer(source, f"transformers makes {what}") from error
    names = [name for name in tokenizer.vocab_files_names.values() if name]
    if names and not vocabulary and not any((folder / name).is_file() for name in (*names, "tekken.json")):
        raise _no_tokenizer(source, f"{type(tokenizer).__name__} reads {', '.join(names)}")
    return refuse_empty(source, tokenizer)


def refuse_empty(source: ModelSource, tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Raises ModelBroken for a tokenizer of special tokens only: transformers makes some of these up if files are missing."""
    if not tokenizer("a", add_special_tokens=False)["input_ids"]:
        raise _no_tokenizer(source, "it gives no token for 'a'")
    return tokenizer


def _no_tokenizer(source: ModelSource, why: str) -> ModelBroken:
    return ModelBroken(
        f"{source.name} has no tokenizer: {why}",
        hint=f"its files ({STORED} and others) belong into the same folder",
    )


def _wrapped(described: Tokenizer, names: dict[str, object]) -> PreTrainedTokenizerBase:
    """A tokenizer wrapped for transformers. Special tokens get their names; nothing is added to the vocabulary."""
    described.no_truncation()
    described.no_padding()
    wrap: Any = PreTrainedTokenizerFast
    tokenizer: PreTrainedTokenizerBase = wrap(tokenizer_object=described)
    for name in SPECIAL_NAMES:
        token = names.get(name)
        content = token.get("content") if isinstance(token, dict) else token
        if isinstance(content, str) and described.token_to_id(content) is not None:
            setattr(tokenizer, name, content)
    return tokenizer


def _without_dropout(described: Tokenizer, file: str) -> list[str]:
    """Turn off BPE dropout, which makes tokens random. Returns a note if it was on."""
    if not getattr(described.model, "dropout", None):
        return []
    described.model.dropout = None
    return [f"BPE dropout, which {file} asks for, is off: with it a text has other tokens each time"]


def _add_numbered_tokens(
    source: ModelSource, described: Tokenizer, folder: Path, config: Mapping[str, Any], file: str
) -> list[str]:
    """Add tokens that other files list with a number and the vocabulary lacks, if the number is the next free one."""
    listed = _read_json(folder / "added_tokens.json")
    try:
        numbered = {content: (int(number), AddedToken(content)) for content, number in listed.items()}
        for number, fields in config.get("added_tokens_decoder", {}).items():
            numbered[fields["content"]] = int(number), AddedToken(**fields)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ModelBroken(
            f"the added tokens of {source.name} are not listed as transformers lists them: {error}",
            hint="added_tokens.json has numbers by token, added_tokens_decoder of tokenizer_config.json tokens by number",
        ) from error
    lacking = {content: entry for content, entry in numbered.items() if described.token_to_id(content) is None}
    if not lacking:
        return []
    following = max(described.get_vocab().values(), default=-1) + 1
    added, left_out = [], []
    for content, (number, token) in sorted(lacking.items(), key=lambda entry: entry[1][0]):
        if number == following:
            described.add_tokens([token])
            added.append(content)
            following += 1
        else:
            left_out.append(content)
    said = (f"tokens of other files added to {file}", added), (f"tokens that {file} has no place for", left_out)
    return [f"{what}: {', '.join(names[:5])}{' ...' * (len(names) > 5)}" for what, names in said if names]


def _difference(picked: PreTrainedTokenizerBase, described: Tokenizer, file: str) -> list[str]:
    """A note if the class that transformers picks gives other tokens than the file."""
    added = [str(token) for token in described.get_added_tokens_decoder().values()]
    texts = (*_sample(), *(f"a {token} b{token}c" for token in added))
    ours = [described.encode(text, add_special_tokens=False).ids for text in texts]
    theirs = [picked(text, add_special_tokens=False, verbose=False)["input_ids"] for text in texts]
    if ours == theirs:
        return []
    counts = [sum(map(len, side)) for side in (ours, theirs)]
    return [
        f"texts are split as {file} says: transformers' {type(picked).__name__} splits them otherwise "
        f"({counts[1]} tokens instead of {counts[0]} in a sample)"
    ]


def _refuse_other_numbers(
    source: ModelSource, picked: PreTrainedTokenizerBase, described: Tokenizer, file: str
) -> None:
    """Raises ModelBroken if the model's class renumbers the pieces of its SentencePiece file."""
    theirs = picked.get_vocab()
    same = sum(theirs.get(token) == number for token, number in described.get_vocab().items())
    if 2 * same < described.get_vocab_size():
        raise ModelBroken(
            f"transformers' {type(picked).__name__} does not number the tokens of {source.name} as {file} does",
            hint=f"put a {STORED} into the folder",
        )


def _bos_disagreement(tokenizer: PreTrainedTokenizerBase, config: dict[str, object], file: str) -> list[str]:
    asked, bos = config.get("add_bos_token"), tokenizer.special_tokens_map.get("bos_token")
    if not isinstance(asked, bool) or bos is None or (tokenizer("a").tokens()[0] == bos) == asked:
        return []
    does, option = ("does not", "always") if asked else ("does", "never")
    return [
        f"tokenizer_config.json says add_bos_token {str(asked).lower()}, {file} {does} add {bos}: "
        f"the latter counts, and --bos {option} changes it"
    ]


def _sample() -> tuple[str, ...]:
    """Texts that tokenizers split differently, and a few plain ones."""
    passages = (files("cwa_engine.data") / "passages.txt").read_text("utf-8").split("\n\n")
    return (*AWKWARD, *passages[:4])


def _read_json(path: Path) -> JsonMap:
    """The object in a JSON file; empty if there is no such file. Raises ModelBroken."""
    return read_json(path) if path.is_file() else {}
