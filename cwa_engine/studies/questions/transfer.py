"""`transfer`: do the critical weights of a model stay critical in its variants, and does their damage? torch-free.

The first step ranks every model by itself. The second, made from its reports, damages the base's critical weights in each
variant.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from cwa_engine.base.errors import InvalidInput
from cwa_engine.base.p_values import LEVEL, p_text
from cwa_engine.base.table import Table
from cwa_engine.questions.question import TableRows
from cwa_engine.records.compared import RankingOverlap
from cwa_engine.records.comparison import ranking_overlap
from cwa_engine.records.differences import other_rankings, other_weights, same_model
from cwa_engine.records.profiles import top
from cwa_engine.records.run_report import RunReport
from cwa_engine.records.run_summary import DamageSummary
from cwa_engine.rows import GIVEN, MATRICES, exp
from cwa_engine.spec import RunSpec, parse_spec
from cwa_engine.studies.analysis.multiple import holm
from cwa_engine.studies.analysis.paired import NATS, TextChanges, common_unit, critical_changes, difference, log_ratio
from cwa_engine.studies.analysis.series import OF_MODEL, model_of, others_of, require_damage, values_of
from cwa_engine.studies.analysis.words import doing, figure, listed
from cwa_engine.studies.answer import Answer, Finding, StudyQuestion, StudyRun
from cwa_engine.studies.study import Study

RULE = (
    "The first model is the base, all others are its variants. Its coordinates carry over where the two top k share more "
    "weights than random sets, and random sets with as many of each parameter, do: by a hypergeometric test, with Holm's "
    f"correction over the variants, at {LEVEL}. The damage carries over where the base's critical weights, damaged in the "
    "variant, are told from the variant's own controls by its run's rule. It is compared text by text with what the variant's "
    "own critical weights do, and with what the base's do to the base, in bits per byte where the tokens differ. Weights of "
    "models that differ in size, shape or vocabulary are not the same coordinates, and are not compared one by one."
)


@dataclass(frozen=True, slots=True)
class TransferRow:
    """A base and one of its variants, at one k. None for what was not measured or cannot be compared, which `why` says.

    `base_damage`: the base's weights in the base. `carried`: the same weights in the variant. `own`: the variant's own weights
    in it. All are changes of the loss in `unit`. `of_own` is carried / own, as a ratio.
    """

    base: str
    variant: str
    others: str
    metric: str
    k: int
    perturbation: str
    why: str
    same_files: bool
    common: int | None = None
    of: int | None = None  # weights in the base's list: k, or k of each layer, parameter or component
    expected: float | None = None
    p_value: float | None = None
    expected_within: float | None = None
    p_within: float | None = None
    p_holm: float | None = None  # of the stricter of the two, over the variants
    unit: str = ""
    base_damage: float | None = None
    own: float | None = None
    carried: float | None = None
    carried_low: float | None = None
    carried_high: float | None = None
    carried_outcome: str = ""
    minus_base: float | None = None
    minus_base_low: float | None = None
    minus_base_high: float | None = None
    of_own: float | None = None
    of_own_low: float | None = None
    of_own_high: float | None = None

    @property
    def carries_over(self) -> bool:
        return self.p_holm is not None and self.p_holm <= LEVEL


TABLE = Table("transfer.csv", TransferRow)


def further(study: Study, runs: Sequence[StudyRun]) -> tuple[RunSpec, ...]:
    """The base's critical weights zeroed in every variant that has the same coordinates; of the first metric, at each k."""
    found = []
    for base, variants in _groups(runs):
        metric = next((name for name in base.report.metrics if name != GIVEN), None)
        for run, k in itertools.product(variants, base.cell.spec.topk):
            if metric and not _apart(base.report, run.report) and run.cell.spec.damages:
                found.append(_given_spec(run.cell.spec, [weight.target for weight in top(base.report, metric, k)]))
    return tuple(found)


