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
    if structure == "row":
        experts, outs = np.divmod(units, parameter.out_features)
        return _box(parameter, experts[:, None], outs[:, None], whole_in)
    if structure == "column":
        experts, ins = np.divmod(units, parameter.in_features)
        return _box(parameter, experts[:, None], whole_out, ins[:, None])
    size = parameter.head_size or 0
    ins = units[:, None, None] * size + np.arange(size)
    return _box(parameter, np.array(0), whole_out[:, None], ins)


def first_weights(parameter: Parameter, structure: str, units: Indices) -> Indices:
    """The flat index of the first weight of each of these units, in their order."""
    import numpy as np

    none = np.zeros_like(units)
    match structure:
        case "row":
            experts, outs = np.divmod(units, parameter.out_features)
            return _flat(parameter, experts, outs, none)
        case "column":
            experts, ins = np.divmod(units, parameter.in_features)
            return _flat(parameter, experts, none, ins)
        case "head":
            return _flat(parameter, none, none, units * (parameter.head_size or 0))
    return units


def units_of(parameter: Parameter, structure: str, flat_indices: Indices) -> Indices:
    """The numbers of the units that these weights belong to, in their order."""
    where = parameter.places(flat_indices)
    match structure:
        case "row":
            return where.experts * parameter.out_features + where.out_features
        case "column":
            return where.experts * parameter.in_features + where.in_features
        case "head":
            return where.in_features // (parameter.head_size or 1)
    return flat_indices


def unit_of(parameter: Parameter, structure: str, flat_index: int) -> int:
    """The number of the unit that a weight belongs to."""
    import numpy as np

    return int(units_of(parameter, structure, np.array([flat_index]))[0])


def target_form(parameter: Parameter, structure: str) -> str:
    """The targets of all units of a parameter, with %d for each of the numbers in which they differ."""
    name, expert = parameter.name.replace("%", "%%"), "" if parameter.experts is None else "%d,"
    if parameter.is_vector:
        return f"{name}[{expert}%d]"
    inside = {"row": "%d,:", "column": ":,%d", "head": ":,%d:%d"}.get(structure, "%d,%d")
    return f"{name}[{expert}{inside}]"


def target_numbers(parameter: Parameter, structure: str, flat_indices: Indices) -> Indices:
    """The numbers of the targets of the units that begin at these weights. [units, as many as `target_form` has]"""
    import numpy as np

    where = parameter.places(flat_indices)
    columns = [] if parameter.experts is None else [where.experts]
    if structure not in ("column", "head"):
        columns.append(where.out_features)
    if structure != "row" and not parameter.is_vector:
        columns.append(where.in_features)
    if structure == "head":
        columns.append(where.in_features + (parameter.head_size or 0))
    return np.stack(columns, axis=1)


def target_names(parameter: Parameter, structure: str, flat_indices: Indices) -> list[str]:
    """The targets of the units that begin at these weights, in their order."""
    if not len(flat_indices):
        return []
    forms = "\0".join([target_form(parameter, structure)] * len(flat_indices))  # filled in at once: six times as fast
    return (forms % tuple(target_numbers(parameter, structure, flat_indices).ravel().tolist())).split("\0")


def target_name(parameter: Parameter, structure: str, flat_index: int) -> str:
    """The target of the unit that begins at `flat_index`."""
    import numpy as np

    return target_names(parameter, structure, np.array([flat_index]))[0]


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
    return _box(parameter, experts[:, None, None], outs[:, None], ins)


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
    """Flat indices of every combination of these indices, which broadcast, sorted."""
    import numpy as np

    return np.sort(_flat(parameter, experts, outs, ins).reshape(-1))


def _flat(parameter: Parameter, experts: Indices, outs: Indices, ins: Indices) -> Indices:
    import numpy as np

    flat: Indices = parameter.flat_index(experts, outs, ins)  # type: ignore[arg-type, assignment]
    return np.asarray(flat, dtype=np.int64)
