"""Scoring: from texts to statistics, by the source of gradients that memory allows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

from cwa_engine.base.events import PREVIEW_ROWS, Progress, TopK
from cwa_engine.data.tokens import TokenSequence
from cwa_engine.methods.metrics import METRICS, Needs, PartShares, joined, needs_of
from cwa_engine.run import RunContext
from cwa_engine.sensitivity.gradients import SoFar, Statistics, resident
from cwa_engine.sensitivity.hessian import hutchinson_diagonal
from cwa_engine.sensitivity.ranking import rank
from cwa_engine.sensitivity.sweep import sweep

_UNKNOWN_SO_FAR = Needs.HESSIAN | Needs.INPUT_GRAM  # what a partial ranking cannot be made from


class StatisticsConsumer(Protocol):
    """What ranks weights by statistics, as they come."""

    def offer(self, statistics: Statistics, part: int | None = None) -> None:
        """Take the statistics of all weights, or of one block after the other: by one part of the texts, or by all.

        Those by parts are gone when those by all are offered.
        """


T = TypeVar("T", bound=StatisticsConsumer)
Report = Callable[[int, int, str], None]  # hears done, total, unit


def score(
    run: RunContext,
    parts: Sequence[Sequence[TokenSequence]],
    make: Callable[[], T],
    stage: str = "score",
    previews: bool = False,
) -> T:
    """Offer what the metrics need, over the scoring texts, to the consumer that `make` gives; returns it.

    The texts come in one part or in two, whose statistics are offered by themselves too. With `previews`, partial rankings
    are shown while those of the first part grow. Where a gradient overflows in float16, scoring starts again with another
    consumer.
    """
    shares = PartShares.of(parts)

    def work() -> T:
        consumer, progress = make(), _Progress(run, stage, len(parts))
        streams = [_statistics(run, part, progress.of(n), previews and n == 0) for n, part in enumerate(parts)]
        while by_part := _next_of_each(streams):
            together = by_part[0]
            if len(by_part) > 1:
                for number, of_part in enumerate(by_part):
                    consumer.offer(of_part, number)
                    del of_part
                together = joined(by_part, shares)
            del by_part
            consumer.offer(together)
            del together  # what follows needs the room
        return consumer

    return run.loss_scale.run(work)


def _next_of_each(streams: Sequence[Iterator[Statistics]]) -> list[Statistics]:
    """What each part gives next; nothing at their end, which they reach together.

    Not by zip, which keeps what it gave last, here the statistics of a block, while the next is made.
    """
    found = [part for stream in streams if (part := next(stream, None)) is not None]
    assert len(found) in (0, len(streams))
    return found


class _Progress:
    """Of the passes over all parts as one."""

    def __init__(self, run: RunContext, stage: str, parts: int) -> None:
        self._emit, self._stage = run.emit, stage
        self._done, self._total = [0] * parts, [0] * parts

    def of(self, number: int) -> Report:
        def report(done: int, total: int, unit: str) -> None:
            self._done[number], self._total[number] = done, total
            known = [size or max(self._total) for size in self._total]  # of one that has not begun: about as much
            self._emit(Progress(self._stage, sum(self._done), sum(known), unit))

        return report


def _statistics(
    run: RunContext, sequences: Sequence[TokenSequence], report: Report, previews: bool
) -> Iterator[Statistics]:
    """Of all weights at once, or of one block after the other."""
    needs = needs_of(run.spec.scored_metrics)
    if run.gradients == "resident":
        yield _all_at_once(run, sequences, needs, report, previews)
        return
    seed, scale = run.spec.seed, run.loss_scale.of(sequences)

    def begin(size: int) -> tuple[list[Statistics], Iterator[Statistics]]:
        def of_blocks(done: int, total: int) -> None:
            report(done, total, "block")

        parts = sweep(run.loaded, sequences, needs, size, of_blocks, seed, scale)
        return [next(parts)], parts

    first, others = run.batch_size.run(begin)
    yield first.pop()  # not kept here, while the next block of another part of the texts is made
    yield from others


def _all_at_once(
    run: RunContext, sequences: Sequence[TokenSequence], needs: Needs, report: Report, previews: bool
) -> Statistics:
    """The statistics of all weights; a partial ranking is shown after 1, 4, 16 ... batches."""
    batches_done, next_preview = 0, 1
    seed, scale = run.spec.seed, run.loss_scale.of(sequences)

    def after_batch(done: int, so_far: SoFar) -> None:
        nonlocal batches_done, next_preview
        batches_done += 1
        report(done, len(sequences), "sequence")
        if previews and batches_done == next_preview and done < len(sequences):
            next_preview *= 4  # a preview costs about 0.1 s on 135M weights: few of them, while all is young
            statistics = so_far()
            rows = min(run.spec.largest_k, PREVIEW_ROWS)
            for name in run.spec.scored_metrics:
                if METRICS[name].needs & _UNKNOWN_SO_FAR:
                    continue
                ranking = rank(run.loaded, statistics, name, rows, structure=run.spec.structure, scope=run.spec.scope)
                run.emit(TopK(name, True, ranking.weights[:PREVIEW_ROWS]))

    if needs is not Needs.NOTHING:
        report(0, len(sequences), "sequence")
    statistics = run.batch_size.run(lambda size: resident(run.loaded, sequences, needs, size, after_batch, seed, scale))
    if Needs.HESSIAN in needs:

        def of_texts(done: int) -> None:
            report(done, len(sequences), "sequence")

        found = hutchinson_diagonal(run.loaded, sequences, run.spec.probes, seed, scale, of_texts)
        statistics = {
            name: dataclasses.replace(stats, hessian=found.estimate[name], hessian_error=found.error.get(name))
            for name, stats in statistics.items()
        }
    return statistics