def _given_spec(spec: RunSpec, targets: Sequence[str]) -> RunSpec:
    """The same run with these weights in the place of a ranking."""
    asked = spec.model_dump(exclude={"output"})
    asked |= {"metrics": (), "weights": tuple(targets), "matrices": False, "individually": False}
    asked |= dict.fromkeys(("stability", "fidelity", "critical_set", "iterate"))
    asked["controls"] = tuple(name for name in spec.controls if name != "bottom")
    return parse_spec(asked)


def answer(runs: Sequence[StudyRun]) -> Answer:
    """Coordinates and damage of the base beside each variant, see `RULE`."""
    groups = list(_groups(runs))
    pairs = [(base, variant) for base, variants in groups for variant in variants]
    if not pairs:
        why = "nothing is known of any transfer: fewer than two models have a run"
        return Answer("transfer", why, refused=tuple(_refused(groups, [])), rule=RULE)
    rows = _corrected([row for base, variant in pairs for row in _rows(base, variant, runs)])
    answered = _answered(rows)
    return Answer(
        "transfer",
        _sentence(answered),
        findings=tuple(_findings(answered)),
        tables=(TableRows(TABLE, rows),),
        refused=tuple(dict.fromkeys(_refused(groups, rows))),
        rule=RULE,
    )


def _groups(runs: Sequence[StudyRun]) -> Iterator[tuple[StudyRun, list[StudyRun]]]:
    """(base, its variants) for each combination of what else the grid has: seeds, texts."""
    ranked = sorted((run for run in runs if not _is_given(run.report)), key=lambda run: run.cell.number)
    for others in dict.fromkeys(others_of(run, OF_MODEL) for run in ranked):
        base, *variants = [run for run in ranked if others_of(run, OF_MODEL) == others]
        yield base, variants


def _is_given(report: RunReport) -> bool:
    return bool(report.spec.weights) and not report.spec.metrics


def _apart(base: RunReport, variant: RunReport) -> str:
    """Why the weights of two models are not the same coordinates; "" where they are."""
    if base.run_id == variant.run_id:
        return "both are one run"
    return other_weights(base, variant) or other_rankings(base, variant)


def _rows(base: StudyRun, variant: StudyRun, runs: Sequence[StudyRun]) -> Iterator[TransferRow]:
    why = _apart(base.report, variant.report)
    for group in _sets(base.report):
        metric, k = group.metric, group.k
        if metric in variant.report.metrics and k <= variant.report.spec.largest_k:
            overlap = None if why else ranking_overlap(base.report, variant.report, metric, k)
            yield _row(base, variant, group, overlap, why, runs)


def _sets(report: RunReport) -> list[DamageSummary]:
    """The critical sets of a run; of one without damage its rankings."""
    sets = [group for group in report.summary.damage if group.critical]
    ranked = itertools.product(report.metrics, report.spec.topk)
    return sets or [DamageSummary(metric, k, "", None) for metric, k in ranked]


def _row(
    base: StudyRun,
    variant: StudyRun,
    group: DamageSummary,
    overlap: RankingOverlap | None,
    why: str,
    runs: Sequence[StudyRun],
) -> TransferRow:
    key = group.metric, group.k, group.perturbation
    same = same_model(base.report, variant.report)
    row = TransferRow(model_of(base), model_of(variant), others_of(base, OF_MODEL), *key, why, same)
    if overlap:
        row = replace(
            row,
            common=overlap.common,
            of=overlap.of_first,
            expected=overlap.expected,
            p_value=overlap.p_value,
            expected_within=overlap.expected_within,
            p_within=overlap.p_within,
        )
    return _with_damage(row, base.report, variant.report, _given_run(base.report, variant, group, runs))


def _given_run(base: RunReport, variant: StudyRun, group: DamageSummary, runs: Sequence[StudyRun]) -> RunReport | None:
    """The run in which the base's critical weights were changed in the variant."""
    if group.metric not in base.metrics:
        return None
    wanted = {weight.target for weight in top(base, group.metric, group.k)}
    for run in runs:
        if _is_given(run.report) and set(run.report.spec.weights) == wanted and _is_of(run.report, variant.report):
            return run.report
    return None


