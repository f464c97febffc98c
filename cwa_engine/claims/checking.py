"""Whether a claim can be measured as it stands. torch-free."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from cwa_engine.base.errors import InvalidInput
from cwa_engine.claims.claim import BASELINE, OF_BASELINE, Claim, needed_steps
from cwa_engine.claims.measures import check_expectation
from cwa_engine.spec import RunSpec


def check_claim(claim: Claim) -> None:
    """Raise InvalidInput for a claim that cannot be measured as it stands."""

    def wrong(said: str, hint: str) -> InvalidInput:
        return InvalidInput(f"claim {claim.id}: {said}", hint=hint)

    earlier: list[str] = [BASELINE]
    for step in claim.step:
        if step.name in earlier:
            raise wrong(f"two steps are called {step.name}", f"each needs a name of its own, other than {BASELINE}")
        if step.weights_of and step.weights_of.step not in earlier[1:]:
            raise wrong(
                f"step {step.name} takes weights of step {step.weights_of.step}, which does not stand before it",
                f"steps before it: {', '.join(earlier[1:]) or 'none'}",
            )
        if own := [name for name in step.run if name in OF_BASELINE]:
            raise wrong(
                f"step {step.name} has its own {own[0]}, so the baseline would be that of other runs",
                "move it into [claim.run], or make two claims",
            )
        earlier.append(step.name)
    if claim.cannot:
        return
    if not claim.expect:
        raise wrong("nothing is expected of it", "add [[claim.expect]], or say with `cannot` why it is not measured")
    for entry in claim.expect:
        for name in (entry.step, entry.other_step):
            if name and name not in earlier:
                raise wrong(f"there is no step {name}", f"its steps: {', '.join(earlier)}")
        try:
            check_expectation(entry)
        except InvalidInput as error:
            raise wrong(error.message, error.hint) from error
        if entry.gate and entry.step != BASELINE:
            raise wrong(f"the gate `{entry.what}` is of step {entry.step}", f"a gate is of the step {BASELINE}")
    effects = [entry for entry in claim.expect if entry.step != BASELINE]
    if effects and not claim.gates and not claim.no_gate:
        raise wrong(
            "an effect is measured, and no baseline before it",
            "mark the expected perplexity with `gate = true`, or say in `no_gate` why there is none",
        )
    if claim.joined and not (claim.run.get("dataset") and claim.run.get("packed")):
        raise wrong(
            "`joined` is for the rows of a dataset, in windows", "give `dataset` and `packed = true` in [claim.run]"
        )
    if any(run.get("fast_perturbation") for run in (claim.run, *(step.run for step in claim.step))):
        raise wrong("fast_perturbation measures damage on other texts than the baseline", "leave it out")
    used = {step.name for step in needed_steps(claim, claim.expect)}
    if idle := [step.name for step in claim.step if step.name not in used]:
        raise wrong(f"nothing is expected of step {idle[0]}", "expect something of it, or leave it out")
    _check_spec(claim, "the baseline", claim.baseline_spec)
    for step in claim.step:
        weights = ["model.weight[0]"] if step.weights_of else []
        _check_spec(claim, f"step {step.name}", partial(claim.spec_of, step, weights))


def _check_spec(claim: Claim, what: str, spec: Callable[[], RunSpec]) -> None:
    """Raise InvalidInput, which names the claim and the run, for options that make no run."""
    try:
        spec()
    except InvalidInput as error:
        raise InvalidInput(f"claim {claim.id}, {what}: {error.message}", hint=error.hint) from error
