"""Structures: the units that are ranked and damaged, single weights or whole rows, columns and attention heads.

Each structure numbers its units within a parameter. A unit of "weight" is one weight, and its number is the flat index. A
row has all weights of one out_feature, a column all of one in_feature; in a stack, those of one expert. A head has the
columns of an attention's output projection that read this head, so zeroing it masks the head (Michel et al. 2019). Vectors
have neither rows nor columns. A target names weights with indices in the order (expert,) out, in:
`model.layers.11.mlp.down_proj.weight[507,:]`.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from cwa_engine.base.errors import InvalidInput, did_you_mean
from cwa_engine.models.anatomy import Parameter
from cwa_engine.targets import STRUCTURES, Target

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Indices = NDArray[np.int64]


def unit_count(parameter: Parameter, structure: str) -> int:
    """Number of units of a structure in a parameter."""
    experts = parameter.experts or 1
    match structure:
        case "weight":
            return parameter.numel
        case "row" if not parameter.is_vector:
            return experts * parameter.out_features
        case "column" if not parameter.is_vector:
            return experts * parameter.in_features
        case "head" if parameter.head_size:
            return parameter.in_features // parameter.head_size
    return 0


def unit_size(parameter: Parameter, structure: str) -> int:
    """Number of weights of one unit."""
    if structure == "weight":
        return 1
    return parameter.numel // unit_count(parameter, structure)


def unit_weights(parameter: Parameter, structure: str, units: Indices) -> Indices:
    """Flat indices of all weights of these units, sorted."""
    import numpy as np

    if structure == "weight":
        return np.sort(units)
    whole_out, whole_in = np.arange(parameter.out_features), np.arange(parameter.in_features)
    found = []
    for unit in units.tolist():
        if structure == "row":
            expert, out_feature = divmod(unit, parameter.out_features)
            found.append(_box(parameter, np.array([expert]), np.array([out_feature]), whole_in))
        elif structure == "column":
            expert, in_feature = divmod(unit, parameter.in_features)
            found.append(_box(parameter, np.array([expert]), whole_out, np.array([in_feature])))
        else:
            size = parameter.head_size or 0
            found.append(_box(parameter, np.array([0]), whole_out, np.arange(unit * size, (unit + 1) * size)))
    return np.sort(np.concatenate(found)) if found else np.empty(0, dtype=np.int64)


def unit_of(parameter: Parameter, structure: str, flat_index: int) -> int:
    """The number of the unit that a weight belongs to."""
    place = parameter.place(flat_index)
    match structure:
        case "row":
            return (place.expert or 0) * parameter.out_features + place.out_feature
        case "column":
            return (place.expert or 0) * parameter.in_features + (place.in_feature or 0)
        case "head":
            return (place.in_feature or 0) // (parameter.head_size or 1)
    return flat_index


def target_name(parameter: Parameter, structure: str, flat_index: int) -> str:
    """The target of the unit that begins at `flat_index`."""
    place = parameter.place(flat_index)
    out_index, in_index = str(place.out_feature), str(place.in_feature)
    if structure in ("column", "head"):
        out_index = ":"
    if structure == "row":
        in_index = ":"
    if structure == "head":
        in_index = f"{place.in_feature}:{(place.in_feature or 0) + (parameter.head_size or 0)}"
    expert = [] if place.expert is None else [str(place.expert)]
    inside = [*expert, out_index] + ([] if parameter.is_vector else [in_index])
    return f"{parameter.name}[{','.join(inside)}]"


def find_weights(target: Target, parameters: Mapping[str, Parameter]) -> Indices:
    """Flat indices of the weights of a target, sorted. Raises InvalidInput if the model lacks them."""
    import numpy as np

    parameter = parameter_of(target, parameters)
    if target.shape is not None and target.shape != parameter.shape:
        raise InvalidInput(
            f"'{target.text}': {parameter.name} has the shape {_sizes(parameter.shape)}, not {_sizes(target.shape)}",
            hint="the file was made for another model",
        )
    axes = _axes(target, parameter)
    shape = ", ".join(f"{name} 0 to {size - 1}" for name, size in axes)
    if len(target.indices) != len(axes):
        raise InvalidInput(
            f"'{target.text}' has {len(target.indices)} indices, {parameter.name} takes {len(axes)}",
            hint=f"its indices are {shape}",
        )
    chosen = []
    for index, (_, size) in zip(target.indices, axes, strict=True):
        positions = np.arange(size)[index] if isinstance(index, slice) else np.array([index])
        beyond = (index.stop or 0) > size if isinstance(index, slice) else index >= size
        if beyond or not len(positions):
            raise InvalidInput(f"'{target.text}' lies outside of {parameter.name}", hint=f"its indices are {shape}")
        chosen.append(positions.astype(np.int64))
    if target.order != "features":
        sizes = tuple(size for _, size in axes)
        return np.sort(np.ravel_multi_index(np.ix_(*chosen), sizes).reshape(-1).astype(np.int64))
    experts = chosen.pop(0) if parameter.experts else np.array([0])
    outs, ins = chosen[0], np.array([0]) if parameter.is_vector else chosen[1]
    return np.sort(_box(parameter, experts, outs, ins))


def parameter_of(target: Target, parameters: Mapping[str, Parameter]) -> Parameter:
    """The parameter that a target names, by the whole of its name or the end of it. Raises InvalidInput for none or several."""
    name = target.parameter
    if name in parameters:
        return parameters[name]
    ends = [pattern for whole in (name, f"{name}.weight") for pattern in (whole, f"*.{whole}")]
    found = [known for known in parameters if any(fnmatch.fnmatchcase(known, end) for end in ends)]
    if len(found) == 1:
        return parameters[found[0]]
    if found:
        raise InvalidInput(
            f"'{target.text}' may be of {len(found)} parameters: {', '.join(found[:3])}", hint="write the whole name"
        )
    parts = name.removesuffix(".weight").count(".") + 1
    near = did_you_mean(name, parameters) or did_you_mean(
        name.removesuffix(".weight"),
        [".".join(known.removesuffix(".weight").split(".")[-parts:]) for known in parameters],
    )
    raise InvalidInput(
        f"'{target.text}': the model has no parameter {name}",
        hint=f"{near} tied parameters go by their first name".strip(),
    )


def _axes(target: Target, parameter: Parameter) -> list[tuple[str, int]]:
    """(name, size) of each axis that the target has an index of."""
    if target.order == "flat":
        return [("place", parameter.numel)]
    if target.order == "stored":
        return [(f"axis {place}", size) for place, size in enumerate(parameter.shape)]
    axes = ([("expert", parameter.experts)] if parameter.experts else []) + [("out", parameter.out_features)]
    return axes + ([] if parameter.is_vector else [("in", parameter.in_features)])


def _sizes(shape: Iterable[int]) -> str:
    return " x ".join(map(str, shape))


def common_structure(targets: Iterable[Target], parameters: Mapping[str, Parameter]) -> str:
    """The structure of which every target is one unit; "weight" if the targets are single weights or of mixed structures."""
    kinds = set()
    for target in targets:
        found, parameter = find_weights(target, parameters), parameter_of(target, parameters)
        fits = [
            structure
            for structure in STRUCTURES
            if unit_count(parameter, structure)
            and len(found) == unit_size(parameter, structure)
            and len({unit_of(parameter, structure, index) for index in (int(found[0]), int(found[-1]))}) == 1
        ]
        kinds.add(fits[0] if fits else "weight")
    return kinds.pop() if len(kinds) == 1 else "weight"


def _box(parameter: Parameter, experts: Indices, outs: Indices, ins: Indices) -> Indices:
    """Flat indices of every combination of these indices."""
    import numpy as np

    flat: Indices = parameter.flat_index(experts[:, None, None], outs[:, None], ins)  # type: ignore[arg-type, assignment]
    return np.asarray(flat, dtype=np.int64).reshape(-1)