def _is_of(given: RunReport, variant: RunReport) -> bool:
    """Whether weights were changed in the model of the other run, on its texts and with its seed."""
    one, other = (
        (
            r.model.name,
            r.model.revision,
            r.model.files,
            r.model.dtype,
            r.texts.evaluation_sha256,
            r.texts.damage,
            r.spec.seed,
        )
        for r in (given, variant)
    )
    return one == other


def _with_damage(row: TransferRow, base: RunReport, variant: RunReport, given: RunReport | None) -> TransferRow:
    unit = common_unit([base, variant])
    key = row.metric, row.k, row.perturbation
    if not unit.name:
        return replace(row, why="; ".join(filter(None, [row.why, unit.why])))
    of_base, own = (critical_changes(report, unit.name).get(key) for report in (base, variant))
    row = replace(row, unit=unit.name, base_damage=_total(of_base), own=_total(own))
    group = given and next((g for g in given.summary.damage if g.perturbation == row.perturbation and g.critical), None)
    if not given or not group:
        return row
    assert group.critical
    scale = 1.0 if unit.name == NATS else (given.baseline.bits_per_byte or 0.0) / given.baseline.nll
    figures = [
        _finite(n * scale) for n in (group.critical.delta_nll, group.critical.delta_low, group.critical.delta_high)
    ]
    carried = critical_changes(given, unit.name).get((group.metric, group.k, group.perturbation))
    pairs = carried is not None and common_unit([variant, given]).paired
    versus = difference(carried, of_base) if carried and of_base and pairs and unit.paired else (math.nan,) * 3
    ratio = log_ratio(carried, own) if carried and own and pairs else None
    return replace(
        row,
        carried=figures[0],
        carried_low=figures[1],
        carried_high=figures[2],
        carried_outcome=group.outcome or "not tested",
        minus_base=_finite(versus[0]),
        minus_base_low=_finite(versus[1]),
        minus_base_high=_finite(versus[2]),
        of_own=exp(ratio[0]) if ratio else None,
        of_own_low=exp(ratio[1]) if ratio else None,
        of_own_high=exp(ratio[2]) if ratio else None,
    )


def _total(changes: TextChanges | None) -> float | None:
    return _finite(changes.total) if changes else None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _corrected(rows: Sequence[TransferRow]) -> list[TransferRow]:
    """With Holm's correction over the variants, for each metric, k and perturbation by itself."""
    found = list(rows)
    for key in dict.fromkeys((row.others, row.metric, row.k, row.perturbation) for row in rows):
        places = [
            place
            for place, row in enumerate(found)
            if (row.others, row.metric, row.k, row.perturbation) == key and _stricter(row) is not None
        ]
        for place, p in zip(places, holm([_stricter(found[place]) or 0.0 for place in places]), strict=True):
            found[place] = replace(found[place], p_holm=p)
    return found


def _stricter(row: TransferRow) -> float | None:
    known = [p for p in (row.p_value, row.p_within) if p is not None]
    return max(known, default=None)


def _answered(rows: Sequence[TransferRow]) -> list[TransferRow]:
    """What the answer is about: of the first metric and perturbation the largest k that was also damaged in the variants."""
    if not rows:
        return []
    head = next((row for row in rows if not row.metric.endswith(MATRICES)), rows[0])
    alike = [r for r in rows if (r.others, r.metric, r.perturbation) == (head.others, head.metric, head.perturbation)]
    k = max(alike, key=lambda row: (row.carried_outcome != "", row.k)).k
    return [row for row in alike if row.k == k]


def _sentence(rows: Sequence[TransferRow]) -> str:
    if not rows:
        return "nothing is known of any transfer: no two models were ranked by the same metric"
    head = rows[0]
    what = f"the top {head.k:,} by {head.metric} of {head.base}"
    compared = [row for row in rows if row.common is not None]
    if not compared:
        return f"{what} cannot be looked for in any variant: {listed([f'{row.variant}: {row.why}' for row in rows])}"
    said = [f"{row.variant} {_carried(row)}" for row in compared]
    return f"{what}: {'; '.join(said)}"


