"""What a verification of a run found, as lines for a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.text import Text

from cwa_engine.records.checksums import SUMS
from cwa_engine.records.verification import Verification
from cwa_tui.text.visible import words

MOST_SHOWN = 30  # disagreements; --json has all


def found_in_words(found: Verification) -> Text:
    """What was verified, what does not agree, and what the files do not say."""
    return words("\n".join(lines_of(found)), overflow="fold")


def lines_of(found: Verification) -> Iterator[str]:
    """The same, line by line."""
    yield f"{found.run_id}, written by cwtool {found.version}"
    check = found.check
    yield f"{len(check.sound)} files are as the run wrote them"
    for name, what in check.altered.items():
        yield f"ALTERED: {name} is {what}"
    if check.unchecked:
        yield f"{', '.join(check.unchecked)} cannot be checked: an earlier version of cwtool wrote no hash of it"
    if check.fingerprint:
        outside = (
            "as the job database or you have it" if check.known and SUMS not in check.altered else "of these files"
        )
        yield f"fingerprint {check.fingerprint}, {outside}"
    yield f"{found.compared:,} figures were compared with what the tables give, {len(found.disagreements)} disagree"
    for entry in found.disagreements[:MOST_SHOWN]:
        yield f"DISAGREES: {entry.where}: it says {entry.said}, recomputed {entry.found}"
    if len(found.disagreements) > MOST_SHOWN:
        yield f"and {len(found.disagreements) - MOST_SHOWN} more; --json has all"
    for reason in found.unreadable:
        yield f"CANNOT BE READ: {reason}"
    yield from (f"the files do not say: {what}" for what in found.unknown)
    yield f"{found.run_id} is {'sound as far as its files tell' if found.agrees else 'NOT sound'}"
