"""`--iterate`: zero the weight behind the model's largest spike, record again, and repeat until the spike is gone.

The largest spike is the largest output of a down projection, over what its module usually writes; the weight that makes the
largest share of it is zeroed beside those of the steps before. A spike is at least 100 times the usual size. It is gone
when nothing in the model is a spike, or is a tenth of the first. Source: Yu et al. 2024, section 3.1, who repeat until the
large activations are greatly suppressed. torch-free until it is measured.

The spikes behind the weights of the metric super_weight, which it records in any case, are told here too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cwa_engine.base.events import Emit, Note, Progress
from cwa_engine.base.plain import JsonMap
from cwa_engine.base.table import Table
from cwa_engine.questions.question import Findings, Moment, StageQuestion, TableRows
from cwa_engine.rows import SHOWN, Spike, TopWeight, to_plain

if TYPE_CHECKING:
    from cwa_engine.data.tokens import TokenSequence
    from cwa_engine.models.loading import LoadedModel
    from cwa_engine.result import RunResult
    from cwa_engine.run import RunContext
    from cwa_engine.sensitivity.spike_recording import SpikeRecording

# Times the usual size. 23 of the down projections of SmolLM2-135M reach 12 to 83, seven 219 to 18,320; Gemma 3 270M: 20 to 132.
SPIKE = 100.0
GONE = 0.1  # of the first spike


@dataclass(frozen=True, slots=True)
class SpikeRemovalStep:
    """A weight behind the largest spike of a model in which those of the steps before were zero, and what its zero does.

    Columns of the same name are as in `Spike`. Sizes are times what the module usually writes.
    """

    step: int
    target: str
    share: float
    output: float
    output_after: float  # the largest of the same out_feature
    times_typical: float
    largest_after: float  # of all down projections
    delta_nll: float  # nats per token on the scoring texts, with the weights of all steps so far zeroed
    token: str | None
    token_id: int | None
    position: int | None
    text: int | None


@dataclass(frozen=True, slots=True)
class SpikeRemoval:
    """The answer: the weights that were zeroed until no down projection had a large output; sizes as in `SpikeRemovalStep`."""

    first: float  # the largest output of the intact model
    last: float  # and with all these weights zeroed
    least: float  # below which the spike is gone
    gone: bool
    steps: tuple[SpikeRemovalStep, ...]


def remove_spikes_of_run(run: RunContext, findings: Findings) -> SpikeRemoval:
    """On the scoring texts."""
    assert run.spec.iterate
    return remove_spikes(run.loaded, findings.scoring, run.spec.iterate, run.emit)


def remove_spikes(loaded: LoadedModel, sequences: Sequence[TokenSequence], most: int, emit: Emit) -> SpikeRemoval:
    """Zero at most so many weights, one after the other; all are put back before this returns or raises."""
    from cwa_engine.damage.cases import zeroed_together
    from cwa_engine.sensitivity.spike_recording import record_spikes

    zeroed: list[TopWeight] = []
    steps: list[SpikeRemovalStep] = []
    passes = 0

    def record() -> SpikeRecording:
        nonlocal passes
        passes += 1

        def tick(done: int) -> None:
            before, total = (passes - 1) * len(sequences), (most + 1) * len(sequences)
            emit(Progress(QUESTION.stage, before + done, total, "sequence"))

        with zeroed_together(loaded, zeroed):
            return record_spikes(loaded, sequences, len(zeroed) + 1, tick)

    first = now = record()
    least = max(SPIKE, GONE * first.largest)
    while len(steps) < most and now.maker and least <= now.largest < math.inf:
        before = now
        zeroed.append(now.maker)
        now = record()
        steps.append(_step(loaded, zeroed[-1], before, now, first))
        emit(Note(f"{steps[-1].target} makes {steps[-1].share:.0%} of the largest spike"))
    return SpikeRemoval(first.largest, now.largest, least, now.largest < least, tuple(steps))


def _step(
    loaded: LoadedModel, weight: TopWeight, before: SpikeRecording, after: SpikeRecording, first: SpikeRecording
) -> SpikeRemovalStep:
    from cwa_engine.sensitivity.spikes import spike_of

    spike = spike_of(loaded, before.spikes[weight.parameter], weight)
    assert weight.out_feature is not None
    left = after.spikes[weight.parameter].matrices[weight.expert or 0].output[weight.out_feature]
    return SpikeRemovalStep(
        step=weight.rank,
        target=weight.target,
        share=spike.share,
        output=spike.output,
        output_after=float(left),
        times_typical=spike.times_typical,
        largest_after=after.largest,
        delta_nll=after.nll - first.nll,
        token=spike.token,
        token_id=spike.token_id,
        position=spike.position,
        text=spike.text,
    )


def removal_sentence(removal: Mapping[str, Any]) -> str:
    """What zeroing the weights behind the spikes came to, by the fields of `SpikeRemoval`."""
    steps, size = len(removal["steps"]), "times what its module usually writes"
    first, last = ("beyond a float" if s is None else f"{s:,.0f}" for s in (removal["first"], removal["last"]))
    if not steps and removal["gone"]:
        return f"no spike: the largest output of a down projection is {first} {size}, less than {removal['least']:,.0f}"
    outcome = "gone" if removal["gone"] else "not gone"
    weights = f"{steps} weight{'s' * (steps != 1)}"
    return (
        f"the spike is {outcome} with {weights} zeroed: the largest output of a down projection was {first} {size} and is "
        f"{last}; below {removal['least']:,.0f} it is gone"
    )


def spikes_of(result: RunResult) -> list[Spike]:
    """Those of every ranking that has them: there is one metric of spikes."""
    return [spike for ranking in result.rankings for spike in ranking.spikes]


SPIKES = Table("spikes.csv", Spike)


TABLE = Table("spike_removal.csv", SpikeRemovalStep)


def _tables(result: RunResult) -> Iterator[TableRows[Any]]:
    if spikes := spikes_of(result):
        yield TableRows(SPIKES, spikes)
    if removal := result.get(SpikeRemoval):
        yield TableRows(TABLE, removal.steps)


def _summary(result: RunResult) -> JsonMap:
    removal = result.get(SpikeRemoval)
    return {
        "spikes": to_plain(spikes_of(result)[:SHOWN]),
        "spike_removal": to_plain(removal) if removal else None,
    }


QUESTION = StageQuestion(
    name="spike_removal",
    place=600,
    asks="How many weights must be zeroed until no down projection has a large output?",
    asked=lambda spec: bool(spec.iterate),
    stage="iterate",
    moment=Moment.RANKED,
    answer=remove_spikes_of_run,
    tables=_tables,
    summary=_summary,
    sentence=lambda removal: removal_sentence(to_plain(removal)),
)
