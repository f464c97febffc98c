"""`--bit all`: which stored bit of the critical weights does most when it flips? torch-free."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cwa_engine.questions.question import DamageQuestion

if TYPE_CHECKING:
    from cwa_engine.damage.treatments import Treatment
    from cwa_engine.spec import RunSpec

BIT_FLIP = "bit_flip"


def with_every_bit(found: Sequence[Treatment], spec: RunSpec, dtype: str) -> list[Treatment]:
    """In place of the flip of a drawn bit, one for each bit of the dtype; they are compared with one another."""
    from cwa_engine.methods.perturbations import STORED_BITS

    treatments: list[Treatment] = []
    for treatment in found:
        if treatment.label != BIT_FLIP:
            treatments.append(treatment)
            continue
        for bit in range(STORED_BITS[dtype]):
            options = dataclasses.replace(treatment.options, bit=bit)
            treatments.append(
                dataclasses.replace(treatment, label=f"{BIT_FLIP} {bit}", options=options, has_controls=False)
            )
    return treatments


QUESTION = DamageQuestion(
    name="bits",
    place=20,
    asks="Which stored bit of the critical weights does most when it flips?",
    asked=lambda spec: spec.bit == "all" and BIT_FLIP in spec.perturbations,
    treatments=with_every_bit,
)
