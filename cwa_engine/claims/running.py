"""A claim is measured: the baseline first, then its steps, each an ordinary run that is kept. torch-free."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Literal

from cwa_engine.base.errors import (
    Cancelled,
    CwaError,
    DaemonUnreachable,
    DataError,
    ModelGated,
    ModelNotFound,
    OutOfMemory,
    QueueFull,
    Refused,
    VersionMismatch,
)
from cwa_engine.claims.claim import BASELINE, Claim, Expectation, Step, needed_steps
from cwa_engine.claims.judging import AGREES, Judgement, judge, not_measured
from cwa_engine.claims.obstacles import Obstacle
from cwa_engine.claims.texts import with_joined_texts
from cwa_engine.records.run_report import RunReport
from cwa_engine.runner import Runner
from cwa_engine.spec import RunSpec

GATE_REFUSED: Final = "baseline does not agree: not measured"
Outcome = Literal[
    "agrees", "does not agree", "baseline does not agree: not measured", "measured, nothing to agree with",
    "not runnable here", "failed",
]  # fmt: skip
Say = Callable[[str], None]

# Errors that say what a machine lacks, not what is wrong with a claim.
_LACKS = (ModelNotFound, ModelGated, OutOfMemory, DataError)
# Errors after which no other claim can be measured either.
_ENDS_ALL = (Cancelled, DaemonUnreachable, QueueFull, Refused, VersionMismatch)


@dataclass(frozen=True)
class ClaimResult:
    """What became of a claim. `runs` are the run ids of its steps."""

    claim: Claim
    outcome: Outcome
    judgements: tuple[Judgement, ...] = ()
    runs: dict[str, str] = field(default_factory=dict)
    reason: str = ""  # why it did not run, or failed
    exit_code: int = 0  # of a claim that did not run: that of the reason


def refused(claim: Claim, obstacle: Obstacle) -> ClaimResult:
    """A claim that is not asked for, since something is known to be missing."""
    judgements = tuple(not_measured(entry, obstacle.reason) for entry in claim.expect)
    return ClaimResult(claim, "not runnable here", judgements, reason=obstacle.reason, exit_code=obstacle.exit_code)


def run_claim(claim: Claim, runner: Runner, say: Say = lambda text: None) -> ClaimResult:
    """Measure a claim. Where its baseline does not agree, nothing else is measured.

    Raises what ends all claims: a lost daemon, a cancel, a full queue. What a machine lacks is an outcome.
    """
    attempt = _Attempt(claim, runner, say)
    try:
        attempt.prepare()
        return attempt.result()
    except _ENDS_ALL:
        raise
    except _LACKS as error:
        return attempt.ended("not runnable here", error)
    except CwaError as error:
        return attempt.ended("failed", error)


class _Attempt:
    """The runs of one claim, as far as they have come."""

    def __init__(self, claim: Claim, runner: Runner, say: Say) -> None:
        self._claim = claim
        self._runner = runner
        self._say = say
        self._reports: dict[str, RunReport] = {}
        self._runs: dict[str, str] = {}

    def prepare(self) -> None:
        """Write the texts that are joined for this claim."""
        self._claim = with_joined_texts(self._claim)

    def result(self) -> ClaimResult:
        expected = self._claim.expect
        if any(entry.step == BASELINE for entry in expected):
            self._measure(BASELINE, self._claim.baseline_spec())
        gates = [judge(entry, self._reports) for entry in self._claim.gates]
        if any(gate.agreement != AGREES for gate in gates):
            return self._closed(gates)
        for step in needed_steps(self._claim, expected):
            self._measure(step.name, self._spec_of(step))
        found = tuple(judge(entry, self._reports) for entry in expected)
        return ClaimResult(self._claim, _outcome(found), found, self._runs)

    def ended(self, outcome: Outcome, error: CwaError) -> ClaimResult:
        """The claim ended by an error: nothing of it is judged."""
        said = f"{error.message}; {error.hint}" if error.hint else error.message
        judgements = tuple(not_measured(entry, error.message) for entry in self._claim.expect)
        return ClaimResult(self._claim, outcome, judgements, self._runs, said, error.exit_code)

    def _closed(self, gates: list[Judgement]) -> ClaimResult:
        """The gate did not open: what was compared, and that nothing else was."""
        known = {id(gate.expectation): gate for gate in gates}

        def of(entry: Expectation) -> Judgement:
            return known.get(id(entry)) or not_measured(entry, "the baseline does not agree")

        judgements = tuple(of(entry) for entry in self._claim.expect)
        why = "model, texts or protocol are not those of the source: `cwtool reproduce show` names them"
        return ClaimResult(self._claim, GATE_REFUSED, judgements, self._runs, why)

    def _spec_of(self, step: Step) -> RunSpec:
        if not (rule := step.weights_of):
            return self._claim.spec_of(step)
        ranked = (row.target for row in self._reports[rule.step].topk(rule.metric))
        weights = [target for target in ranked if target not in rule.without][: rule.k]
        if len(weights) < rule.k:
            raise DataError(
                f"step {rule.step} ranks {len(weights):,} weights by {rule.metric} beside those left out, {rule.k:,} are "
                "asked for",
                hint=f"raise `topk` of step {rule.step} to {rule.k + len(rule.without):,}",
            )
        return self._claim.spec_of(step, weights)

    def _measure(self, name: str, spec: RunSpec) -> None:
        handle = self._runner.submit(spec)
        self._runs[name] = handle.run_id
        self._say(f"{self._claim.id}: {name}, run {handle.run_id}")
        self._reports[name] = handle.report()


def _outcome(found: tuple[Judgement, ...]) -> Outcome:
    judged = [entry.agreement for entry in found if entry.expectation.is_judged]
    if not judged:
        return "measured, nothing to agree with"
    return "agrees" if all(agreement == AGREES for agreement in judged) else "does not agree"
