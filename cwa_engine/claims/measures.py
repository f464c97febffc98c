"""What can be expected of a run: each kind is a number, or a word, read from RunReports alone. torch-free."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from cwa_engine.base.errors import InvalidInput, NotFound, did_you_mean
from cwa_engine.claims.claim import Expectation
from cwa_engine.questions.interactions import Interaction
from cwa_engine.records.run_report import RunReport
from cwa_engine.rows import DamagePoint, Spike, TopWeight, exp


@dataclass(frozen=True, slots=True)
class Measured:
    """A value with its 95 % interval, where there is one. A value beyond a float is infinite, and `note` says why."""

    value: float | str
    low: float | None = None
    high: float | None = None
    note: str = ""


Reports = Mapping[str, RunReport]  # by the name of the step
Read = Callable[[Expectation, Reports], Measured]


@dataclass(frozen=True, slots=True)
class Measure:
    """One kind of expectation. `needs` and `takes` are fields of `Expectation` that it must and may have."""

    name: str
    meaning: str
    read: Read
    needs: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()
    is_word: bool = False


MEASURES: dict[str, Measure] = {}


def _measure(
    name: str, meaning: str, needs: Sequence[str] = (), takes: Sequence[str] = (), is_word: bool = False
) -> Callable[[Read], Read]:
    def register(read: Read) -> Read:
        MEASURES[name] = Measure(name, meaning, read, tuple(needs), tuple(takes), is_word)
        return read

    return register


_GROUP = ("metric", "k", "perturbation")  # what names a critical set


@_measure("perplexity", "perplexity of the intact model")
def _perplexity(entry: Expectation, reports: Reports) -> Measured:
    return Measured(_of(entry, reports).baseline.perplexity)


@_measure("loss", "loss of the intact model, nats per token")
def _loss(entry: Expectation, reports: Reports) -> Measured:
    return Measured(_of(entry, reports).baseline.nll)


@_measure("bits_per_byte", "bits per byte of the intact model")
def _bits_per_byte(entry: Expectation, reports: Reports) -> Measured:
    bits = _of(entry, reports).baseline.bits_per_byte
    if bits is None:
        raise NotFound("the model's tokenizer does not tell which bytes its tokens stand for")
    return Measured(bits)


@_measure("parameters", "weights of the model; those that are tied count once")
def _parameters(entry: Expectation, reports: Reports) -> Measured:
    return Measured(float(_of(entry, reports).model.parameters))


@_measure("damaged_perplexity", "perplexity with the weights changed", takes=(*_GROUP, "selection"))
def _damaged_perplexity(entry: Expectation, reports: Reports) -> Measured:
    report = _of(entry, reports)
    point, intact = _point(entry, report), report.baseline.perplexity
    return _finite(point, point.perplexity, _exp(point.delta_low, intact), _exp(point.delta_high, intact))


@_measure("perplexity_ratio", "perplexity with the weights changed over that without", takes=(*_GROUP, "selection"))
def _perplexity_ratio(entry: Expectation, reports: Reports) -> Measured:
    point = _point(entry, _of(entry, reports))
    return _finite(point, point.perplexity_ratio, _exp(point.delta_low), _exp(point.delta_high))


@_measure("loss_change", "change of the loss, nats per token", takes=(*_GROUP, "selection"))
def _loss_change(entry: Expectation, reports: Reports) -> Measured:
    point = _point(entry, _of(entry, reports))
    return _finite(point, point.delta_nll, point.delta_low, point.delta_high)


@_measure("relative_loss_change", "change of the loss over the loss", takes=(*_GROUP, "selection"))
def _relative_loss_change(entry: Expectation, reports: Reports) -> Measured:
    report = _of(entry, reports)
    point, intact = _point(entry, report), report.baseline.nll
    return _finite(point, point.delta_nll / intact, point.delta_low / intact, point.delta_high / intact)


@_measure("largest_control_change", "change of the loss by the control's leading draw", ("selection",), _GROUP)
def _largest_control_change(entry: Expectation, reports: Reports) -> Measured:
    report = _of(entry, reports)
    rows = [row for row in report.separations if row.control == entry.selection and _is_of(entry, row)]
    row = _one(rows, f"control {entry.selection}", [row.control for row in report.separations])
    if row.largest is None:
        return Measured(math.inf, note="the model collapses")
    return Measured(row.largest, row.largest_low, row.largest_high)


@_measure("alone", "change of the loss by one unit of the set alone, nats per token", ("target",), _GROUP)
def _alone(entry: Expectation, reports: Reports) -> Measured:
    row = _unit(entry, _of(entry, reports), entry.target)
    return _unit_measured(row)


@_measure("relative_alone", "change of the loss by one unit of the set alone, over the loss", ("target",), _GROUP)
def _relative_alone(entry: Expectation, reports: Reports) -> Measured:
    report = _of(entry, reports)
    row = _unit(entry, report, entry.target)
    return _unit_measured(row, report.baseline.nll)


@_measure(
    "alone_beyond",
    "change of the loss by one unit alone, less the largest of the others alone, nats per token",
    ("target", "targets"),
    _GROUP,
)
def _alone_beyond(entry: Expectation, reports: Reports) -> Measured:
    report = _of(entry, reports)
    others = [abs(_of_any_size(_unit(entry, report, other).alone)) for other in entry.targets]
    return Measured(_of_any_size(_unit(entry, report, entry.target).alone) - max(others))


@_measure("rank", "place of a weight by a metric", ("metric", "target"))
def _rank(entry: Expectation, reports: Reports) -> Measured:
    ranking = _of(entry, reports).topk(entry.metric)
    place = next((weight.rank for weight in ranking if weight.target == entry.target), None)
    if place is None:
        return Measured(math.inf, note=f"not among the first {len(ranking):,}")
    return Measured(float(place))


@_measure("found", "how many of these weights are among the first k by a metric", ("metric", "k", "targets"))
def _found(entry: Expectation, reports: Reports) -> Measured:
    first = _first(entry.metric, entry.k, _of(entry, reports))
    return Measured(float(sum(target in first for target in entry.targets)))


@_measure(
    "overlap",
    "how many weights two rankings have in common among their first k",
    ("metric", "k"),
    ("other_step", "other_metric"),
)
def _overlap(entry: Expectation, reports: Reports) -> Measured:
    other = reports[entry.other_step or entry.step]
    ours = _first(entry.metric, entry.k, _of(entry, reports))
    return Measured(float(len(ours & _first(entry.other_metric or entry.metric, entry.k, other))))


@_measure("weight_value", "value of a weight", ("target",), ("metric",))
def _weight_value(entry: Expectation, reports: Reports) -> Measured:
    return Measured(_weight(entry, _of(entry, reports)).value)


@_measure("spike_output", "the largest output of the weight's out_feature", ("target",))
def _spike_output(entry: Expectation, reports: Reports) -> Measured:
    spike = _spike(entry, _of(entry, reports))
    return Measured(spike.output, note=_token(spike))


@_measure("spike_input", "what the weight reads where its out_feature's output is largest", ("target",))
def _spike_input(entry: Expectation, reports: Reports) -> Measured:
    report = _of(entry, reports)
    spike = _spike(entry, report)
    weight = next(row for row in report.topk(_spike_metric(report)) if row.target == spike.target)
    if not weight.value:
        raise NotFound(f"{spike.target} is zero: what it reads does not follow from what it adds")
    return Measured(spike.share * spike.output / weight.value, note=_token(spike))


@_measure("spike_share", "the weight's share of its out_feature's largest output", ("target",))
def _spike_share(entry: Expectation, reports: Reports) -> Measured:
    return Measured(_spike(entry, _of(entry, reports)).share)


@_measure("spike_weights", "how many weights are zeroed until no spike is left")
def _spike_weights(entry: Expectation, reports: Reports) -> Measured:
    removal = _of(entry, reports).spike_removal
    if removal is None:
        raise NotFound("the run removed no spikes", hint="give the step `iterate`, and `metrics = ['super_weight']`")
    if not removal.gone:
        return Measured(math.inf, note=f"a spike is left after {len(removal.steps)}")
    return Measured(float(len(removal.steps)))


@_measure("verdict", "whether the set is distinguishable from its controls", takes=_GROUP, is_word=True)
def _verdict(entry: Expectation, reports: Reports) -> Measured:
    verdicts = _of(entry, reports).verdicts
    row = _one([row for row in verdicts if _is_of(entry, row)], "verdict", [row.metric for row in verdicts])
    return Measured(row.outcome, note=row.sentence)


def measure_of(name: str) -> Measure:
    """Raises InvalidInput, with near names, where there is none."""
    if name not in MEASURES:
        raise InvalidInput(
            f"nothing measures `{name}`",
            hint=did_you_mean(name, MEASURES) or f"what is measured: {', '.join(MEASURES)}",
        )
    return MEASURES[name]


# Fields of an expectation that say which row of a run is meant.
_ROW_FIELDS = ("metric", "k", "perturbation", "selection", "target", "targets", "other_step", "other_metric")


def check_expectation(entry: Expectation) -> None:
    """Raise InvalidInput for one that lacks what its measure needs, or has what it does not know."""
    measure = measure_of(entry.what)
    given = [name for name in _ROW_FIELDS if name in entry.model_fields_set]
    if missing := [name for name in measure.needs if name not in given]:
        raise InvalidInput(f"`{entry.what}` needs {', '.join(missing)}", hint="docs/claims.md lists what each needs")
    if unknown := [name for name in given if name not in (*measure.needs, *measure.takes)]:
        takes = ", ".join((*measure.needs, *measure.takes)) or "none of these"
        raise InvalidInput(f"`{entry.what}` does not read {', '.join(unknown)}", hint=f"it reads {takes}")
    if isinstance(entry.value, str) != measure.is_word and entry.value is not None:
        kind = "a word" if measure.is_word else "a number"
        raise InvalidInput(f"the value of `{entry.what}` is {kind}, not {entry.value!r}", hint="correct the value")
    has_tolerance = entry.within is not None or entry.within_share is not None
    if has_tolerance and not isinstance(entry.value, float):
        raise InvalidInput(f"`{entry.what}` has a tolerance and no number", hint="add `value`, or leave it out")
    if isinstance(entry.value, float) and not has_tolerance:
        raise InvalidInput(f"`{entry.what}` has a value and no tolerance", hint="add `within` or `within_share`")
    if entry.is_judged and not measure.is_word and not entry.tolerance_from:
        raise InvalidInput(
            f"`{entry.what}` does not say where its tolerance comes from", hint="add `tolerance_from`, in words"
        )
    low, high = entry.band
    if low > high:
        raise InvalidInput(f"nothing can agree with `{entry.what}`: from {low:g} to {high:g}", hint="mend its bounds")
    if entry.gate and not entry.is_judged:
        raise InvalidInput(f"the gate `{entry.what}` has no figure", hint="give it a value, or no gate")


def measured(entry: Expectation, reports: Reports) -> Measured:
    """What the runs say. Raises NotFound where they do not say it."""
    return measure_of(entry.what).read(entry, reports)


def _of(entry: Expectation, reports: Reports) -> RunReport:
    return reports[entry.step]


class _OfSet(Protocol):
    """A row of a critical set."""

    @property
    def metric(self) -> str: ...
    @property
    def k(self) -> int: ...
    @property
    def perturbation(self) -> str: ...


R = TypeVar("R")


def _is_of(entry: Expectation, row: _OfSet) -> bool:
    """Whether a row is of the expectation's metric, k and perturbation."""
    return (row.metric, row.perturbation) == (entry.metric, entry.perturbation) and entry.k in (None, row.k)


