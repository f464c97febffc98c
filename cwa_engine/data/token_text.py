"""The text of a token for tables and messages."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_REPLACEMENT = "\ufffd"  # decoding yields this for a part of a character
# Unicode categories: control and format characters (such as those that turn the writing direction), surrogates, unassigned
# and private characters, and separators of lines and paragraphs.
_UNSEEN = ("Cc", "Cf", "Cs", "Cn", "Co", "Zl", "Zp")


def token_text(tokenizer: PreTrainedTokenizerBase, token_id: int) -> str:
    """The text of a token on one line. If it is only a part of a character, the spelling of the vocabulary."""
    text = str(tokenizer.decode([token_id], clean_up_tokenization_spaces=False))
    if _REPLACEMENT in text or not text:
        text = str(tokenizer.convert_ids_to_tokens([token_id])[0])
    return visible(text)


def visible(text: str) -> str:
    r"""The text with invisible characters escaped as in Python: a line feed is \n, a backslash \\. It can be reversed."""
    return "".join(map(_visible, text))


def _visible(character: str) -> str:
    is_blank = unicodedata.category(character) == "Zs" and character != " "
    if character == "\\" or is_blank or unicodedata.category(character) in _UNSEEN:
        return character.encode("unicode_escape").decode()
    return character
