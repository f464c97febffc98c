"""English stopwords, and which tokens of a vocabulary are one of them.

The list is that of Porter's Snowball project without contractions, as NLTK has long shipped it: 127 function words. Yu et
al. 2024 show the probabilities of stopwords and do not print the list that they used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LIST = """
i me my myself we our ours ourselves you your yours yourself yourselves he him his himself she her hers herself it its itself
they them their theirs themselves what which who whom this that these those am is are was were be been being have has had
having do does did doing a an the and but if or because as until while of at by for with about against between into through
during before after above below to from up down in out on off over under again further then once here there when where why
how all any both each few more most other some such no nor not only own same so than too very s t can will just don should now
"""
STOPWORDS = frozenset(_LIST.split())
_WORD_BEGINS = ("Ġ", "▁", " ")  # byte-level BPE, SentencePiece, and vocabularies that keep the space


def stopword_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of the tokens that are a stopword as a whole, in capitals or not.

    A token inside a word is none: it must begin a word, by the mark of its vocabulary. In a vocabulary without such marks
    every token counts.
    """
    known = {text: number for text, number in tokenizer.get_vocab().items() if isinstance(text, str)}
    marked = [text for text in known if text.startswith(_WORD_BEGINS) and len(text) > 1]
    spelled = {known[text]: text[1:] for text in marked} if marked else {number: text for text, number in known.items()}
    return sorted(number for number, text in spelled.items() if text.lower() in STOPWORDS)