def _one(rows: Sequence[R], what: str, there: Iterable[str]) -> R:
    """The only row. Raises NotFound where there is none, or more than one."""
    if len(rows) == 1:
        return rows[0]
    has = ", ".join(dict.fromkeys(there)) or "none"
    reason = f"the run has {len(rows)} rows of it" if rows else f"the run has {has}"
    raise NotFound(f"{what} is not one row of the run: {reason}", hint="name `metric`, `k` and `perturbation`")


def _point(entry: Expectation, report: RunReport) -> DamagePoint:
    rows = [row for row in report.damage if row.selection == entry.selection and _is_of(entry, row)]
    there = (f"{row.metric} k {row.k} {row.perturbation} {row.selection}" for row in report.damage)
    return _one(rows, f"{entry.metric} k {entry.k or 'any'} {entry.perturbation} {entry.selection}", there)


def _unit(entry: Expectation, report: RunReport, target: str | None) -> Interaction:
    rows = [row for row in report.interactions if row.target == target and _is_of(entry, row)]
    return _one(rows, f"{target} alone", (f"{row.target} {row.perturbation}" for row in report.interactions))


def _unit_measured(row: Interaction, intact: float = 1.0) -> Measured:
    """What a unit does alone, over `intact`; infinite where the model collapses."""
    if not math.isfinite(row.alone):
        return Measured(math.inf, note="the model collapses")
    return Measured(row.alone / intact, row.alone_low / intact, row.alone_high / intact)


