"""All that a run found, in memory; `records.export` turns it into files. torch-free."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from cwa_engine.rows import (
    Baseline,
    ControlDraw,
    DamagePoint,
    HalfOverlap,
    NumericalFloor,
    RankedParameter,
    Ranking,
    Separation,
    SequenceNll,
    StoredParameter,
    TextUse,
    Verdict,
)

A = TypeVar("A")


@dataclass(frozen=True)
class RunResult:
    """The rankings of a run and the damage by its critical sets, and the answers to what else it was asked.

    result.answer(Stability).agreements  # from cwa_engine.questions.stability import Stability
    """

    parameters: int
    eligible: int  # weights that --include and --exclude leave
    texts: TextUse
    baseline: Baseline
    rankings: tuple[Ranking, ...]
    ranked: tuple[RankedParameter, ...] = ()  # what metrics chose from
    stored: tuple[StoredParameter, ...] = ()  # every parameter that has a weight of a ranking
    layers: int = 0  # decoder blocks of the model
    halves: tuple[HalfOverlap, ...] = ()
    damage: tuple[DamagePoint, ...] = ()
    separations: tuple[Separation, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    controls: Sequence[ControlDraw] = ()  # there may be millions
    evaluations: tuple[SequenceNll, ...] = ()
    answers: tuple[object, ...] = ()  # one for each question of `questions` that was asked, each of a type of its own
    floor: NumericalFloor | None = None
    gradients: str = "resident"  # the source that was used
    scores_from: dict[str, str] = field(default_factory=dict)  # metric -> run that scored it; empty where this one did
    batch_size: int = 1  # sequences at once, after whatever halving there was
    timings: dict[str, float] = field(default_factory=dict)  # stage -> seconds
    peak_memory_bytes: int = 0

    def get(self, kind: type[A]) -> A | None:
        """The answer of this type; None where the run was not asked."""
        return next((answer for answer in self.answers if isinstance(answer, kind)), None)

    def answer(self, kind: type[A]) -> A:
        """The answer of this type. Raises KeyError where the run was not asked."""
        found = self.get(kind)
        if found is None:
            raise KeyError(f"the run was not asked for {kind.__name__}")
        return found

    def with_answer(self, answer: object) -> RunResult:
        """The same with one answer more."""
        return dataclasses.replace(self, answers=(*self.answers, answer))
