"""What the elimination of draws costs and how it errs, beside the rule before it (docs/evidence.md).

`python -m benchmarks.evidence_elimination [agreement | errors | new | passes]` prints one table, or all.

By the earlier rule all draws of a control were measured on the sample, and the one that did most there on all texts. Both
rules judge the same draws here, and what is measured for one is taken by the other.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.evidence_verdicts import MODEL, SIZE, planted_set
from benchmarks.measure import print_parts
from benchmarks.tables import table
from cwa_engine.damage.cases import comparisons
from cwa_engine.damage.competition import compete, interval_of
from cwa_engine.damage.curves import measure_damage
from cwa_engine.damage.elimination import SAMPLE, looks_of, texts_until_clear
from cwa_engine.damage.measured import Damaged, Measured, MeasuredComparison, Reference, figures
from cwa_engine.damage.measurement import MeasurementContext, TextPart, measure, prepare_measurement
from cwa_engine.damage.separation import separations, verdicts
from cwa_engine.damage.treatments import ZERO, Comparison
from cwa_engine.data.corpus import load_texts
from cwa_engine.data.tokens import TokenSequence, tokenize
from cwa_engine.evaluation.batch_size import BatchSize
from cwa_engine.evaluation.perplexity import evaluate
from cwa_engine.methods.controls import Selection, by_parameter
from cwa_engine.methods.metrics import Needs
from cwa_engine.models.loading import LoadedModel, load_model
from cwa_engine.models.structures import target_name
from cwa_engine.preconditions import given_ranking
from cwa_engine.rows import MATRICES, Baseline, DamagePoint, Ranking
from cwa_engine.sensitivity.gradients import resident
from cwa_engine.sensitivity.ranking import rank
from cwa_engine.sensitivity.views import matrices_in_blocks
from cwa_engine.spec import RunSpec

TEXTS, TOKENS = 32, 8  # measured, and of a text
DEPTH = 3000  # of the ranking from which sets are planted
RANDOM_SETS, GROUP, DIVISIONS = 80, 20, 5  # sets, in groups of so many, divided in so many ways
SEED, NEW_SEED, NEW_SETS = 77, 2026, 200  # of the sets that the rule was chosen on, and of others that it had not seen
CONTROL = "random_matched"


@dataclass(frozen=True)
class Judged:
    """A critical set by both rules."""

    earlier: str  # outcome
    now: str
    earlier_texts: int  # that its draws were measured on, all together
    now_texts: int


def context_of(loaded: LoadedModel, spec: RunSpec, texts: int | None = None) -> MeasurementContext:
    sequences = tokenize(loaded.tokenizer, load_texts(None)[1::2][:texts], spec.seq_len or TOKENS)
    return prepare_measurement(loaded, sequences, evaluate(loaded, sequences, 16), spec, BatchSize(16))


def by_sample(context: MeasurementContext, entry: MeasuredComparison) -> MeasuredComparison:
    """The comparison by the earlier rule. What the entry's draws were measured on is not measured again."""
    drawn = {}
    for control, known in entry.draws.items():
        draws = entry.comparison.of(control)
        found = [
            _extended(context, one, draw.weights, len(context.sample_places))
            for one, draw in zip(known, draws, strict=True)
        ]
        sizes = [context.reference.size(one.measured, len(context.sample_places)) for one in found]
        worst = int(np.argmax(sizes))
        whole = _extended(context, found[worst], draws[worst].weights, len(context.sequences))
        found = [_on_first(context.reference, one, len(context.sample_places)) for one in found]
        drawn[control] = [*found[:worst], whole, *found[worst + 1 :]]
    return replace(entry, draws=drawn)


def _extended(context: MeasurementContext, known: Damaged, weights: Selection, texts: int) -> Damaged:
    before = known.measured
    parts = context.parts_between(len(before.places), texts)
    if not parts:
        return known
    measured = before.with_others(measure(context, weights, ZERO, parts))
    return Damaged(measured, replace(known.point, **figures(context.reference, measured)))