def _of_any_size(change: float) -> float:
    """A change that is not finite is a collapse, which is larger than every number."""
    return change if math.isfinite(change) else math.inf


def _first(metric: str, k: int | None, report: RunReport) -> set[str]:
    """The targets of the first k. Raises NotFound for a ranking that has fewer."""
    ranking = report.topk(metric)
    if k is None or len(ranking) < k:
        raise NotFound(f"the ranking by {metric} has {len(ranking):,} places, {k} are asked for", hint="raise `topk`")
    return {weight.target for weight in ranking[:k]}


def _weight(entry: Expectation, report: RunReport) -> TopWeight:
    rows = [row for row in report.topk(entry.metric) if row.target == entry.target]
    return _one(rows, f"{entry.target}", (row.target for row in report.topk(entry.metric)[:10]))


def _spike(entry: Expectation, report: RunReport) -> Spike:
    rows = [row for row in report.spikes if row.target == entry.target]
    return _one(rows, f"the spike of {entry.target}", (row.target for row in report.spikes[:10]))


def _spike_metric(report: RunReport) -> str:
    """The ranking that spikes belong to: there is one metric of spikes."""
    return next(name for name in report.metrics if name.startswith("super_weight"))


def _token(spike: Spike) -> str:
    return "" if spike.token is None else f"at token '{spike.token}', position {spike.position}"


def _finite(point: DamagePoint, value: float, low: float | None, high: float | None) -> Measured:
    """The figure with its interval; infinite where the model collapses."""
    if point.collapsed_at is not None or not math.isfinite(value):
        return Measured(math.inf, note=f"the model collapses at {point.collapsed_at}" if point.collapsed_at else "")
    return Measured(value, low, high)


def _exp(change: float, intact: float = 1.0) -> float:
    return intact * exp(change)
