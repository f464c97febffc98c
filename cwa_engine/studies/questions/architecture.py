"""`architecture`: do families of models have their critical weights in other places? torch-free."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from cwa_engine.base.errors import InvalidInput
from cwa_engine.base.p_values import LEVEL, p_text
from cwa_engine.base.table import Table
from cwa_engine.questions.question import TableRows
from cwa_engine.records.differences import same_model
from cwa_engine.records.profiles import (
    COMPONENT,
    DEPTH,
    PARTS,
    ProfileDistance,
    ProfileShare,
    distance,
    parts_of,
    profile,
    top,
)
from cwa_engine.rows import GIVEN
from cwa_engine.studies.analysis.families import families_of
from cwa_engine.studies.analysis.family_damage import DAMAGE, damage_findings, family_damage
from cwa_engine.studies.analysis.labels import LabelTest, smallest_p, within_between
from cwa_engine.studies.analysis.multiple import holm
from cwa_engine.studies.analysis.series import model_of, others_of, require_models
from cwa_engine.studies.analysis.words import counted, listed, size
from cwa_engine.studies.answer import Answer, Finding, StudyQuestion, StudyRun
from cwa_engine.studies.study import Study

BOTH = "component and depth"
# What architectures store otherwise: q, k and v in one matrix or in three, an MLP with a gate or without, a head that is the
# embedding or one of its own.
ENDS = "embedding or head"
MERGED = {"q": "qkv", "k": "qkv", "v": "qkv", "gate": "up", "embedding": ENDS, "head": ENDS}

RULE = (
    "The profile of a model is the shares of its top k by component (q, k and v count as qkv, gate as up, embedding and "
    "head as one) and by quarter of its depth. Two profiles are as far apart as their total variation distance says, from 0 "
    "to 1; their overlap is 1 less that. Two models are compared with random divisions of both top k together, with Holm's "
    "correction over all pairs. Families are compared by the mean distance between models of different families less that of "
    f"models of one, with a permutation test over the models' families; p <= {LEVEL} of components and depth together comes "
    f"first, and only then each of them. It is made only where so many models can give p <= {LEVEL} at all."
)


@dataclass(frozen=True, slots=True)
class PartShare:
    """The share of a model's top k in one part: a bar of the figure. `eligible` is the part's share of all that was ranked."""

    model: str
    family: str
    parameters: int
    metric: str
    k: int
    others: str
    by: str
    part: str
    count: int
    share: float
    eligible: float | None


@dataclass(frozen=True, slots=True)
class PairDistance:
    """Two models' profiles. `expected` is their distance by chance, `p_holm` is corrected over all pairs."""

    first: str
    second: str
    same_family: bool
    metric: str
    k: int
    others: str
    by: str
    distance: float
    overlap: float
    expected: float
    p_value: float
    p_holm: float


@dataclass(frozen=True, slots=True)
class FamilyTest:
    """Distances within families and between them."""

    metric: str
    k: int
    others: str
    by: str  # component, depth, or both
    within: float
    between: float
    p_value: float
    divisions: int
    exact: bool


SHARES = Table("profiles.csv", PartShare)
PAIRS = Table("profile_distances.csv", PairDistance)
TESTS = Table("family_tests.csv", FamilyTest)


@dataclass(frozen=True)
class Profiles:
    """The same top k of several models, with everything that is computed of it."""

    metric: str
    k: int
    others: str
    runs: tuple[StudyRun, ...]
    families: tuple[str, ...]
    source: str  # where families are known from
    shares: tuple[PartShare, ...]
    pairs: tuple[PairDistance, ...]
    tests: tuple[FamilyTest, ...]

    @property
    def label(self) -> str:
        return f"the top {self.k:,} by {self.metric}{f', {self.others}' * bool(self.others)}"