def _on_first(reference: Reference, known: Damaged, texts: int) -> Damaged:
    measured = known.measured.part(reference.first(texts))
    return Damaged(measured, replace(known.point, **figures(reference, measured)))


def judged(context: MeasurementContext, given: Ranking) -> Judged:
    """One critical set beside its draws, by both rules."""
    (comparison,) = comparisons(context.loaded, [given], context.spec)
    earlier = measured_by_sample(context, comparison)
    now = by_elimination(context, earlier)
    return Judged(
        outcome(replace(context.reference, rule=SAMPLE), earlier), outcome(context.reference, now),
        texts_of(earlier), texts_of(now),
    )  # fmt: skip


def by_elimination(context: MeasurementContext, entry: MeasuredComparison) -> MeasuredComparison:
    """A comparison by the elimination, of one by the earlier rule."""
    assert entry.critical
    draws = entry.comparison.of(CONTROL)
    known = list(entry.draws[CONTROL])

    def measured(draw: int, texts: int) -> Measured:
        if texts > len(known[draw].measured.places):
            known[draw] = _extended(context, known[draw], draws[draw].weights, len(context.sequences))
        return known[draw].measured

    standing = compete(context.reference, CONTROL, entry.critical.measured, len(draws), measured)
    found = [_on_first(context.reference, one, texts) for one, texts in zip(known, standing.texts[1:], strict=True)]
    return replace(entry, draws={CONTROL: found})


def in_two_parts(context: MeasurementContext) -> MeasurementContext:
    """The sample as one part and the other texts as another, each for one pass: fewer, larger batches take less time."""
    parts = []
    for places in (context.sample_places, np.setdiff1d(context.all_places, context.sample_places)):
        parts.append(TextPart(places, [context.sequences[place] for place in places], None))
    return replace(context, sample=(parts[0],), rest=(parts[1],))


def outcome(reference: Reference, entry: MeasuredComparison) -> str:
    intact = Baseline(reference.intact.nll, reference.intact.perplexity, None, len(reference.intact.tokens), 0, "")
    (verdict,) = verdicts(reference, intact, [entry], separations(reference, [entry]))
    return verdict.outcome


def texts_of(entry: MeasuredComparison) -> int:
    return sum(len(draw.measured.places) for draws in entry.draws.values() for draw in draws)


def agreement() -> Iterator[str]:
    """Verdicts of both rules on 40 critical sets, each with 19 draws of its own."""
    loaded = load_model(MODEL)
    spec = RunSpec(model=MODEL, controls=(CONTROL,), topk=(SIZE,), seq_len=TOKENS)
    context = in_two_parts(context_of(loaded, spec, TEXTS))
    kinds: dict[str, list[Judged]] = {}
    for kind, given in critical_sets(loaded, ranking_of(loaded, DEPTH)):
        kinds.setdefault(kind, []).append(judged(context, given))
    rows = [_row(kind, found) for kind, found in kinds.items()]
    everything = [one for found in kinds.values() for one in found]
    yield table(
        ("critical sets", "runs", "distinguishable, earlier", "now", "same verdict", "texts of draws, earlier", "now"),
        [*rows, _row("all", everything)],
    )


def _row(kind: str, found: Sequence[Judged]) -> tuple[object, ...]:
    told = [sum(outcome in ("harmful", "helpful") for outcome in outcomes) for outcomes in
            ([one.earlier for one in found], [one.now for one in found])]  # fmt: skip
    same = sum(one.earlier == one.now for one in found)
    texts = [
        f"{np.mean(each):.0f}" for each in ([one.earlier_texts for one in found], [one.now_texts for one in found])
    ]
    return kind, len(found), *told, same, *texts


