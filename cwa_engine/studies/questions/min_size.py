"""`min-size`: which is the smallest model whose critical weights can be relied on? torch-free."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cwa_engine.base.errors import InvalidInput
from cwa_engine.base.overlap import Stratum, overlap_by_chance
from cwa_engine.base.p_values import LEVEL, p_text
from cwa_engine.base.table import Table
from cwa_engine.questions.question import TableRows
from cwa_engine.records.run_report import RunReport
from cwa_engine.studies.analysis.families import families_of
from cwa_engine.studies.analysis.series import (
    Member,
    Series,
    first_of,
    require_damage,
    require_models,
    series_of,
    values_of,
)
from cwa_engine.studies.analysis.words import counted, listed, size
from cwa_engine.studies.answer import Answer, Finding, StudyQuestion, StudyRun
from cwa_engine.studies.study import Study

LEAST_SHARE = 0.5  # of the top k, that the two halves of the texts must name alike
LEAST_DRAWS = 19  # of a control, with which a run can tell a critical set from it

RULE = (
    "A model passes where (1) the rankings by two disjoint halves of the scoring texts have at least "
    f"{LEAST_SHARE:.0%} of the top k in common, (2) two random sets would have so many in common with p <= {LEVEL} "
    "(hypergeometric, over all weights that were ranked), and (3) its critical set is told from every control as harmful by "
    "its run's rule. Models are tested from the largest on, and no further once one fails: in a fixed sequence the probability "
    f"of passing any model that should not stays at {LEVEL} (Maurer et al. 1995). The answer is the smallest of the unbroken "
    "run of passes from the largest model down. Models of equal size pass together."
)


@dataclass(frozen=True, slots=True)
class MinSizeRow:
    """A model under the rule: a point of the figure. None for what its run does not tell."""

    model: str
    family: str
    parameters: int
    metric: str
    k: int
    perturbation: str
    others: str
    common: float | None  # of the top k by two halves of the texts; a mean where there are several pairs of repeats
    share: float | None  # common / k
    chance: float | None  # what two random sets have in common on average
    p_value: float | None
    outcome: str  # of the test against controls
    damage: float | None  # nats per token
    passes: bool
    why: str  # what it fails by; empty where it passes
    relied_on: bool  # it passes, and so does every larger one


TABLE = Table("min_size.csv", MinSizeRow)


@dataclass(frozen=True, slots=True)
class Halves:
    """How much of the top k the rankings by two halves of the texts share."""

    common: float
    chance: float
    p_value: float


def answer(runs: Sequence[StudyRun]) -> Answer:
    """The smallest model that passes, with all larger ones, see `RULE`."""
    series = series_of(runs)
    if not series:
        return Answer("min-size", "no run measured any damage, so no model can pass", rule=RULE)
    first = first_of(series)
    rows = _rows(first)
    others = [(entry, _rows(entry)) for entry in series if entry is not first]
    return Answer(
        "min-size",
        f"{first.label}: {_sentence(rows)}",
        findings=tuple(_findings(rows)),
        tables=(TableRows(TABLE, [*rows, *(row for _, further in others for row in further)]),),
        refused=tuple(_refused(first, rows, others)),
        rule=RULE,
    )


def _rows(series: Series) -> list[MinSizeRow]:
    families, _ = families_of([member.report for member in series.members])
    judged = [_judged(member, series) for member in series.members]
    failing = [member.report.model.parameters for member, (_, why) in zip(series.members, judged, strict=True) if why]
    largest = max(failing, default=0)  # from above this size on all pass
    return [
        MinSizeRow(
            model=member.model,
            family=family,
            parameters=member.report.model.parameters,
            metric=series.metric,
            k=series.k,
            perturbation=series.perturbation,
            others=series.others,
            common=halves.common if halves else None,
            share=halves.common / series.k if halves else None,
            chance=halves.chance if halves else None,
            p_value=halves.p_value if halves else None,
            outcome=member.group.outcome or "not tested",
            damage=None if member.collapsed else member.point.delta_nll,
            passes=not why,
            why=why,
            relied_on=member.report.model.parameters > largest,
        )
        for member, family, (halves, why) in zip(series.members, families, judged, strict=True)
    ]


def _judged(member: Member, series: Series) -> tuple[Halves | None, str]:
    """(what its halves share, what it fails by)"""
    report, halves = member.report, _halves(member.report, series.metric, series.k)
    if report.baseline.is_guessing:
        return halves, "the intact model is no better than guessing"
    failed = []
    if halves is None:
        failed.append("it was not ranked by halves of the texts")
    elif halves.common < LEAST_SHARE * series.k:
        failed.append(f"the halves share {halves.common:.3g} of {series.k:,}")
    elif halves.p_value > LEVEL:
        failed.append(f"random sets share as much ({p_text(halves.p_value)})")
    if member.group.outcome != "harmful":
        failed.append(f"its critical set is {member.group.outcome or 'not tested'} beside its controls")
    return halves, " and ".join(failed)


def _halves(report: RunReport, metric: str, k: int) -> Halves | None:
    """From the ranking by halves that the run made anyway, else from `--stability halves`; None where neither is there."""
    population = sum(row.units for row in report.ranked if metric in row.metrics)
    if not population or k > population:
        return None
    common: float | None = next(
        (float(h.common) for h in report.summary.halves if (h.metric, h.k) == (metric, k)), None
    )
    if common is None and report.spec.stability == "halves":
        pair = next((row for row in report.summary.stability if (row.metric, row.k) == (metric, k)), None)
        common = round(2 * k * pair.jaccard / (1 + pair.jaccard)) if pair else None
    if common is None:
        return None
    found = overlap_by_chance(int(common), [Stratum(population, k, k)])
    return Halves(common, found.expected, found.p_value)


def _sentence(rows: Sequence[MinSizeRow]) -> str:
    reliable = [row for row in rows if row.relied_on]
    if not reliable:
        largest = [row for row in rows if row.parameters == rows[-1].parameters and not row.passes]
        return f"none of {counted(len(rows), 'model')} is reliable: {listed([f'{r.model} fails, as {r.why}' for r in largest])}"
    smallest = [row for row in reliable if row.parameters == reliable[0].parameters]
    names = listed([row.model for row in smallest])
    said = f"{names} ({size(smallest[0].parameters)}) is the smallest reliable model"
    if len(reliable) > len(smallest):
        said += f": it passes, as all {len(reliable) - len(smallest)} larger ones do"
    below = [row for row in rows if not row.relied_on]
    if not below:
        return f"{said}; a smaller one was not tried"
    stopped = max((row for row in below if not row.passes), key=lambda row: row.parameters)
    return f"{said}; {stopped.model} fails, as {stopped.why}"


def _findings(rows: Sequence[MinSizeRow]) -> Iterator[Finding]:
    for row in reversed(rows):
        if row.share is not None and row.chance is not None:
            stable = f"its halves share {row.common:.3g} of the top {row.k:,}, "
            stable += f"random sets {row.chance:.2g} ({p_text(row.p_value)})"
        else:
            stable = "it was not ranked by halves of the texts"
        damage = "no finite loss" if row.damage is None else f"{row.damage:+.3g} nats per token"
        yield Finding(
            f"{row.model} ({size(row.parameters)}) {'passes' if row.passes else f'fails, as {row.why}'}: {stable}; "
            f"{row.outcome} beside its controls, {damage}",
            f"another division of the texts by which the halves share {'less than' if row.passes else 'at least'} "
            f"{LEAST_SHARE:.0%}, or controls that do {'more' if row.passes else 'less'}",
        )
    lucky = [row for row in rows if row.passes and not row.relied_on]
    if lucky:
        failing = [row.model for row in rows if not row.passes and row.parameters >= lucky[0].parameters]
        yield Finding(
            f"not monotone: {listed([row.model for row in lucky])} would pass, but {listed(failing)}, no smaller, "
            f"{'fails' if len(failing) == 1 else 'fail'}, so size alone does not make a model reliable here",
            "a larger model that passes on more texts or more draws: then the sequence goes on below it",
        )


def _refused(
    first: Series, rows: Sequence[MinSizeRow], others: Sequence[tuple[Series, list[MinSizeRow]]]
) -> Iterator[str]:
    if len(rows) < 2:
        yield f"a smallest model among {counted(len(rows), 'model')} is not known: give more sizes"
    untested = [row.model for row in rows if row.outcome == "not tested"]
    if untested:
        yield f"{listed(untested)}: not tested against controls, which is no evidence that the model is unreliable"
    families, source = families_of([member.report for member in first.members])
    if len(set(families)) > 1:
        yield (
            f"sizes are of different families, {listed(list(dict.fromkeys(families)))} (by {source}): what is reliable from "
            "one size on in one may not be in another"
        )
    for series, further in others:
        yield f"{series.label}, a test of its own at {LEVEL:.0%}: {_sentence(further)}"
    if others:
        yield f"of {1 + len(others)} series each may err at {LEVEL:.0%}; the answer is about the first alone, {first.label}"


def check(study: Study) -> None:
    """Raises InvalidInput for a study of one model, without damage or controls, or with too few draws to tell."""
    require_models(study, 2, "the smallest reliable model is found among models of different sizes")
    require_damage(study)
    if any(value in ((), []) for value in values_of(study, "controls", ("random",))):
        raise InvalidInput("without controls no critical set can be told from them", hint="leave out controls = []")
    draws = [value for value in values_of(study, "control_seeds", LEAST_DRAWS) if isinstance(value, int)]
    if draws and min(draws) < LEAST_DRAWS:
        raise InvalidInput(
            f"{min(draws)} draws of a control cannot show p <= {LEVEL}",
            hint=f"control_seeds must be {LEAST_DRAWS} or more",
        )
    if any(value != "global" for value in values_of(study, "scope", "global")):
        raise InvalidInput(
            "rankings by halves are of all weights together", hint="leave out scope, or give scope = 'global'"
        )


QUESTION = StudyQuestion(
    name="min-size",
    place=4,
    asks="Which is the smallest model whose critical weights can be relied on?",
    needs="two models or more, of different sizes",
    check=check,
    answer=answer,
    run={
        "metrics": ("grad_x_weight",),
        "topk": (100,),
        "perturbations": ("zero",),
        "matrices": False,
        "stability": "halves",
        "control_seeds": LEAST_DRAWS,
    },
)
