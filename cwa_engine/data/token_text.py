"""A token as people read it."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_REPLACEMENT = "\ufffd"  # what decoding puts for a part of a character
# Control and format characters (those that turn the direction of writing among them), surrogates, what has no character
# or a private one, and separators of lines and paragraphs.
_UNSEEN = ("Cc", "Cf", "Cs", "Cn", "Co", "Zl", "Zp")


def token_text(tokenizer: PreTrainedTokenizerBase, token_id: int) -> str:
    """The text that a token stands for, on one line; a part of a character as the vocabulary spells it."""
    text = str(tokenizer.decode([token_id], clean_up_tokenization_spaces=False))
    if _REPLACEMENT in text or not text:
        text = str(tokenizer.convert_ids_to_tokens([token_id])[0])
    return visible(text)


def visible(text: str) -> str:
    r"""The text with what cannot be seen as in Python strings: a line feed is \n, a backslash \\. One can turn it back."""
    return "".join(map(_visible, text))


def _visible(character: str) -> str:
    is_blank = unicodedata.category(character) == "Zs" and character != " "
    if character == "\\" or is_blank or unicodedata.category(character) in _UNSEEN:
        return character.encode("unicode_escape").decode()
    return character
