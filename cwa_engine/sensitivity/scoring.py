"""Scoring: from texts to statistics, by the source of gradients that memory allows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

from cwa_engine.data.tokens import TokenSequence
from cwa_engine.events import PREVIEW_ROWS, Progress, TopK
from cwa_engine.run import Run
from cwa_engine.sensitivity.gradients import SoFar, Statistics, resident
from cwa_engine.sensitivity.hessian import hutchinson_diagonal
from cwa_engine.sensitivity.metrics import METRICS, Needs, needs_of
from cwa_engine.sensitivity.ranking import rank
from cwa_engine.sensitivity.sweep import sweep

_UNKNOWN_SO_FAR = Needs.HESSIAN | Needs.INPUT_GRAM  # what a partial ranking cannot be made from


class TakesStatistics(Protocol):
    def offer(self, statistics: Statistics) -> None:
        """Take the statistics of all weights, or of one block after the other."""


T = TypeVar("T", bound=TakesStatistics)


def score(run: Run, sequences: Sequence[TokenSequence], begin: Callable[[], T], stage: str = "score") -> T:
    """Offer what the metrics need, over the scoring texts, to what `begin` makes; returns that.

    Where a gradient overflows in float16, another one is begun, and nothing of what the first has seen goes on.
    """

    def work() -> T:
        taker = begin()
        for statistics in _statistics(run, sequences, stage):
            taker.offer(statistics)
            del statistics  # what follows needs the room
        return taker

    return run.loss_scale.run(work)


def _statistics(run: Run, sequences: Sequence[TokenSequence], stage: str) -> Iterator[Statistics]:
    """Of all weights at once, or of one block after the other."""
    needs = needs_of(run.spec.scored_metrics)
    if run.gradients == "resident":
        yield _all_at_once(run, sequences, needs, stage)
        return
    seed, scale = run.spec.seed, run.loss_scale.of(sequences)

    def begin(size: int) -> tuple[Statistics, Iterator[Statistics]]:
        def report(done: int, total: int) -> None:
            run.emit(Progress(stage, done, total, "block"))

        parts = sweep(run.loaded, sequences, needs, size, report, seed, scale)
        return next(parts), parts

    first, others = run.batch_size.run(begin)
    yield first
    del first
    yield from others


def _all_at_once(run: Run, sequences: Sequence[TokenSequence], needs: Needs, stage: str) -> Statistics:
    """The statistics of all weights; a partial ranking is shown after 1, 4, 16 ... batches."""
    batches_done, next_preview = 0, 1
    seed, scale = run.spec.seed, run.loss_scale.of(sequences)

    def after_batch(done: int, so_far: SoFar) -> None:
        nonlocal batches_done, next_preview
        batches_done += 1
        run.emit(Progress(stage, done, len(sequences), "sequence"))
        if stage == "score" and batches_done == next_preview and done < len(sequences):
            next_preview *= 4  # a preview costs about 0.1 s on 135M weights: few of them, while all is young
            statistics = so_far()
            rows = min(run.spec.largest_k, PREVIEW_ROWS)
            for name in run.spec.scored_metrics:
                if METRICS[name].needs & _UNKNOWN_SO_FAR:
                    continue
                ranking = rank(run.loaded, statistics, name, rows, structure=run.spec.structure, scope=run.spec.scope)
                run.emit(TopK(name, True, ranking.weights[:PREVIEW_ROWS]))

    if needs is not Needs.NOTHING:
        run.emit(Progress(stage, 0, len(sequences), "sequence"))
    statistics = run.batch_size.run(lambda size: resident(run.loaded, sequences, needs, size, after_batch, seed, scale))
    if Needs.HESSIAN in needs:

        def report(done: int) -> None:
            run.emit(Progress(stage, done, len(sequences), "sequence"))

        found = hutchinson_diagonal(run.loaded, sequences, run.spec.probes, seed, scale, report)
        statistics = {
            name: dataclasses.replace(stats, hessian=found.estimate[name], hessian_error=found.error.get(name))
            for name, stats in statistics.items()
        }
    return statistics
