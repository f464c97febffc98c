r"""How text is cut into pieces before byte-level BPE, by the names that `tokenizer.ggml.pre` gives.

The names and what they mean: `llm_tokenizer_bpe` in src/llama-vocab.cpp of llama.cpp. Where llama.cpp writes an expression
otherwise than the tokenizer it stands for, the tokenizer's own is taken, as the comments there give it. Pieces are cut one
step after the other; each step splits what the one before has left.
"""

from __future__ import annotations

from dataclasses import dataclass

from tokenizers import Regex, normalizers, pre_tokenizers

_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SYMBOLS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTION}|{_WORD}|\p{{N}}{{1,3}}|{_SYMBOLS}|{_SPACES}"
_QWEN2 = rf"{_CONTRACTION}|{_WORD}|\p{{N}}|{_SYMBOLS}|{_SPACES}"

# Words that begin with capitals or end in small letters.
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
_BLOOM = r" ?[^(\s|.,!?…。，、।۔،)]+"

# Letters of the alphabets that have two cases, as the tokenizer of DeepSeek-LLM lists them.
_CASED_LETTERS = (
    r"A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼ"
    r"ℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃"
)


@dataclass(frozen=True)
class Cutting:
    """`steps` are regular expressions, of which every match becomes a piece; `words` ends with the cutting of GPT-2.

    `composed` text is put into Unicode's form NFC first. With `whole_words` a piece that is a token is not merged from parts.
    `starts` says whether texts begin with the bos token where the file does not tell.
    """

    steps: tuple[str, ...] = ()
    words: bool = False
    composed: bool = False
    whole_words: bool = False
    starts: bool = False

    def normalizer(self) -> normalizers.Normalizer | None:
        return normalizers.NFC() if self.composed else None

    def pre_tokenizer(self) -> pre_tokenizers.PreTokenizer:
        cuts = [pre_tokenizers.Split(Regex(step), behavior="isolated") for step in self.steps]
        return pre_tokenizers.Sequence([*cuts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=self.words)])


class _Falcon(Cutting):
    """Runs of punctuation, then as GPT-2, then digits in threes. The last two steps see bytes written as characters."""

    def pre_tokenizer(self) -> pre_tokenizers.PreTokenizer:
        return pre_tokenizers.Sequence(
            [
                pre_tokenizers.Punctuation("contiguous"),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
                pre_tokenizers.Digits(individual_digits=False),
                pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), behavior="isolated"),
            ]
        )


_LLAMA3_CUTTING = Cutting((_LLAMA3,), whole_words=True, starts=True)
_DIGITS_APART = Cutting((r"\p{N}",), words=True)

CUTTINGS: dict[str, Cutting] = {
    **dict.fromkeys(
        ("gpt-2", "phi-2", "exaone4", "gigachat", "a.x-4.0", "mellum", "jais", "trillion"), Cutting(words=True)
    ),
    **dict.fromkeys(("mpt", "olmo"), Cutting(words=True, composed=True)),
    **dict.fromkeys(("smollm", "starcoder", "refact", "codeshell", "exaone", "minerva-7b", "mellum2"), _DIGITS_APART),
    "command-r": Cutting((r"\p{N}",), words=True, composed=True),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "midm-2.0", "lfm2"), _LLAMA3_CUTTING),
    **dict.fromkeys(("dbrx", "smaug-bpe", "chatglm-bpe"), Cutting((_LLAMA3,))),
    **dict.fromkeys(("glm4", "glm5"), Cutting((_LLAMA3,), whole_words=True)),
    "qwen2": Cutting((_QWEN2,), composed=True),
    **dict.fromkeys(("deepseek-r1-qwen", "stablelm2", "megrez", "hunyuan", "solar-open", "grok-2"), Cutting((_QWEN2,))),
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2", "minimax-m2"), Cutting((_GPT4O,))),
    "tekken": Cutting((_TEKKEN,), whole_words=True, starts=True),
    **dict.fromkeys(("deepseek-v3", "hunyuan-dense", "joyai-llm"), Cutting((r"\p{N}{1,3}", _HAN_OR_KANA, _DEEPSEEK3))),
    "deepseek-llm": Cutting(
        (
            r"[\r\n]",
            rf"\s?[{_CASED_LETTERS}]+",
            r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
            r"\s+$",
            r"[一-龥ࠀ-一가-퟿]+",
            r"\p{N}+",
        )
    ),
    "deepseek-coder": Cutting((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[一-龥ࠀ-一가-퟿]+", r"\p{N}")),
    "falcon": _Falcon(),
    **dict.fromkeys(("bloom", "gpt3-finnish", "poro-chat"), Cutting((_BLOOM,))),
    "viking": Cutting((_BLOOM, r"\p{N}")),
    **dict.fromkeys(
        ("bailingmoe", "bailingmoe2", "llada-moe"),
        Cutting(
            (
                r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
            )
        ),
    ),
    "seed-coder": Cutting((rf"{_CONTRACTION}|{_WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACES}",)),
}