def answer(runs: Sequence[StudyRun]) -> Answer:
    """Profiles within and between families, see `RULE`."""
    found = [_profiles(*key, members) for key, members in _groups(runs)]
    if not found:
        return Answer("architecture", "nothing is known: no two models have a ranking by the same metric", rule=RULE)
    first = found[0]
    damage = list(family_damage(runs))
    alike = [row for row in damage if (row.metric, row.k, row.others) == (first.metric, first.k, first.others)]
    return Answer(
        "architecture",
        _sentence(first),
        findings=(*_findings(first), *damage_findings(alike, first.label)),
        tables=(
            TableRows(SHARES, [row for entry in found for row in entry.shares]),
            TableRows(PAIRS, [row for entry in found for row in entry.pairs]),
            TableRows(TESTS, [row for entry in found for row in entry.tests]),
            TableRows(DAMAGE, damage),
        ),
        refused=tuple(_refused(found, runs)),
        rule=RULE,
    )


def _groups(runs: Sequence[StudyRun]) -> Iterator[tuple[tuple[str, int, str], list[StudyRun]]]:
    """((metric, k, others), the runs that have it) where two have; the first metric and its largest k first."""
    keys = [
        (others_of(run), metric, k)
        for run in runs
        for metric in run.report.metrics
        if metric != GIVEN
        for k in sorted(run.report.spec.topk, reverse=True)
    ]
    for others, metric, k in dict.fromkeys(keys):
        having = [r for r in runs if others_of(r) == others and metric in r.report.metrics and k in r.report.spec.topk]
        having = [run for run in having if top(run.report, metric, k)]
        if len(having) > 1:
            yield (metric, k, others), having


def _profiles(metric: str, k: int, others: str, runs: Sequence[StudyRun]) -> Profiles:
    families, source = families_of([run.report for run in runs])
    by_part = {by: _shares(metric, k, by, runs) for by in PARTS}
    complete = {by: rows for by, rows in by_part.items() if all(rows)}
    pairs = [row for by, rows in complete.items() for row in _pairs(rows, runs, families, others)]
    return Profiles(
        metric, k, others, tuple(runs), families, source,
        tuple(row for rows in complete.values() for row in _part_shares(rows, runs, families, others)),
        tuple(pairs),
        tuple(_tests(pairs, runs, families)),
    )  # fmt: skip


def _shares(metric: str, k: int, by: str, runs: Sequence[StudyRun]) -> list[list[ProfileShare]]:
    """Each run's shares of the same parts, with what architectures call otherwise put together; empty where not known."""
    reports = [run.report for run in runs]
    parts = parts_of(by, reports, metric, k)
    return [_merged(list(profile(report, metric, k, by, parts))) for report in reports]


def _merged(rows: Sequence[ProfileShare]) -> list[ProfileShare]:
    found: dict[str, ProfileShare] = {}
    for row in rows:
        part = MERGED.get(row.part, row.part) if row.by == COMPONENT else row.part
        if part not in found:
            found[part] = replace(row, part=part)
            continue
        one = found[part]
        eligible = None if one.eligible is None or row.eligible is None else one.eligible + row.eligible
        found[part] = replace(one, count=one.count + row.count, share=one.share + row.share, eligible=eligible)
    return list(found.values())


def _part_shares(
    rows: Sequence[Sequence[ProfileShare]], runs: Sequence[StudyRun], families: Sequence[str], others: str
) -> Iterator[PartShare]:
    for run, family, shares in zip(runs, families, rows, strict=True):
        for row in shares:
            yield PartShare(
                model_of(run), family, run.report.model.parameters, row.metric, row.k, others, row.by, row.part, row.count,
                row.share, row.eligible,
            )  # fmt: skip