def critical_sets(loaded: LoadedModel, ranking: Ranking) -> Iterator[tuple[str, Ranking]]:
    """(what it is, the set): of random weights, with a few planted among these, and by metrics."""
    for number in range(14):
        yield "100 random weights", _given(loaded, planted_set(loaded, ranking, 0, 7000 + number))
    for planted, first, last, sets in ((1, 0, 100, 5), (1, 100, 1000, 5), (3, 1000, DEPTH, 6)):
        among = replace(ranking, weights=ranking.weights[first:last])
        for number in range(sets):
            rng = np.random.default_rng([number, first])
            named = [among.weights[place].target for place in rng.choice(last - first, planted, replace=False)]
            others = planted_set(loaded, ranking, 0, 8000 + first + number)[planted:]
            name = f"{planted} of places {first + 1:,} to {last:,}, the others random"
            yield name, _given(loaded, (*named, *others))
    scoring = tokenize(loaded.tokenizer, load_texts(None)[0::2], TOKENS)
    matrices = loaded.with_parameters(matrices_in_blocks(loaded.anatomy))
    for view in (loaded, matrices):
        statistics = resident(view, scoring, Needs.GRADIENT)
        for metric in ("grad_x_weight", "magnitude"):
            found = rank(view, statistics, metric, SIZE)
            for k in (1, SIZE) if view is loaded else (3, 30, SIZE):
                yield f"the first by {metric}", _given(loaded, tuple(weight.target for weight in found.top(k)))
        del statistics


def _given(loaded: LoadedModel, targets: tuple[str, ...]) -> Ranking:
    return given_ranking(loaded, RunSpec(model=MODEL, weights=targets, metrics=()))[0]


def errors() -> Iterator[str]:
    """Both rules on random sets in groups of 20: each set in turn is the critical one, the 19 others are its draws."""
    yield from error_tables(*random_sets(RANDOM_SETS, SEED, tokens=16))


def new() -> Iterator[str]:
    """The same on sets that the rule was not chosen on."""
    yield error_table(*random_sets(NEW_SETS, NEW_SEED, TOKENS, TEXTS))


def random_sets(
    count: int, seed: int, tokens: int, texts: int | None = None
) -> tuple[Reference, list[MeasuredComparison]]:
    """So many random sets, drawn by this seed, on all texts or the first so many, of at most so many tokens."""
    loaded = load_model(MODEL)
    spec = RunSpec(model=MODEL, topk=(SIZE,), seq_len=tokens)
    context = replace(context_of(loaded, spec, texts), spec=spec.model_copy(update={"controls": ()}))
    return context.reference, [random_set(context, number, seed) for number in range(count)]


def error_tables(reference: Reference, sets: Sequence[MeasuredComparison]) -> Iterator[str]:
    """Of sets that are measured on all texts."""
    yield error_table(reference, sets)
    yield table(LOOKS, looks_of_sets(reference, sets))


def error_table(reference: Reference, sets: Sequence[MeasuredComparison]) -> str:
    return table(
        (
            "sets among 19 others",
            "ahead of all",
            "distinguishable, earlier",
            "now",
            "same verdict",
            "texts of draws, earlier",
            "now",
        ),
        [errors_of(reference, sets)],
    )


def random_set(context: MeasurementContext, number: int, seed: int) -> MeasuredComparison:
    """100 random weights of the matrices in the blocks, on all texts."""
    loaded = context.loaded
    sizes = {name: loaded.anatomy.parameters[name].numel for name in matrices_in_blocks(loaded.anatomy)}
    chosen = np.random.default_rng([number, seed]).choice(sum(sizes.values()), SIZE, replace=False)
    targets = [
        target_name(loaded.anatomy.parameters[name], "weight", int(unit))
        for name, units in by_parameter(np.sort(chosen), sizes).items()
        for unit in units
    ]
    given = _given(loaded, tuple(targets))
    (entry,) = measure_damage(context, [given], [ZERO], [], lambda event: None)
    print(number, file=sys.stderr, flush=True)
    return entry


