"""Scoring: from texts to statistics, by the source of gradients that memory allows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

from cwa_engine.data.tokens import TokenSequence
from cwa_engine.events import PREVIEW_ROWS, Progress, TopK
from cwa_engine.run import Run
from cwa_engine.sensitivity.gradients import SoFar, Statistics, resident
from cwa_engine.sensitivity.hessian import hutchinson_diagonal
from cwa_engine.sensitivity.metrics import METRICS, Needs, needs_of
from cwa_engine.sensitivity.ranking import rank
from cwa_engine.sensitivity.sweep import sweep

_UNKNOWN_SO_FAR = Needs.HESSIAN | Needs.INPUT_GRAM  # what a partial ranking cannot be made from


Report = Callable[[str, int, int, str], None]  # hears stage, done, total, unit


def score(
    run: Run, sequences: Sequence[TokenSequence], stage: str = "score", report: Report | None = None, previews: bool = False
) -> Iterator[Statistics]:
    """What the metrics need, over the scoring texts: of all weights at once, or of one block after the other.

    With `previews`, partial rankings are shown while the statistics of all weights grow.
    """
    needs = needs_of(run.spec.scored_metrics)
    tell = report or (lambda *progress: run.emit(Progress(*progress)))
    if run.gradients == "resident":
        yield score_at_once(run, sequences, needs, stage, tell, previews)
        return

    def begin(size: int) -> tuple[Statistics, Iterator[Statistics]]:
        parts = sweep(run.loaded, sequences, needs, size, lambda d, n: tell(stage, d, n, "block"))
        return next(parts), parts

    first, others = run.batch_size.run(begin)
    yield first
    del first
    yield from others


def score_at_once(
    run: Run, sequences: Sequence[TokenSequence], needs: Needs, stage: str, tell: Report, previews: bool
) -> Statistics:
    """The statistics of all weights; a partial ranking is shown after 1, 4, 16 ... batches."""
    batches_done, next_preview = 0, 1

    def after_batch(done: int, so_far: SoFar) -> None:
        nonlocal batches_done, next_preview
        batches_done += 1
        tell(stage, done, len(sequences), "sequence")
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
        tell(stage, 0, len(sequences), "sequence")
    statistics = run.batch_size.run(lambda size: resident(run.loaded, sequences, needs, size, after_batch))
    if Needs.HESSIAN in needs:

        def report(done: int) -> None:
            tell(stage, done, len(sequences), "sequence")

        diagonal = hutchinson_diagonal(run.loaded, sequences, run.spec.probes, run.spec.seed, report)
        statistics = {name: dataclasses.replace(s, hessian=diagonal[name]) for name, s in statistics.items()}
    return statistics
