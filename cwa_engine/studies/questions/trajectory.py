"""`trajectory`: when in its training did a model's top weights become critical? torch-free."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cwa_engine.base.errors import InvalidInput
from cwa_engine.base.p_values import LEVEL
from cwa_engine.base.statistics import widened
from cwa_engine.base.table import Table
from cwa_engine.questions.question import TableRows
from cwa_engine.records.compared import RankingOverlap
from cwa_engine.records.curves import DamageDifference, damage_differences
from cwa_engine.records.differences import same_scoring
from cwa_engine.records.run_report import RunReport
from cwa_engine.records.run_summary import DamageSummary
from cwa_engine.rows import GIVEN
from cwa_engine.studies.analysis.revisions import (
    LEAST,
    Trajectory,
    WeightHistory,
    histories,
    median_place,
    overlap_with_last,
    trajectories_of,
    why_not,
)
from cwa_engine.studies.analysis.words import counted, doing, figure, listed
from cwa_engine.studies.answer import Answer, Finding, StudyQuestion, StudyRun
from cwa_engine.studies.study import Study

RULE = (
    "Revisions are in the order of the numbers in their names, main as the last, or as given where not all have a number of "
    "their own. The top k are those of the last revision, by the smallest k of the study; its largest k is how far down ranks "
    "are known. A weight is critical since the first revision from which on it is in the top k of every one. The median over "
    "the weights has a 95 % interval by order statistics, which takes the weights to be drawn one by one. A revision shares "
    f"more of the last top k than chance where p <= {LEVEL} over the number of earlier revisions, among random sets with as "
    "many weights of each parameter. Where no earlier revision does, it is not said when weights became critical. The damage "
    "of a revision is that of its own top k; it differs from the last one's where the interval of the difference, paired by "
    "text and widened for all earlier revisions (Bonferroni), leaves out 0."
)


@dataclass(frozen=True, slots=True)
class RevisionStep:
    """One revision: a point of the figure. Overlap with the last revision's top k as in `RankingOverlap`."""

    model: str
    others: str
    revision: str
    place: int  # 1 for the first
    metric: str
    k: int
    perplexity: float
    common: int  # of the last top k in this revision's
    expected: float | None
    p_value: float | None
    expected_within: float | None
    p_within: float | None
    since_here: int  # weights of the last top k that stay in the top from here on
    settled: int  # those that stay from here on or from an earlier revision on
    perturbation: str
    damage: float | None  # nats per token; None where the loss is not finite or nothing was damaged
    low: float | None
    high: float | None
    outcome: str  # of the run's own test against controls
    less: float | None  # how much less than in the last revision
    less_low: float | None
    less_high: float | None


@dataclass(frozen=True, slots=True)
class WeightRanks:
    """A weight of the last top k. `ranks` has one for each revision, the first first: `- 20 5`, a dash beyond the `depth`."""

    model: str
    others: str
    metric: str
    target: str
    component: str
    layer: int | None
    last_rank: int
    critical_since: str
    ranks: str
    depth: int


STEPS = Table("trajectory.csv", RevisionStep)
WEIGHTS = Table("trajectory_weights.csv", WeightRanks)


@dataclass(frozen=True)
class OneTrajectory:
    """What is found of one model by one metric."""

    trajectory: Trajectory
    metric: str
    k: int
    refused: str
    overlaps: tuple[RankingOverlap, ...] = ()
    weights: tuple[WeightHistory, ...] = ()
    steps: tuple[RevisionStep, ...] = ()

    @property
    def earlier_alike(self) -> list[str]:
        """The earlier revisions whose top shares more with the last one's than chance."""
        level = LEVEL / max(1, len(self.overlaps) - 1)
        pairs = zip(self.trajectory.names[:-1], self.overlaps[:-1], strict=True)
        return [name for name, row in pairs if (p := row.by_chance[1]) is not None and p <= level]


def answer(runs: Sequence[StudyRun]) -> Answer:
    """When the last revision's top weights became critical, and what damage did meanwhile, see `RULE`."""
    found = [
        _follow(trajectory, metric)
        for trajectory in trajectories_of(runs)
        for metric in dict.fromkeys(name for run in trajectory.runs for name in run.report.metrics if name != GIVEN)
    ]
    told = [one for one in found if not one.refused]
    return Answer(
        "trajectory",
        _sentence(told[0]) if told else _nothing(found),
        findings=tuple(finding for one in told for finding in _findings(one)),
        tables=(
            TableRows(STEPS, [step for one in told for step in one.steps]),
            TableRows(WEIGHTS, [row for one in told for row in _ranks(one)]),
        ),
        refused=tuple(_refused(found)),
        rule=RULE,
    )


