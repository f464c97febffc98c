"""What a question to a run consists of. torch-free, as all modules of questions are until something is computed.

A module of this folder with a `QUESTION` is a question; `registry` finds it. It has the question's rows, when it is asked,
how it is answered, and what of the answer goes to tables and to the summary.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic

from cwa_engine.base.plain import JsonMap
from cwa_engine.base.table import Row, Table

if TYPE_CHECKING:
    from cwa_engine.damage.measured import MeasuredComparison
    from cwa_engine.damage.measurement import MeasurementContext
    from cwa_engine.damage.treatments import Comparison, SideCase, Treatment
    from cwa_engine.data.tokens import TokenSequence
    from cwa_engine.models.loading import LoadedModel
    from cwa_engine.result import RunResult
    from cwa_engine.rows import Ranking
    from cwa_engine.run import RunContext
    from cwa_engine.sensitivity.sample import Sample
    from cwa_engine.spec import RunSpec


class Moment(enum.Enum):
    """What a run must have done before a question can be answered."""

    RANKED = "weights are ranked"
    DAMAGED = "critical sets are damaged, if the run damages any, and the intact model's states are at hand"


@dataclass(frozen=True)
class Findings:
    """What a run has found before a question is answered."""

    scoring: Sequence[TokenSequence]  # the texts that weights are scored by
    scored: Mapping[str, Ranking]  # by metric, down to the place that candidates are taken from
    sample: Sample | None  # of units from all levels of score, where --fidelity asks for one
    result: RunResult
    measured: tuple[MeasuredComparison, ...] = ()
    context: MeasurementContext | None = None  # None until critical sets are damaged

    @property
    def measurement(self) -> MeasurementContext:
        """What measurements of changed weights need."""
        assert self.context is not None
        return self.context


@dataclass(frozen=True)
class TableRows(Generic[Row]):
    """A table of a run, and its rows."""

    table: Table[Row]
    rows: Sequence[Row]


def _no_tables(result: RunResult) -> Iterable[TableRows[Any]]:
    return ()


def _nothing(result: RunResult) -> JsonMap:
    return {}


def _same_rankings(answer: Any, rankings: tuple[Ranking, ...]) -> tuple[Ranking, ...]:
    return rankings


def _same_treatments(found: Sequence[Treatment], spec: RunSpec, dtype: str) -> list[Treatment]:
    return list(found)


def _no_cases(loaded: LoadedModel, comparison: Comparison, spec: RunSpec) -> Sequence[SideCase]:
    return ()


def _nothing_to_check(spec: RunSpec, trust_code: bool) -> None: ...


@dataclass(frozen=True)
class Question:
    """One thing that a run may be asked.

    `ready` is called before a model is loaded, and raises a CwaError where the question cannot be answered whatever the model;
    it also hears whether code that comes with files may be run.
    """

    name: str
    place: int  # among the questions: the order of tables and of the summary, and of what is asked at the same moment
    asks: str  # in words
    asked: Callable[[RunSpec], bool]
    ready: Callable[[RunSpec, bool], None] = field(default=_nothing_to_check, kw_only=True)


@dataclass(frozen=True)
class StageQuestion(Question):
    """A question that is answered in a stage of its own.

    `answer` gives a frozen dataclass of a type that no other question has; `sentence` sums it up, and `rankings` gives the
    run's rankings as the answer changes them. `tables` and `summary` are made from results with and without such an answer.
    """

    stage: str
    moment: Moment
    answer: Callable[[RunContext, Findings], object]
    tables: Callable[[RunResult], Iterable[TableRows[Any]]] = _no_tables
    summary: Callable[[RunResult], JsonMap] = _nothing  # keys of summary.json
    sentence: Callable[[Any], str] = lambda answer: ""
    rankings: Callable[[Any, tuple[Ranking, ...]], tuple[Ranking, ...]] = _same_rankings


@dataclass(frozen=True)
class DamageQuestion(Question):
    """A question that is answered beside the damage by critical sets: its rows are in the same tables, without controls.

    `treatments` gives the run's ways to change weights, and those of the question among them; `side_cases` gives other changes
    that go with a critical set, by the spec.
    """

    treatments: Callable[[Sequence[Treatment], RunSpec, str], list[Treatment]] = _same_treatments  # of dtype
    side_cases: Callable[[LoadedModel, Comparison, RunSpec], Sequence[SideCase]] = _no_cases
