"""What summary.json says of a run, typed. torch-free."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cwa_engine.base.plain import JsonMap, from_plain
from cwa_engine.questions.ablation import AblationCost
from cwa_engine.questions.critical_set import CriticalSet
from cwa_engine.questions.fidelity import Fidelity
from cwa_engine.questions.interactions import Interaction
from cwa_engine.questions.spike_removal import SpikeRemoval
from cwa_engine.questions.stability import StabilityMean
from cwa_engine.questions.tasks import TaskComparison, TaskRecord
from cwa_engine.records.export import ModelRecord
from cwa_engine.rows import (
    Baseline,
    DamagePoint,
    HalfOverlap,
    NumericalFloor,
    Separation,
    Spike,
    TextUse,
    TopWeight,
    Verdict,
)

_KEY = ("metric", "k", "perturbation")  # what a group of damage has in common


@dataclass(frozen=True, slots=True)
class RankingSummary:
    """The head of a ranking, at most `rows.SHOWN` places of it."""

    metric: str
    structure: str
    top: tuple[TopWeight, ...]


@dataclass(frozen=True, slots=True)
class DamageSummary:
    """One critical set under one perturbation, beside its controls. The position test has draws `elsewhere` alone."""

    metric: str
    k: int
    perturbation: str
    critical: DamagePoint | None
    controls: tuple[Separation, ...] = ()
    elsewhere: tuple[DamagePoint, ...] = ()
    outcome: str | None = None  # as in `Verdict`
    verdict: str | None = None  # its sentence

    @property
    def worst_control(self) -> Separation | None:
        """The control whose leading draw changes the loss most, one that collapsed before all others; None without controls."""
        return max(
            self.controls,
            key=lambda control: math.inf if control.largest is None else abs(control.largest),
            default=None,
        )

    @property
    def judged(self) -> Verdict | None:
        if self.outcome is None or self.verdict is None:
            return None
        return Verdict(self.metric, self.k, self.perturbation, self.outcome, self.verdict)


@dataclass(frozen=True, slots=True)
class RunSummary:
    """A finished run in short. Fields are the keys of summary.json; a float that is not finite is NaN here."""

    run_id: str
    model: ModelRecord
    texts: TextUse
    baseline: Baseline
    rankings: tuple[RankingSummary, ...]
    damage: tuple[DamageSummary, ...]
    started: float = 0.0  # seconds since the epoch
    eligible: int = 0  # weights that --include and --exclude leave
    numerical_floor: NumericalFloor | None = None
    halves: tuple[HalfOverlap, ...] = ()
    interactions: tuple[Interaction, ...] = ()
    stability: tuple[StabilityMean, ...] = ()
    fidelity: tuple[Fidelity, ...] = ()
    ablation: AblationCost | None = None
    critical_set: CriticalSet | None = None
    spikes: tuple[Spike, ...] = ()
    spike_removal: SpikeRemoval | None = None
    tasks: tuple[TaskRecord, ...] = ()
    task_comparisons: tuple[TaskComparison, ...] = ()
    gradients: str = "resident"
    scores_from: dict[str, str] = field(default_factory=dict)  # metric -> run that scored it
    batch_size: int = 1
    timings: dict[str, float] = field(default_factory=dict)  # stage -> seconds
    peak_memory_bytes: int = 0

    @property
    def headline(self) -> DamageSummary | None:
        """What a run is known by: of its first metric the largest critical set that was compared with controls.

        Where none was compared, the largest; None for a run without damage.
        """
        first = next((group.metric for group in self.damage if group.critical), None)
        return None if first is None else self.headline_of(first)

    def headline_of(self, metric: str) -> DamageSummary | None:
        """The same of another metric; None where nothing that it ranked was damaged."""
        sets = [group for group in self.damage if group.critical and group.metric == metric]
        return max([group for group in sets if group.controls] or sets, key=lambda group: group.k, default=None)

    @property
    def separations(self) -> tuple[Separation, ...]:
        """Every critical set beside each of its controls."""
        return tuple(row for group in self.damage for row in group.controls)

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """Whether each critical set is distinguishable from its controls."""
        return tuple(verdict for group in self.damage if (verdict := group.judged))


def summary_from_plain(plain: Mapping[str, Any]) -> RunSummary:
    """The content of a summary.json. Raises ValueError, which names the key, for one that is none.

    summary = summary_from_plain(json.loads(path.read_text()))
    """
    try:
        groups = [_with_key(group) for group in plain["damage"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"damage: {error}") from error
    return from_plain(RunSummary, {**plain, "damage": groups})


def _with_key(group: Mapping[str, Any]) -> JsonMap:
    """The group with its metric, k and perturbation in every control, where summary.json leaves them out."""
    key = {name: group[name] for name in _KEY}
    return {**group, "controls": [{**key, **control} for control in group["controls"]]}
