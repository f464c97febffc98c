"""What comes of comparing runs, as plain frozen rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cwa_engine.base.frames import frame_named
from cwa_engine.records.curves import DamageDifference, DamageLevel
from cwa_engine.records.differences import Difference, Pairing, kind_of
from cwa_engine.records.profiles import ProfileDistance, ProfileShare
from cwa_engine.records.run_report import RunReport
from cwa_engine.rich_display import RichDisplay
from cwa_engine.rows import NOT_PLAIN

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, slots=True)
class ComparedRun:
    """A run that takes part. `label` is what sentences call it: the last part of its id where that is unambiguous."""

    run: str
    label: str
    model: str
    perplexity: float  # of the intact model
    bits_per_byte: float | None


@dataclass(frozen=True, slots=True)
class RunPair:
    """What may be compared of two runs. Reasons are empty where it may."""

    first: str
    second: str
    same_model: bool
    same_scoring: bool  # the same texts were scored: agreement then tells nothing of other texts
    same_source: bool  # the texts are from one file or dataset: some may have been scored by both
    other_weights: str  # why weights are not compared one by one
    other_rankings: str  # why rankings are not compared at all
    other_measuring: tuple[str, ...]  # why losses, in nats per token, are not of one kind
    other_settings: dict[str, tuple[str, ...]]  # perturbation -> why it is another in the other run
    damage: Pairing  # how damage is subtracted, and why only by force

    def unlike(self, perturbation: str) -> tuple[str, ...]:
        """Why damage by a perturbation is not read against each other."""
        return self.other_measuring + self.other_settings.get(kind_of(perturbation), ())


@dataclass(frozen=True, slots=True)
class RankingOverlap:
    """What the top k of two runs by one metric have in common.

    `expected` and `p_value` are of random sets of all `population` units that were ranked; `expected_within` and
    `p_within` of random sets that have as many units of each parameter as the runs' own. p is the probability of sharing at
    least `common`. They are None where `unknown` says why. `spearman` and `kendall` are of the places of shared units,
    `kendall_p` two-sided; None with fewer than two, with ties in places.
    """

    metric: str
    k: int
    first: str
    second: str
    of_first: int  # units in the top k of the first run
    of_second: int
    common: int
    jaccard: float
    rbo: float | None  # None where every group of the scope has a top k of its own
    population: int | None
    expected: float | None
    p_value: float | None
    expected_within: float | None
    p_within: float | None
    unknown: str
    spearman: float | None
    kendall: float | None
    kendall_p: float | None

    @property
    def by_chance(self) -> tuple[float | None, float | None]:
        """(expected, p): within parameters, or among all units where that is not known."""
        return (self.expected, self.p_value) if self.p_within is None else (self.expected_within, self.p_within)


@dataclass(frozen=True, slots=True)
class RankPair:
    """A unit in the top of either of two runs; None where a run does not have it there."""

    target: str
    component: str
    layer: int | None
    first: int | None
    second: int | None


@dataclass(frozen=True)
class Comparison(RichDisplay):
    """Runs beside each other. Rows name runs by their ids, and pairs in the order in which the runs were given."""

    runs: tuple[ComparedRun, ...]
    pairs: tuple[RunPair, ...]
    differences: tuple[Difference, ...]
    overlaps: tuple[RankingOverlap, ...]
    shares: tuple[ProfileShare, ...]
    distances: tuple[ProfileDistance, ...]
    damage: tuple[DamageLevel, ...]
    damage_differences: tuple[DamageDifference, ...]
    forced: bool = False  # damage that was not measured alike is subtracted too
    differing: str = ""  # in what the runs differ, in a line
    sentences: tuple[str, ...] = ()  # what it comes to, at the largest k of each ranking
    # The runs themselves, for figures of what no row has: places of single weights.
    reports: tuple[RunReport, ...] = field(default=(), repr=False, compare=False, metadata=NOT_PLAIN)

    def frame(self, name: str) -> pandas.DataFrame:
        """Rows as a pandas frame, by the name of the attribute that holds them: frame("overlaps").

        Raises InvalidInput for another name and where pandas is not installed.
        """
        return frame_named(name, {key: (kind, getattr(self, key)) for key, kind in _FRAMES.items()}, "a comparison")

    def label(self, run: str) -> str:
        """What sentences call a run."""
        return next(entry.label for entry in self.runs if entry.run == run)


_FRAMES: Mapping[str, type] = {
    "runs": ComparedRun,
    "pairs": RunPair,
    "differences": Difference,
    "overlaps": RankingOverlap,
    "shares": ProfileShare,
    "distances": ProfileDistance,
    "damage": DamageLevel,
    "damage_differences": DamageDifference,
}