def errors_of(reference: Reference, sets: Sequence[MeasuredComparison]) -> tuple[object, ...]:
    """What both rules say of sets that are measured on all texts, each among the 19 others of its group."""
    texts, sample = len(reference.intact.tokens), len(reference.sample)
    first, measured, same, told = 0, 0, 0, {"earlier": 0, "now": 0}
    for entry, draws in in_turn(sets):
        assert entry.critical
        standing = compete(reference, CONTROL, entry.critical.measured, len(draws), partial(_known, draws))
        now = [_on_first(reference, one, count) for one, count in zip(draws, standing.texts[1:], strict=True)]
        judged = {
            "earlier": outcome(replace(reference, rule=SAMPLE), by_sample_of(reference, entry, draws)),
            "now": outcome(reference, replace(entry, draws={CONTROL: now})),
        }
        told = {rule: count + (judged[rule] in ("harmful", "helpful")) for rule, count in told.items()}
        first += standing.ahead == 0
        same += judged["earlier"] == judged["now"]
        measured += sum(standing.texts[1:])
    earlier = (GROUP - 1) * sample + texts - sample
    trials = DIVISIONS * len(sets)
    return trials, first, told["earlier"], told["now"], same, earlier, f"{measured / trials:.0f}"


def _known(draws: Sequence[Damaged], draw: int, texts: int) -> Measured:
    return draws[draw].measured


def in_turn(sets: Sequence[MeasuredComparison]) -> Iterator[tuple[MeasuredComparison, list[Damaged]]]:
    """Each set with the others of its group, in several divisions of all sets into groups."""
    for division in range(DIVISIONS):
        order = np.random.default_rng(division).permutation(len(sets))
        for begin in range(0, len(sets), GROUP):
            group = [sets[place] for place in order[begin : begin + GROUP]]
            for entry in group:
                yield entry, [other.critical for other in group if other is not entry and other.critical]


LOOKS = (
    "the other set changes the loss",
    "pairs",
    "clear on 16 texts",
    "on 33",
    "texts, mean",
    "otherwise on all texts",
)


def looks_of_sets(reference: Reference, sets: Sequence[MeasuredComparison]) -> list[tuple[object, ...]]:
    """Each random set as the draw, every other one, made so many times as large, as the critical set."""
    everything, rows = len(reference.intact.tokens), []
    steps = looks_of(everything)
    for times in (1, 3, 10):
        seen, wrong = [], 0
        for entry, draws in in_turn(sets):
            assert entry.critical
            size = times * entry.critical.size
            for draw in draws:
                interval = partial(interval_at, reference, draw.measured, len(steps))
                seen.append(texts_until_clear(size, steps, interval))
                wrong += (size > reference.size(draw.measured, seen[-1])) != (size > draw.size)
        counts = [seen.count(step) for step in steps[:-1]]
        rows.append((f"{times} times as much as it does", len(seen), *counts, f"{np.mean(seen):.0f}", wrong))
    return rows


def interval_at(reference: Reference, measured: Measured, looks: int, count: int) -> tuple[float, float]:
    return interval_of(reference, measured, count, looks)


def by_sample_of(reference: Reference, entry: MeasuredComparison, draws: Sequence[Damaged]) -> MeasuredComparison:
    """The earlier rule where every draw is measured on all texts already."""
    sample = len(reference.sample)
    worst = int(np.argmax([reference.size(draw.measured, sample) for draw in draws]))
    found = [_on_first(reference, draw, sample) for draw in draws]
    return replace(entry, draws={CONTROL: [*found[:worst], draws[worst], *found[worst + 1 :]]})


