"""Whether what was measured agrees with what is claimed. torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from cwa_engine.base.errors import NotFound
from cwa_engine.claims.claim import Expectation
from cwa_engine.claims.measures import Measured, Reports, measured

Agreement = Literal["agrees", "does not agree", "no published figure found", "not measured"]
AGREES: Final = "agrees"
DISAGREES: Final = "does not agree"
NO_FIGURE: Final = "no published figure found"
NOT_MEASURED: Final = "not measured"


@dataclass(frozen=True, slots=True)
class Judgement:
    """One expectation, what was measured, and whether they agree. `reason` says why nothing was measured."""

    expectation: Expectation
    agreement: Agreement
    measured: Measured | None = None
    reason: str = ""


def judge(entry: Expectation, reports: Reports) -> Judgement:
    """Compare a number of the runs with the claimed one.

    It agrees where the measured value itself lies within the tolerance; its interval is for the reader. A run that does not
    have the number does not agree: a claim is not confirmed by what was not seen.
    """
    try:
        found = measured(entry, reports)
    except NotFound as error:
        return Judgement(entry, NOT_MEASURED, reason=error.message)
    if not entry.is_judged:
        return Judgement(entry, NO_FIGURE, found)
    return Judgement(entry, AGREES if _agrees(entry, found) else DISAGREES, found)


def not_measured(entry: Expectation, reason: str) -> Judgement:
    return Judgement(entry, NOT_MEASURED, reason=reason)


def _agrees(entry: Expectation, found: Measured) -> bool:
    if isinstance(found.value, str):
        return found.value == entry.value
    low, high = entry.band
    return low <= found.value <= high  # NaN agrees with nothing
