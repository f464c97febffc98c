"""Tags and notes: what users write to runs, and its bounds."""

from __future__ import annotations

from collections.abc import Iterable

from cwa_daemon.protocol.message import Message
from cwa_engine.base.errors import InvalidInput

MOST_TAGS = 20  # of a run
MOST_TAG, MOST_NOTE = 50, 4000  # characters
KEEP = "keep"  # a run with this tag is never pruned


class Marks(Message):
    """What users have written to a run."""

    tags: list[str]  # in the order in which they were given
    note: str


def check_tags(tags: Iterable[str]) -> None:
    """Raises InvalidInput for what cannot be a tag: it is one word, which can be told from an option and from a list."""
    for tag in tags:
        if not 0 < len(tag) <= MOST_TAG:
            raise _no_tag(tag, f"it has {len(tag)} characters")
        if tag[0] in "+-":
            raise _no_tag(tag, f"it begins with {tag[0]}")
        if any(character.isspace() or not character.isprintable() or character in ",'\"" for character in tag):
            raise _no_tag(tag, "it holds a space, a comma, a quote or what cannot be seen")


def check_note(note: str) -> None:
    """Raises InvalidInput for a text that is too long, or that is no UTF-8."""
    if len(note) > MOST_NOTE:
        raise InvalidInput(f"the note has {len(note):,} characters", hint=f"{MOST_NOTE:,} is the most")
    if "\0" in note or any("\ud800" <= character <= "\udfff" for character in note):
        raise InvalidInput("the note holds what is no text", hint="write it in UTF-8")


def with_tags(tags: Iterable[str], add: Iterable[str], remove: Iterable[str]) -> list[str]:
    """Tags with some added and some removed. Raises InvalidInput where they are too many."""
    gone = set(remove)
    left = [tag for tag in dict.fromkeys([*tags, *add]) if tag not in gone]
    if len(left) > MOST_TAGS:
        raise InvalidInput(f"the run would have {len(left)} tags", hint=f"{MOST_TAGS} is the most; remove some")
    return left


def _no_tag(tag: str, why: str) -> InvalidInput:
    return InvalidInput(
        f"{tag!r} cannot be a tag: {why}", hint=f"a tag is one word of at most {MOST_TAG} characters, like llama-sweep"
    )
