"""The card of a weight: its place, what its loss does, and what it carries."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cwa_engine.base.errors import InvalidInput
from cwa_engine.base.events import Emit
from cwa_engine.spec import RunSpec

if TYPE_CHECKING:
    from cwa_engine.models.loading import LoadedModel
    from cwa_engine.weight_rows import WeightCard


def weight_card(loaded: LoadedModel, spec: RunSpec, emit: Emit) -> WeightCard:
    """Examine the one weight that `spec.weights` names. The model is bit for bit the same afterwards."""
    raise InvalidInput("weights cannot be examined yet")