def _pairs(
    rows: Sequence[Sequence[ProfileShare]], runs: Sequence[StudyRun], families: Sequence[str], others: str
) -> list[PairDistance]:
    couples = list(itertools.combinations(range(len(runs)), 2))
    found: list[ProfileDistance] = [distance(rows[one], rows[other]) for one, other in couples]
    corrected = holm([row.p_value for row in found])
    return [
        PairDistance(
            model_of(runs[one]), model_of(runs[other]), families[one] == families[other], row.metric, row.k, others, row.by,
            row.distance, 1 - row.distance, row.expected, row.p_value, p_holm,
        )
        for (one, other), row, p_holm in zip(couples, found, corrected, strict=True)
    ]  # fmt: skip


def _tests(pairs: Sequence[PairDistance], runs: Sequence[StudyRun], families: Sequence[str]) -> Iterator[FamilyTest]:
    """Components and depth together, then each."""
    if _untestable(runs, families):
        return
    by_part = {by: [row for row in pairs if row.by == by] for by in PARTS}
    known = {by: np.array([row.distance for row in rows]) for by, rows in by_part.items() if rows}
    if len(known) > 1:
        known = {BOTH: np.mean(list(known.values()), axis=0), **known}
    for by, values in known.items():
        matrix = np.zeros((len(runs), len(runs)))
        matrix[np.triu_indices(len(runs), 1)] = values
        found: LabelTest = within_between(matrix + matrix.T, families)
        yield FamilyTest(
            pairs[0].metric, pairs[0].k, pairs[0].others, by, found.within, found.between, found.p_value, found.divisions,
            found.exact,
        )  # fmt: skip


def _untestable(runs: Sequence[StudyRun], families: Sequence[str]) -> str:
    """Why families cannot be compared as such; "" where they can."""
    kinds = len(set(families))
    if kinds < 2:
        return "all models are of one family"
    if kinds == len(families):
        return "there is one model of each family, so a family cannot be told from the model that stands for it"
    couples = itertools.combinations(runs, 2)
    if twice := next(((one, other) for one, other in couples if same_model(one.report, other.report)), None):
        return f"{model_of(twice[0])} and {model_of(twice[1])} are the same files, one model and not two"
    least = smallest_p(families)
    if least > LEVEL:
        return (
            f"{counted(len(families), 'model')} of {kinds} families can give no p below {least:.2g}; two families of four "
            "models or three of three can"
        )
    return ""


def _sentence(found: Profiles) -> str:
    if found.tests:
        return f"{found.label}: {_of_families(found)}"
    apart = [row for row in found.pairs if row.p_holm <= LEVEL]
    said = [
        f"{row.first} and {row.second} differ in {'components' if row.by == COMPONENT else row.by} "
        f"({row.distance:.0%} apart, by chance {row.expected:.0%}, {p_text(row.p_holm)})"
        for row in apart
    ]
    models = "; ".join(said) or f"no difference between the profiles of {counted(len(found.runs), 'model')} was found"
    return f"{found.label}: {models}; whether families differ is not tested: {_untestable(found.runs, found.families)}"


def _of_families(found: Profiles) -> str:
    whole, *each = found.tests
    numbers = f"profiles are {whole.between:.0%} apart between families and {whole.within:.0%} within them"
    how = f"{p_text(whole.p_value)}, {'all' if whole.exact else 'random'} {whole.divisions:,} divisions of the models"
    if whole.p_value > LEVEL:
        return f"no difference between families was found: {numbers} ({how})"
    clear = [f"{test.by} ({p_text(test.p_value)})" for test in each if test.p_value <= LEVEL]
    said = f"families have their critical weights in other places: {numbers} ({how})"
    return f"{said}, by {listed(clear)}" if clear else said


