"""Which run a free slot takes, so that each model is loaded as rarely as possible and no slot is idle. Knows nothing of Ray.

A slot goes on with a model that it has warm. One without takes the model with most runs left among those that no other slot
has. Where every model that is left is with another slot, it shares the one that has most runs left for each slot there.
Among the runs of a model the one that was asked for first begins first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from cwa_engine.spec import RunSpec


class ModelName(NamedTuple):
    """What is loaded: runs that have this in common share a warm model."""

    model: str
    revision: str | None
    dtype: str
    offload: str

    @classmethod
    def of(cls, spec: RunSpec) -> ModelName:
        return cls(spec.model, spec.revision, spec.dtype, spec.offload)


@dataclass(frozen=True, slots=True)
class Waiting:
    """A run that waits for a slot."""

    run_id: str
    model: ModelName


def next_run(
    waiting: Sequence[Waiting], warm: Sequence[ModelName], elsewhere: Mapping[int, Collection[ModelName]]
) -> Waiting | None:
    """The run that a slot takes, None where none waits.

    `waiting` is in the order of asking, `warm` has the models of the slot, the most recently used last, and `elsewhere` those
    that each other slot has or is loading.
    """
    first = {each.model: each for each in reversed(waiting)}  # of each model the one that was asked for first
    for model in reversed(warm):
        if model in first:
            return first[model]
    left = Counter(each.model for each in waiting)
    holders = Counter(model for models in elsewhere.values() for model in set(models))
    order = {model: place for place, model in enumerate(dict.fromkeys(each.model for each in waiting))}
    # A model that nobody has goes before all others, and then the one with most runs left.
    chosen = min(first, key=lambda m: (holders[m] > 0, -left[m] / max(1, holders[m]), order[m]), default=None)
    return first[chosen] if chosen else None