# what is counted


def _follow(trajectory: Trajectory, metric: str) -> OneTrajectory:
    k = min(run.report.spec.topk[0] for run in trajectory.runs)
    if why := why_not(trajectory, metric):
        return OneTrajectory(trajectory, metric, k, why)
    overlaps = overlap_with_last(trajectory, metric, k)
    if unknown := [row.unknown for row in overlaps if row.by_chance[1] is None]:
        return OneTrajectory(trajectory, metric, k, f"what chance gives is not known, as {unknown[0]}")
    weights = tuple(histories(trajectory, metric, k))
    steps = tuple(_steps(trajectory, metric, k, overlaps, weights))
    return OneTrajectory(trajectory, metric, k, "", tuple(overlaps), weights, steps)


def _steps(
    trajectory: Trajectory, metric: str, k: int, overlaps: Sequence[RankingOverlap], weights: Sequence[WeightHistory]
) -> Iterator[RevisionStep]:
    for place, (run, name, row) in enumerate(zip(trajectory.runs, trajectory.names, overlaps, strict=True)):
        group = _critical(run.report, metric, k)
        point = group.critical if group and group.critical and group.critical.collapsed_at is None else None
        less = _less(run.report, trajectory, group, len(overlaps) - 1) if place < len(overlaps) - 1 else None
        less_value, less_low, less_high = less or (None, None, None)
        yield RevisionStep(
            model=trajectory.model,
            others=trajectory.others,
            revision=name,
            place=place + 1,
            metric=metric,
            k=k,
            perplexity=run.report.baseline.perplexity,
            common=row.common,
            expected=row.expected,
            p_value=row.p_value,
            expected_within=row.expected_within,
            p_within=row.p_within,
            since_here=sum(weight.since == place for weight in weights),
            settled=sum(weight.since <= place for weight in weights),
            perturbation=group.perturbation if group else "",
            damage=point.delta_nll if point else None,
            low=point.delta_low if point else None,
            high=point.delta_high if point else None,
            outcome=(group.outcome if group else None) or "not tested",
            less=less_value,
            less_low=less_low,
            less_high=less_high,
        )


def _critical(report: RunReport, metric: str, k: int) -> DamageSummary | None:
    """The critical set, by the first perturbation."""
    groups = (group for group in report.summary.damage if (group.metric, group.k) == (metric, k) and group.critical)
    return next(groups, None)


def _less(
    report: RunReport, trajectory: Trajectory, group: DamageSummary | None, comparisons: int
) -> tuple[float, float, float] | None:
    """How much less its critical set does than the last one's, paired by text; None where that is not known."""
    if group is None:
        return None
    rows: Iterator[DamageDifference] = damage_differences(trajectory.last, report, group.metric, group.k)
    row = next((row for row in rows if row.perturbation == group.perturbation and row.paired), None)
    return widened((row.difference, row.low, row.high), comparisons) if row else None


def _ranks(one: OneTrajectory) -> Iterator[WeightRanks]:
    trajectory = one.trajectory
    depth = min(run.report.spec.largest_k for run in trajectory.runs)
    for history in one.weights:
        weight = history.weight
        known = (rank if rank is not None and rank <= depth else None for rank in history.ranks)
        yield WeightRanks(
            trajectory.model, trajectory.others, one.metric, weight.target, weight.component, weight.layer, weight.rank,
            trajectory.names[history.since], " ".join("-" if rank is None else str(rank) for rank in known), depth,
        )  # fmt: skip


# words


def _sentence(one: OneTrajectory) -> str:
    names, last = one.trajectory.names, one.trajectory.names[-1]
    what = f"{one.trajectory.label}: of the top {one.k:,} by {one.metric} of {last}"
    if not one.earlier_alike:
        return (
            f"{what}, no earlier revision shares more than chance explains, so that they became critical after {names[-2]}, "
            f"and nothing more is known of when"
        )
    median, low, high = (names[place] for place in median_place([weight.since for weight in one.weights]))
    first = one.overlaps[0]
    return (
        f"{what}, half stay in the top from {median} on at the latest [{low}, {high}]; {names[0]} has {first.common} of them "
        f"in its own{_chance_text(first)}, {names[-2]} {one.overlaps[-2].common}"
    )


def _chance_text(row: RankingOverlap) -> str:
    expected, _ = row.by_chance
    return "" if expected is None else f" ({expected:.2g} by chance)"


