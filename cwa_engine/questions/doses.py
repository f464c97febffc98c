"""`--dose`: how does the damage grow with the size of the change? torch-free."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cwa_engine.questions.question import DamageQuestion

if TYPE_CHECKING:
    from cwa_engine.damage.treatments import Treatment
    from cwa_engine.spec import RunSpec


def with_doses(found: Sequence[Treatment], spec: RunSpec, dtype: str) -> list[Treatment]:
    """After all others, the critical weights times each factor. A dose is compared with other doses, not with controls."""
    from cwa_engine.damage.treatments import Treatment
    from cwa_engine.methods.perturbations import PERTURBATIONS

    options = spec.perturbation_options
    return [
        *found,
        *(
            Treatment(
                f"scale {factor:g}",
                PERTURBATIONS["scale"],
                dataclasses.replace(options, scale_factor=factor),
                has_controls=False,
            )
            for factor in spec.dose
        ),
    ]


QUESTION = DamageQuestion(
    name="doses",
    place=10,
    asks="How does the damage grow with the factor that the critical weights are multiplied by?",
    asked=lambda spec: bool(spec.dose),
    treatments=with_doses,
)