def _carried(row: TransferRow) -> str:
    share = f"{row.common:,} of {row.of:,}"
    coordinates = (
        f"has {share} of its coordinates" if row.carries_over else f"has {share}, no more than by chance was found"
    )
    if row.p_holm is None:
        coordinates = f"has {share} of its coordinates, what chance gives is not known"
    if not row.carried_outcome:
        return f"{coordinates}, their damage was not measured there"
    if row.carried_outcome == "harmful":
        return f"{coordinates}, and their damage carries over"
    return f"{coordinates}, but their damage is {row.carried_outcome} there"


def _findings(rows: Sequence[TransferRow]) -> Iterator[Finding]:
    for row in rows:
        if row.common is not None and _stricter(row) is not None:
            chance = row.expected_within if row.expected_within is not None else row.expected
            same = "; the files of both are the same" if row.same_files else ""
            yield Finding(
                f"{row.base} and {row.variant} share {row.common:,} of the top {row.of:,} by {row.metric}, random sets with as "
                f"many of each parameter {chance:.2g} ({p_text(row.p_holm)} with Holm's correction){same}",
                "other scoring texts, by which the top k of either has other weights: both were ranked by the same texts",
            )
        if row.carried_outcome:
            yield Finding(
                _damage(row), "a seed or texts by which the controls in the variant do as much as these weights"
            )


def _damage(row: TransferRow) -> str:
    said = f"{doing(row.perturbation)} the {row.k:,} critical weights of {row.base} in {row.variant} "
    if row.carried is None or row.carried_low is None or row.carried_high is None:
        return f"{said}leaves no finite loss: {row.carried_outcome} by its own controls"
    said += f"changes the loss by {figure(row.carried, row.carried_low, row.carried_high)} {row.unit} ({row.carried_outcome})"
    if row.minus_base is not None and row.minus_base_low is not None and row.minus_base_high is not None:
        more = figure(row.minus_base, row.minus_base_low, row.minus_base_high)
        word = "" if row.minus_base_low > 0 or row.minus_base_high < 0 else ", no clear difference"
        said += f"; in {row.base} by {row.base_damage:+.3g}, so that {row.variant} minus {row.base} is {more}{word}"
    if row.of_own is not None:
        said += f"; that is {row.of_own:.2f} [{row.of_own_low:.2f}, {row.of_own_high:.2f}] of what the variant's own do"
    return said


def _refused(groups: Sequence[tuple[StudyRun, list[StudyRun]]], rows: Sequence[TransferRow]) -> Iterator[str]:
    for base, variants in groups:
        if base.cell.number != 1 and not others_of(base, OF_MODEL):
            yield f"the first model has no run; {model_of(base)} is taken as the base instead"
        if not variants:
            yield f"{model_of(base)} has no variant with a run to compare with"
    for row in rows:
        if row.why:
            what = "not compared weight by weight" if row.common is None else "not compared in damage"
            yield f"{row.base} and {row.variant} are {what}: {row.why}"
        elif not row.carried_outcome and row.perturbation and row in _answered(rows):
            yield (
                f"whether damage carries over to {row.variant} was not measured: resume the study, or run {row.variant} with "
                f"--weights and the base's topk_{row.metric}.csv"
            )


def check(study: Study) -> None:
    """Raises InvalidInput for a study without a variant, without a ranking, and for weights that the user chose."""
    if sum(len(study.grid.get(name, ())) > 1 for name in OF_MODEL) == 0:
        raise InvalidInput(
            "transfer needs a base and at least one variant of it",
            hint="give two models or more with --models, the base first; or two dtypes or revisions of one in [grid]",
        )
    require_damage(study)
    if any(values_of(study, "weights", ())):
        raise InvalidInput(
            "transfer takes the base's own critical weights to its variants",
            hint="leave out weights, and give metrics and topk",
        )


QUESTION = StudyQuestion(
    name="transfer",
    place=7,
    asks="Do the critical weights of a model stay critical in its instruct, quantised or fine-tuned variants?",
    needs="a base first, then its variants: models of its shape, other dtypes or revisions; one run more for each of them",
    check=check,
    answer=answer,
    run={"metrics": ("grad_x_weight",), "topk": (100,), "perturbations": ("zero",), "matrices": False},
    further=further,
)