def _findings(found: Profiles) -> Iterator[Finding]:
    for test in found.tests:
        yield Finding(
            f"by {test.by}: {test.between:.1%} apart between families, {test.within:.1%} within ({p_text(test.p_value)})",
            "further models of these families that lie nearer to another family than to their own"
            if test.p_value <= LEVEL
            else "further models, by which those of a family lie nearer to each other",
        )
    for by in PARTS:
        pairs = [row for row in found.pairs if row.by == by]
        if pairs:
            far, near = max(pairs, key=lambda row: row.distance), min(pairs, key=lambda row: row.distance)
            apart = sum(row.p_holm <= LEVEL for row in pairs)
            yield Finding(
                f"profiles by {by}: {_overlap(far)} overlap least, {_overlap(near)} most; {apart} of "
                f"{counted(len(pairs), 'pair')} clearly differ",
                "weights that come by whole rows: the test takes them to be drawn one by one, which makes p too small",
            )
    for family in dict.fromkeys(found.families):
        parts = _mean_shares(found, family)
        if parts:
            listed_parts = listed([f"{part} {share:.0%}" for part, share in parts])
            yield Finding(
                f"{family} has its top weights in {listed_parts}", "models of the family that have them elsewhere"
            )


def _overlap(row: PairDistance) -> str:
    chance = f"by chance {1 - row.expected:.0%}, {p_text(row.p_holm)}"
    return f"{row.first} and {row.second} ({row.overlap:.0%}, {chance})"


def _mean_shares(found: Profiles, family: str) -> list[tuple[str, float]]:
    """The components with most of a family's top weights, at most three: means over its models."""
    shares: dict[str, list[float]] = {}
    for row in found.shares:
        if row.family == family and row.by == COMPONENT:
            shares.setdefault(row.part, []).append(row.share)
    means = sorted(((part, float(np.mean(values))) for part, values in shares.items()), key=lambda entry: -entry[1])
    return [entry for entry in means if entry[1] > 0][:3]


def _refused(found: Sequence[Profiles], runs: Sequence[StudyRun]) -> Iterator[str]:
    first = found[0]
    if why := _untestable(first.runs, first.families):
        yield f"whether families differ is not tested: {why}"
    else:
        yield f"families are by {first.source}: {listed(list(dict.fromkeys(first.families)))}"
        yield from _confounded(first)
    if not any(row.by == DEPTH for row in first.pairs):
        yield "depth is not compared: a run does not say how many decoder blocks its model has"
    without = [model_of(run) for run in runs if run not in first.runs and others_of(run) == first.others]
    if without:
        yield f"{listed(without)}: no ranking by {first.metric} with a top {first.k:,}"
    if len(found) > 1:
        yield (
            f"{len(found) - 1} further sets of profiles are in the tables, each a test of its own at {LEVEL:.0%}; "
            f"the answer is about {first.label}"
        )


def _confounded(found: Profiles) -> Iterator[str]:
    """Families whose sizes do not meet: what looks like architecture may be size."""
    spans = {}
    for family in dict.fromkeys(found.families):
        sizes = [
            run.report.model.parameters for run, of in zip(found.runs, found.families, strict=True) if of == family
        ]
        spans[family] = min(sizes), max(sizes)
    for (one, first), (other, second) in itertools.combinations(spans.items(), 2):
        if first[1] < second[0] or second[1] < first[0]:
            yield (
                f"{one} ({size(first[0])} to {size(first[1])}) and {other} ({size(second[0])} to {size(second[1])}) do not "
                "meet in size, so that a difference of architecture may be one of size"
            )


def check(study: Study) -> None:
    """Raises InvalidInput for a study of one model, or of given weights."""
    require_models(study, 2, "architectures are compared by models of different families")
    if any(value for value in (*study.grid.get("weights", ()), study.shared.get("weights", ()))):
        raise InvalidInput(
            "given weights lie where you chose them", hint="leave out weights, and give metrics and topk"
        )


QUESTION = StudyQuestion(
    name="architecture",
    place=2,
    asks="Do families of models have their critical weights in other places?",
    needs="models of two families or more; four of each of two, or three of each of three, to test families as such",
    check=check,
    answer=answer,
    run={"metrics": ("grad_x_weight",), "topk": (100,), "perturbations": ("zero",), "matrices": False},
)
