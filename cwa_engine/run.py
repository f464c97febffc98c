"""What every stage of a run needs, and how long each took."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from cwa_engine.base.events import Emit, Progress, StageFinished, StageStarted
from cwa_engine.evaluation.batch_size import BatchSize
from cwa_engine.evaluation.loss_scale import LossScale
from cwa_engine.models.loading import LoadedModel
from cwa_engine.spec import RunSpec


class Stages:
    """Times the stages of a run and says when each begins and ends."""

    def __init__(self, emit: Emit) -> None:
        self.emit = emit
        self.timings: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self.emit(StageStarted(name))
        began = time.perf_counter()
        yield
        self.timings[name] = time.perf_counter() - began
        self.emit(StageFinished(name, self.timings[name]))


@dataclass(frozen=True)
class RunContext:
    """What every stage of a run needs."""

    loaded: LoadedModel
    spec: RunSpec
    emit: Emit
    stages: Stages
    batch_size: BatchSize
    gradients: str  # "resident" or "sweep"
    loss_scale: LossScale
    halves: bool = False  # whether the scoring texts are also ranked by halves
    trust_code: bool = False  # whether code that comes with files may be run

    def reporter(self, stage: str, total: int) -> Callable[[int], None]:
        """Tells how many of `total` sequences a stage is done with."""
        return lambda done: self.emit(Progress(stage, done, total, "sequence"))