def ranking_of(loaded: LoadedModel, k: int) -> Ranking:
    """The largest k by grad_x_weight of the matrices in the blocks, on texts that are not measured."""
    scoring = tokenize(loaded.tokenizer, load_texts(None)[0::2], TOKENS)
    matrices = loaded.with_parameters(matrices_in_blocks(loaded.anatomy))
    return rank(matrices, resident(matrices, scoring, Needs.GRADIENT), "grad_x_weight", k)


def passes() -> Iterator[str]:
    """The damage phase of a run with default options and k = 100 by both rules: passes through the blocks, and time."""
    loaded = load_model(MODEL)
    spec = RunSpec(model=MODEL, topk=(SIZE,), seq_len=12)
    scoring = tokenize(loaded.tokenizer, load_texts(None)[0::2], 12)
    statistics = resident(loaded, scoring, Needs.GRADIENT)
    whole = rank(loaded, statistics, "grad_x_weight", SIZE)
    del statistics
    context, rankings = (
        context_of(loaded, spec),
        [whole, replace(ranking_of(loaded, SIZE), metric="grad_x_weight" + MATRICES)],
    )
    ways: dict[str, Callable[[], Sequence[MeasuredComparison]]] = {
        "earlier": lambda: [measured_by_sample(context, one) for one in comparisons(loaded, rankings, spec)],
        "now": lambda: measure_damage(context, rankings, [ZERO], [], lambda event: None),
    }
    rows: list[tuple[object, ...]] = []
    measured: list[tuple[float, float, int]] = []
    for name, way in ways.items():
        with passed(loaded, context.sequences) as count:
            before = time.process_time()
            found = way()
            seconds = time.process_time() - before
        reference = replace(context.reference, rule=SAMPLE) if name == "earlier" else context.reference
        said = ", ".join(outcome(reference, entry) for entry in found)
        measured.append((count[0], seconds, sum(map(texts_of, found))))
        rows.append((name, f"{count[0]:.2f}", f"{seconds:.1f}", measured[-1][2], said))
    shares = [f"{now / before:.2f}" for before, now in zip(*measured, strict=True)]
    yield table(
        ("rule", "passes over the texts", "processor seconds", "texts of draws", "verdicts"),
        [*rows, ("share", *shares, "")],
    )


@contextmanager
def passed(loaded: LoadedModel, sequences: Sequence[TokenSequence]) -> Iterator[list[float]]:
    """Counts, in its one entry, passes over these sequences through all blocks."""
    count, blocks = [0.0], loaded.model.model.layers
    tokens = sum(len(sequence.ids) for sequence in sequences)

    def before(module: torch.nn.Module, args: tuple[torch.Tensor, ...], named: dict[str, Any]) -> None:
        hidden = args[0] if args else named["hidden_states"]
        count[0] += hidden.shape[0] * hidden.shape[1] / tokens / len(blocks)

    handles = [block.register_forward_pre_hook(before, with_kwargs=True) for block in blocks]
    try:
        yield count
    finally:
        for handle in handles:
            handle.remove()


def measured_by_sample(context: MeasurementContext, comparison: Comparison) -> MeasuredComparison:
    """A comparison as runs of early versions measured it."""

    def damaged(selection: str, weights: Selection, parts: Sequence[TextPart]) -> Damaged:
        measured = measure(context, weights, ZERO, parts)
        point = DamagePoint(
            metric=comparison.metric, k=comparison.k, perturbation="zero", selection=selection, seed=None, weights=0,
            kl=None, top1_agreement=None, collapsed_at=None, **figures(context.reference, measured),
        )  # fmt: skip
        return Damaged(measured, point)

    critical = damaged("critical", comparison.weights, context.parts)
    controls = dict.fromkeys(draw.control for draw in comparison.draws)
    draws = {
        control: [damaged(control, draw.weights, context.sample) for draw in comparison.of(control)]
        for control in controls
    }
    return by_sample(context, MeasuredComparison(comparison, ZERO, critical, draws))


if __name__ == "__main__":
    torch.set_num_threads(1)
    print_parts(agreement, errors, new, passes)
