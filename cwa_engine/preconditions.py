"""What is known of a run before anything is computed: the weights given by name, and what the model cannot be asked."""

from __future__ import annotations

from cwa_engine.base.errors import InvalidInput
from cwa_engine.methods.perturbations import STORED_BITS
from cwa_engine.models.loading import LoadedModel
from cwa_engine.models.structures import common_structure, find_weights, parameter_of, unit_count, unit_of
from cwa_engine.rows import GIVEN, Ranking
from cwa_engine.sensitivity.ranking import describe_unit
from cwa_engine.spec import RunSpec
from cwa_engine.targets import parse_target


def given_ranking(loaded: LoadedModel, spec: RunSpec) -> tuple[Ranking, ...]:
    """The weights given by name, in their order, as if a metric had named them; none where none are given."""
    if not spec.weights:
        return ()
    parameters = loaded.anatomy.parameters
    targets = [parse_target(text) for text in spec.weights]
    structure = common_structure(targets, parameters)
    units: dict[tuple[str, int], None] = {}
    for target in targets:
        parameter = parameter_of(target, parameters)
        for index in find_weights(target, parameters).tolist():
            units[parameter.name, unit_of(parameter, structure, index)] = None
    rows = [
        describe_unit(loaded, parameters[name], structure, unit, place, None)
        for place, (name, unit) in enumerate(units, start=1)
    ]
    ranked = [name for name, parameter in parameters.items() if unit_count(parameter, structure)]
    return (Ranking(GIVEN, tuple(rows), structure=structure, parameters=tuple(ranked)),)


def check_spec(loaded: LoadedModel, spec: RunSpec) -> None:
    """Raises InvalidInput for a spec that this model cannot be analysed by."""
    _check_bits(loaded, spec)
    _check_topk(loaded, spec)


def _check_bits(loaded: LoadedModel, spec: RunSpec) -> None:
    """Before anything is computed: whether the weights as stored have the bit that is to be flipped."""
    bits = STORED_BITS.get(loaded.dtype, 0)
    if "bit_flip" in spec.perturbations and isinstance(spec.bit, int) and spec.bit >= bits:
        raise InvalidInput(
            f"{loaded.dtype} has no bit {spec.bit}", hint=f"its bits are 0 to {bits - 1}, {bits - 1} is the sign"
        )


def _check_topk(loaded: LoadedModel, spec: RunSpec) -> None:
    units = sum(unit_count(parameter, spec.structure) for parameter in loaded.anatomy.parameters.values())
    if spec.metrics and units and spec.largest_k > units:
        raise InvalidInput(
            f"--topk {spec.largest_k} is more than the {units:,} {spec.structure}s of {spec.model}"
            + (" that are in view" if spec.include or spec.exclude else ""),
            hint="a critical set is small: try 100" if units > 100 else f"try {min(units, 5)}",
        )
