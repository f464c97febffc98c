"""A claim: who says what of which model, the runs that measure it, and the numbers that are expected. torch-free."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat, NonNegativeFloat

from cwa_engine.rows import GIVEN
from cwa_engine.spec import RunSpec, TextOptions, parse_spec
from cwa_engine.targets import parse_target

BASELINE = "baseline"  # the step that measures the intact model alone; it is there without being written down

# Of a claim's `run`, what the intact model's loss depends on: the baseline is measured with these fields alone.
OF_BASELINE = ("model", "revision", "dtype", "device", "batch_size", "offload", *TextOptions.model_fields)
_BASELINE_ALONE = {"metrics": ("magnitude",), "topk": (1,), "perturbations": (), "controls": (), "matrices": False}


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def _as_tables_have_it(target: str) -> str:
    """`NAME[17, 3]` is NAME[17,3] in the tables of a run, and would be missed there."""
    return re.sub(r"\s", "", parse_target(target).text)


Target = Annotated[str, AfterValidator(_as_tables_have_it)]


class Expectation(_Part):
    """One number, and how far what is measured may lie from it.

    `what` is a name of `MEASURES`, `step` that of a step, `baseline` if left out. Without `value`, `at_least` and `at_most` no
    figure was published: what is measured is shown, and not judged. `metric`, `k` ... say which row of the run is meant.
    """

    what: str
    step: str = BASELINE
    value: FiniteFloat | str | None = None
    within: NonNegativeFloat | None = Field(default=None, allow_inf_nan=False)  # in units of the value
    within_share: NonNegativeFloat | None = Field(default=None, allow_inf_nan=False)  # of the value's size
    at_least: FiniteFloat | None = None
    at_most: FiniteFloat | None = None
    tolerance_from: str = ""  # why the tolerance is what it is
    gate: bool = False  # whether nothing else is measured where this does not agree
    note: str = ""
    metric: str = GIVEN
    k: int | None = Field(default=None, ge=1)
    perturbation: str = "zero"
    selection: str = "critical"
    target: Target | None = None
    targets: tuple[Target, ...] = ()
    other_step: str | None = None
    other_metric: str | None = None

    @property
    def is_judged(self) -> bool:
        """Whether there is a figure to agree with."""
        return any(bound is not None for bound in (self.value, self.at_least, self.at_most))

    @property
    def band(self) -> tuple[float, float]:
        """The smallest and the largest measured value that agrees."""
        low = -float("inf") if self.at_least is None else self.at_least
        high = float("inf") if self.at_most is None else self.at_most
        if isinstance(self.value, float):
            reach = (self.within or 0.0) + (self.within_share or 0.0) * abs(self.value)
            return max(low, self.value - reach), min(high, self.value + reach)
        return low, high


class WeightsOf(_Part):
    """The first `k` weights that an earlier step ranks by `metric`, leaving out those `without`."""

    step: str
    metric: str
    k: int = Field(ge=1)
    without: tuple[Target, ...] = ()


class Step(_Part):
    """One run. `run` are fields of `RunSpec` beside those of the claim's `run`."""

    name: str = Field(min_length=1)
    run: dict[str, Any] = Field(default_factory=dict)
    weights_of: WeightsOf | None = None


class Claim(_Part):
    """What is claimed, by whom, and how it is measured here."""

    id: str = Field(pattern=r"^[a-z0-9][a-z0-9.\-]*$", max_length=60)
    title: str = Field(min_length=1)
    source: str = Field(min_length=1)  # the paper, or who else says it
    where: str = ""  # table, figure or section
    link: str = ""
    found_in: str = ""  # where the figures were read, if it was not in the source itself
    model: str = Field(min_length=1)
    revision: str | None = None  # a commit of the Hub, where the source names one
    protocol: str = ""  # what the source did, in words
    differs: str = ""  # in what our protocol differs from that
    no_gate: str = ""  # why no baseline is compared before the effect is measured
    cannot: str = ""  # why cwtool cannot measure this, wherever it runs
    joined: bool = False  # whether the rows of the dataset are one text, as perplexities of WikiText are published
    run: dict[str, Any] = Field(default_factory=dict)
    step: tuple[Step, ...] = ()
    expect: tuple[Expectation, ...] = ()

    @property
    def gates(self) -> tuple[Expectation, ...]:
        return tuple(entry for entry in self.expect if entry.gate)

    @property
    def pinned(self) -> str:
        """The revision in words."""
        return self.revision or "not pinned"

    def baseline_spec(self) -> RunSpec:
        """The run that measures the intact model and nothing else. Raises InvalidInput."""
        fields = {name: value for name, value in self.run.items() if name in OF_BASELINE}
        return parse_spec({**fields, **self._model(), **_BASELINE_ALONE})

    def spec_of(self, step: Step, weights: Sequence[str] = ()) -> RunSpec:
        """The run of a step; `weights` are those of `weights_of`. Raises InvalidInput."""
        given = {"weights": tuple(weights)} if weights else {}
        return parse_spec({**self.run, **step.run, **given, **self._model()})

    def _model(self) -> Mapping[str, Any]:
        return {"model": self.model, "revision": self.revision}


def needed_steps(claim: Claim, expectations: Sequence[Expectation]) -> Iterator[Step]:
    """The steps that these expectations look at, and those that their weights come from, in the claim's order."""
    wanted = {name for entry in expectations for name in (entry.step, entry.other_step) if name}
    for step in reversed(claim.step):
        if step.name in wanted and step.weights_of:
            wanted.add(step.weights_of.step)
    return (step for step in claim.step if step.name in wanted)
