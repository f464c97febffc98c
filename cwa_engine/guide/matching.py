"""Which entries fit what somebody typed: by phrases, then by words. torch-free."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

T = TypeVar("T")

MOST_CHARACTERS = 300  # of a query that are looked at
_PHRASE, _LEAST = 2.0, 0.5  # the score of a whole phrase; the least share of a query's words that counts
_IDLE = """
a an and any are as at be best by can do does for from get give good have how i in is it look me model models most my of on or
our please should take that the there this to try use used want was we what when where which with you your
"""
_IDLE_WORDS = frozenset(_IDLE.split())  # of questions: they say nothing of what is asked


def best_matches(query: str, entries: Iterable[T], said: Callable[[T], tuple[str, str, Sequence[str]]]) -> list[T]:
    """The entries with the highest score, in their order; none where that is too low.

    `said` gives the name, the title and further phrases of an entry. A query that is one of these scores highest; of
    others the share of its words counts that an entry has. Words are compared without their endings.
    """
    query = query[:MOST_CHARACTERS].lower().strip().rstrip("?.!")
    wanted = words_of(query)
    scores = [(entry, _score(query, wanted, said(entry))) for entry in entries]
    best = max((score for _, score in scores), default=0.0)
    return [entry for entry, score in scores if score == best] if best >= _LEAST else []


def words_of(text: str) -> set[str]:
    """The stems of a text's words, without those that every question has."""
    return {_stem(word) for word in re.findall(r"[a-z0-9][a-z0-9._+]+", text.lower()) if word not in _IDLE_WORDS}


def has_words(text: str, query: str) -> bool:
    """Whether each word of the query, as it is typed, is somewhere in the text."""
    lowered = text.lower()
    return all(word in lowered for word in query[:MOST_CHARACTERS].lower().split())


def _score(query: str, wanted: set[str], said: tuple[str, str, Sequence[str]]) -> float:
    name, title, phrases = said
    if query in (name, title.lower().rstrip("?"), *phrases):
        return _PHRASE
    there = words_of(" ".join((name, title, *phrases)))
    return len(wanted & there) / len(wanted) if wanted else 0.0


def _stem(word: str) -> str:
    """Without an ending of English: `scaling`, `scales` and `scale` are one word."""
    for ending in ("ing", "es", "ed", "s", "e"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word.removesuffix(ending)
    return word