def _findings(one: OneTrajectory) -> Iterator[Finding]:
    trajectory, names = one.trajectory, one.trajectory.names
    where = f"{trajectory.label}, {one.metric}"
    each = listed([f"{row.common} in {name}" for name, row in zip(names, one.overlaps, strict=True)])
    alike, level = one.earlier_alike, LEVEL / (len(names) - 1)
    more = f"more than chance in {listed(alike)}" if alike else "in none more than chance explains"
    yield Finding(
        f"{where}: of the last top {one.k:,} there are {each}; {more} (p <= {level:.2g} within parameters)",
        "other scoring texts, by which another top is named",
    )
    if alike:
        yield _since_finding(one, where)
    if any(step.damage is not None for step in one.steps):
        yield _damage_finding(one, where)


def _since_finding(one: OneTrajectory, where: str) -> Finding:
    names = one.trajectory.names
    at = [f"{step.since_here} since {step.revision}" for step in one.steps if step.since_here]
    beginning = [weight.ranks[0] for weight in one.weights]
    unknown = sum(rank is None for rank in beginning)
    depth = one.trajectory.runs[0].report.spec.largest_k
    low, high = (names[place] for place in median_place([weight.since for weight in one.weights])[1:])
    return Finding(
        f"{where}: they stay in the top {listed(at)}; in {names[0]} {unknown} of {len(beginning)} are not within the first "
        f"{depth:,}",
        f"revisions between these, which may show that a weight left the top in between; weights drawn anew with a median "
        f"outside of {low} to {high}",
    )


def _damage_finding(one: OneTrajectory, where: str) -> Finding:
    said = []
    for step in one.steps:
        if step.damage is None or step.low is None or step.high is None:
            said.append(f"{step.revision} not finite" if step.perturbation else f"{step.revision} not measured")
        else:
            said.append(f"{step.revision} {figure(step.damage, step.low, step.high)} ({step.outcome})")
    known = [step for step in one.steps if step.less_low is not None and step.less_high is not None]
    below = [step.revision for step in known if (step.less_low or 0) > 0]
    above = [step.revision for step in known if (step.less_high or 0) < 0]
    last = one.trajectory.names[-1]
    end = f"; clearly lower than in {last}: {listed(below)}" if below else ""
    end += f"; clearly higher than in {last}: {listed(above)}" if above else ""
    if known and not below and not above:
        end = f"; no difference to {last} was found"
    if not known:
        end = f"; it was not measured alike in {last}, so differences are not given"
    return Finding(
        f"{where}: {doing(one.steps[-1].perturbation)} each revision's own top {one.k:,} changes the loss, in nats per "
        f"token, by {listed(said)}{end}",
        "other texts, on which the intervals of these differences, paired by text, are elsewhere",
    )


def _nothing(found: Sequence[OneTrajectory]) -> str:
    why = found[0].refused if found else f"a trajectory needs rankings of at least {LEAST} revisions, and there is none"
    return f"when weights became critical is not concluded: {why}"


def _refused(found: Sequence[OneTrajectory]) -> Iterator[str]:
    if not found:
        yield _nothing(found)
    for one in found:
        trajectory = one.trajectory
        where = f"{trajectory.label}, {one.metric}"
        if one.refused:
            yield f"{where}: {one.refused}"
            continue
        if not one.earlier_alike:
            yield f"{where}: when weights became critical, for no earlier revision shares more of them than chance explains"
        if not trajectory.by_number:
            yield (
                f"{where}: revisions are in the order in which they were given ({listed(trajectory.names)}), as not all have a "
                f"number of their own in their names"
            )
        last = trajectory.names[-1]
        pairs = list(zip(trajectory.names, trajectory.runs, strict=True))
        if other := [name for name, run in pairs if not same_scoring(run.report, trajectory.last)]:
            yield f"{where}: {listed(other)} scored other texts than {last}, so texts and training are mixed"
        if lost := [step.revision for step in one.steps[:-1] if step.perturbation and step.less is None]:
            yield f"{where}: the damage of {listed(lost)} was not measured like that of {last}, or is not finite"


def check(study: Study) -> None:
    """Raises InvalidInput for a study of fewer than three revisions."""
    revisions, models = study.grid.get("revision", ()), study.grid.get("model", ())
    number = max(len(set(map(str, revisions))), len(set(map(str, models))))
    if number < LEAST:
        raise InvalidInput(
            f"a trajectory needs at least {LEAST} revisions of one model, and this study has {counted(number, 'revision')}",
            hint="give them in [grid] revision, like step1000 step10000 main, or as models: folders, or MODEL@REVISION",
        )


QUESTION = StudyQuestion(
    name="trajectory",
    place=6,
    asks="When in its training did a model's top weights become critical?",
    needs=f"at least {LEAST} revisions of one model, like those of Pythia: step1000, step10000, main",
    check=check,
    answer=answer,
    run={"metrics": ("grad_x_weight",), "topk": (100, 1000)},
)
