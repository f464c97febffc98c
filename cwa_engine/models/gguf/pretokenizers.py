r"""Splitting of text before byte-level BPE, by the names of `tokenizer.ggml.pre`.

Source of the names and regular expressions: `llm_tokenizer_bpe` in src/llama-vocab.cpp of llama.cpp. If llama.cpp rewrites
the expression of a tokenizer, we use the tokenizer's own, as the comments there give it. Tokenizers that normalise to NFC:
the classes of Qwen2, GPT-NeoX and Cohere in transformers; llama.cpp leaves this out.
"""

from __future__ import annotations

from dataclasses import dataclass

from tokenizers import Regex
from tokenizers.pre_tokenizers import ByteLevel, Digits, PreTokenizer, Punctuation, Sequence, Split

_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SYMBOLS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTION}|{_WORD}|\p{{N}}{{1,3}}|{_SYMBOLS}|{_SPACES}"
_QWEN2 = rf"{_CONTRACTION}|{_WORD}|\p{{N}}|{_SYMBOLS}|{_SPACES}"

# Words with upper case before lower case.
_HEAD, _UPPER, _LOWER = r"[^\r\n\p{L}\p{N}]?", r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED_REST = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT4O = (
    rf"{_HEAD}{_UPPER}*{_LOWER}+{_CONTRACTION}?|{_HEAD}{_UPPER}+{_LOWER}*{_CONTRACTION}?|\p{{N}}{{1,3}}|{_CASED_REST}"
)
_TEKKEN = rf"{_HEAD}{_UPPER}*{_LOWER}+|{_HEAD}{_UPPER}+{_LOWER}*|\p{{N}}|{_CASED_REST}"

_ASCII_PUNCTUATION = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"""
_MARKED = rf"{_ASCII_PUNCTUATION}[A-Za-z]+|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+"
_DEEPSEEK3 = rf"{_MARKED}| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}"
_HAN_OR_KANA = r"[一-龥぀-ゟ゠-ヿ]+"
_HAN_OR_HANGUL = r"[一-龥ࠀ-一가-퟿]+"
_WIDE_PUNCTUATION = r"\s?[!-/:-~！-／：-～‘-‟　-。]+"
_BLOOM = r" ?[^(\s|.,!?…。，、।۔،)]+"

# Letters of alphabets with two cases, as listed in the tokenizer of DeepSeek-LLM.
_CASED_LETTERS = (
    r"A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼ"
    r"ℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃"
)

_BYTES = ByteLevel(add_prefix_space=False, use_regex=False)
_GPT2 = ByteLevel(add_prefix_space=False, use_regex=True)


@dataclass(frozen=True)
class Splitting:
    """A way to split text. Each of `steps` splits the pieces of the step before: every match of its expression is a piece.

    `nfc`: text is normalised to NFC first. `ignore_merges`: a piece that is a token is not built by merges. `adds_bos`:
    texts start with the BOS token unless the file says otherwise.
    """

    steps: tuple[str | PreTokenizer, ...]
    nfc: bool = False
    ignore_merges: bool = False
    adds_bos: bool = False

    def pre_tokenizer(self) -> PreTokenizer:
        return Sequence(
            [Split(Regex(step), behavior="isolated") if isinstance(step, str) else step for step in self.steps]
        )


_LLAMA3_SPLITTING = Splitting((_LLAMA3, _BYTES), ignore_merges=True, adds_bos=True)
_BAILING = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
_SEED = rf"{_CONTRACTION}|{_WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACES}"

SPLITTINGS: dict[str, Splitting] = {
    **dict.fromkeys(
        ("gpt-2", "phi-2", "exaone4", "gigachat", "a.x-4.0", "mellum", "jais", "trillion"), Splitting((_GPT2,))
    ),
    **dict.fromkeys(("mpt", "olmo"), Splitting((_GPT2,), nfc=True)),
    **dict.fromkeys(
        ("smollm", "starcoder", "refact", "codeshell", "exaone", "minerva-7b", "mellum2"),
        Splitting((r"\p{N}", _GPT2)),
    ),
    "command-r": Splitting((r"\p{N}", _GPT2), nfc=True),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "midm-2.0", "lfm2"), _LLAMA3_SPLITTING),
    **dict.fromkeys(("dbrx", "smaug-bpe", "chatglm-bpe"), Splitting((_LLAMA3, _BYTES))),
    **dict.fromkeys(("glm4", "glm5"), Splitting((_LLAMA3, _BYTES), ignore_merges=True)),
    "qwen2": Splitting((_QWEN2, _BYTES), nfc=True),
    **dict.fromkeys(
        ("deepseek-r1-qwen", "stablelm2", "megrez", "hunyuan", "solar-open", "grok-2"), Splitting((_QWEN2, _BYTES))
    ),
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2", "minimax-m2"), Splitting((_GPT4O, _BYTES))),
    "tekken": Splitting((_TEKKEN, _BYTES), ignore_merges=True, adds_bos=True),
    **dict.fromkeys(
        ("deepseek-v3", "hunyuan-dense", "joyai-llm"), Splitting((r"\p{N}{1,3}", _HAN_OR_KANA, _DEEPSEEK3, _BYTES))
    ),
    "deepseek-llm": Splitting(
        (r"[\r\n]", rf"\s?[{_CASED_LETTERS}]+", _WIDE_PUNCTUATION, r"\s+$", _HAN_OR_HANGUL, r"\p{N}+", _BYTES)
    ),
    "deepseek-coder": Splitting((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _HAN_OR_HANGUL, r"\p{N}", _BYTES)),
    # The last two steps work on bytes that are already mapped to characters.
    "falcon": Splitting((Punctuation("contiguous"), _GPT2, Digits(individual_digits=False), "[0-9][0-9][0-9]")),
    **dict.fromkeys(("bloom", "gpt3-finnish", "poro-chat"), Splitting((_BLOOM, _BYTES))),
    "viking": Splitting((_BLOOM, r"\p{N}", _BYTES)),
    **dict.fromkeys(("bailingmoe", "bailingmoe2", "llada-moe"), Splitting((_BAILING, _BYTES))),
    "seed-coder": Splitting((_SEED, _BYTES)),
}
