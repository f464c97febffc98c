"""`--position-test`: is it the value of a critical weight that matters, or its place? torch-free.

The values of the critical weights are written over other weights of the same parameters, drawn at random; the critical weights
stay as they are. Where that does little, large values alone do no harm: the place matters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cwa_engine.questions.question import DamageQuestion

if TYPE_CHECKING:
    from cwa_engine.damage.treatments import Comparison, SideCase
    from cwa_engine.models.loading import LoadedModel
    from cwa_engine.spec import RunSpec


def values_elsewhere(loaded: LoadedModel, comparison: Comparison, spec: RunSpec) -> list[SideCase]:
    """For each seed, the values of the critical weights at other places of their parameters."""
    import numpy as np
    import torch

    from cwa_engine.damage.treatments import SideCase, Treatment
    from cwa_engine.methods.controls import CONTROLS, Population
    from cwa_engine.methods.perturbations import overwrite_with

    values = {
        name: loaded.model.get_parameter(name).detach().reshape(-1)[torch.from_numpy(indices)].clone()
        for name, indices in comparison.weights.items()
    }
    treatment = Treatment("place", overwrite_with(values), spec.perturbation_options, has_controls=False)
    single = Population(loaded.anatomy.parameters, magnitudes=lambda name: np.empty(0, dtype=np.float32))
    draw = CONTROLS["random_matched"].draw
    return [
        SideCase(
            treatment, "elsewhere", seed, draw(comparison.weights, single, np.random.default_rng([seed, comparison.k]))
        )
        for seed in range(spec.seed, spec.seed + spec.control_seeds)
    ]


QUESTION = DamageQuestion(
    name="position_test",
    place=30,
    asks="Do the values of the critical weights do the same damage elsewhere in the same parameters?",
    asked=lambda spec: spec.position_test,
    side_cases=values_elsewhere,
)
