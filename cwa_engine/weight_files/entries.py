"""One weight as other tools write it, as a target.

`NAME[out,in]` has cwtool's own order. Whatever else is written is taken to index the tensor as it is stored, as in
`model.get_parameter(name)[row, column]`; for linear layers both are the same, for GPT-2's Conv1D they are not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from cwa_engine.base.errors import InvalidInput
from cwa_engine.targets import parse_target

Listed = tuple[str, str]  # (where it stands in its file, such as "line 3"; the target)

# What columns and keys are called, without case and signs.
_NAMES = ("target", "parameter", "param", "parametername", "tensor", "name", "path", "weightname", "key")
_MODULES = (
    "module",
    "modulepath",
    "modulename",
    "layername",
    "submodule",
    "matrix",
    "proj",
    "projection",
    "component",
    "weight",
)
_LAYERS = ("layer", "layerindex", "layeridx", "layerid", "block", "no", "layerno", "layernumber")
_TYPES = ("type", "moduletype", "sublayer")
_PLACES = ("coordinates", "coordinate", "coords", "coord", "index", "indices", "position", "location", "idx")
_OUT = ("outfeature", "out", "outindex", "outidx", "outchannel")
_IN = ("infeature", "in", "inindex", "inidx", "inchannel")
_ROW = ("row", "rowindex", "rowidx", "i", "r")
_COLUMN = ("column", "col", "columnindex", "colindex", "colidx", "j", "c")
_FLAT = ("flatindex", "flat", "flatidx", "linearindex")
_EXPERT = ("expert", "expertindex", "expertidx")
MODELS = ("model", "modelname", "checkpoint")

_LAYER_BRACKETS = re.compile(r"\[(\d+)\](?=\.\w)")  # layers[2].mlp
_NAME_AND_NUMBERS = re.compile(r"(?P<name>[A-Za-z_*][\w.\-*]*?)[\s:=,]*(?P<numbers>(?:[\[(\s,]*\d+[\])]*)+)")
_LAYER_FIRST = re.compile(
    r"(?:layers?|blocks?|h)?\s*[#:]?\s*\[?(?P<layer>\d+)\]?[\s,:;.]+(?P<rest>[A-Za-z_].*)", re.IGNORECASE
)
_MARKS = re.compile(r"^\s*(?:[-*+•]\s+|\d+[.)]\s+)?")  # of a list


def key_of(name: str) -> str:
    """A column's or key's name without case and signs."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def target_of_line(line: str) -> str:
    """A line of a list: `NAME[out,in]`, `NAME[row][column]`, `NAME (row, column)`, `layer 2, mlp.down_proj, [row, column]`.

    Raises InvalidInput for a line that names no weight.
    """
    text = _MARKS.sub("", line).strip().strip("`'\"").rstrip(",;").strip().strip("`'\"")
    text = _LAYER_BRACKETS.sub(r".\1", text)
    try:
        return parse_target(text).text
    except InvalidInput as error:
        if (first := _LAYER_FIRST.fullmatch(text)) and (rest := _NAME_AND_NUMBERS.fullmatch(first["rest"].strip())):
            return stored(in_layer(int(first["layer"]), "", rest["name"]), whole_numbers(rest["numbers"]))
        if found := _NAME_AND_NUMBERS.fullmatch(text):
            return stored(found["name"], whole_numbers(found["numbers"]))
        raise InvalidInput(f"'{line.strip()[:80]}' names no weight", hint=error.hint) from None


def target_of_entry(entry: Mapping[str, object]) -> str:
    """An entry with named fields, as a row of a table or an object of JSON has them. Raises InvalidInput."""
    fields = {key_of(name): value for name, value in entry.items() if value not in (None, "", "-")}
    if isinstance(whole := _first(fields, ("target",)), str):
        return parse_target(whole).text
    name = _name(fields)
    expert = _number(_first(fields, _EXPERT), "expert")
    if (flat := _number(_first(fields, _FLAT), "flat index")) is not None:
        return parse_target(f"{name}[flat {flat}]").text
    if (given := _first(fields, _PLACES)) is not None:
        return stored(name, whole_numbers(given))
    out, into = (_number(_first(fields, names), names[0]) for names in (_OUT, _IN))
    if out is not None:
        places = [place for place in (expert, out, into) if place is not None]
        return parse_target(f"{name}[{','.join(map(str, places))}]").text
    row, column = (_number(_first(fields, names), names[0]) for names in (_ROW, _COLUMN))
    if row is None:
        raise InvalidInput(f"{_shown(entry)} says no place", hint="give row and column, or out_feature and in_feature")
    return stored(name, [place for place in (expert, row, column) if place is not None])


def target_of_sequence(parts: Sequence[object]) -> str:
    """An entry without names: [2, "mlp.down_proj", 3968, 7003] or ["NAME", [3968, 7003]]. Raises InvalidInput."""
    names = [place for place, part in enumerate(parts) if isinstance(part, str)]
    if len(names) != 1 or names[0] > 1 or len(parts) == names[0] + 1:
        raise InvalidInput(f"{_shown(parts)} names no weight", hint='write it like ["NAME", row, column]')
    name = str(parts[names[0]])
    if names[0]:
        name = in_layer(_whole(parts[0]), "", name)
    return stored(name, whole_numbers(list(parts[names[0] + 1 :])))


def stored(name: str, places: Sequence[int]) -> str:
    """The target of a place in the tensor as it is stored."""
    return parse_target(f"{name}[stored {','.join(map(str, places))}]").text


def in_layer(layer: int, kind: str, module: str) -> str:
    """The end of the name of a module in a decoder block; a name that has the block's number already stays."""
    if re.search(rf"(^|\.){layer}\.", module):
        return module
    return f"{layer}.{kind}.{module}" if kind else f"{layer}.*{module}" if "." not in module else f"{layer}.{module}"


def _name(fields: Mapping[str, object]) -> str:
    name, module = _first(fields, _NAMES), _first(fields, _MODULES)
    layer = _number(_first(fields, _LAYERS), "layer")
    found = name if name is not None else module
    if not isinstance(found, str):
        raise InvalidInput(
            f"{_shown(fields)} names no parameter", hint="give the name of the parameter or of its module"
        )
    found = _LAYER_BRACKETS.sub(r".\1", found.strip())
    if layer is None:
        return found
    kind = _first(fields, _TYPES)
    return in_layer(layer, kind.strip() if isinstance(kind, str) and "." not in found else "", found)


def _first(fields: Mapping[str, object], names: Sequence[str]) -> object:
    return next((fields[name] for name in names if name in fields), None)


def _number(value: object, what: str) -> int | None:
    if value is None:
        return None
    try:
        return _whole(value)
    except InvalidInput:
        raise InvalidInput(f"{what} {_shown(value)} is no whole number", hint="numbers count from 0") from None


def whole_numbers(value: object) -> list[int]:
    """The numbers of a place: [3968, 7003], "[3968, 7003]", "3968][7003"."""
    if isinstance(value, str):
        if not re.fullmatch(r"[\d\s,;()\[\]]+", value):
            raise InvalidInput(f"'{value[:80]}' is no place", hint="write it like [3968, 7003]")
        return [int(number) for number in re.findall(r"\d+", value)]
    if isinstance(value, (list, tuple)):
        return [
            number for part in value for number in (whole_numbers(part) if isinstance(part, list) else [_whole(part)])
        ]
    return [_whole(value)]


def _whole(value: object) -> int:
    if isinstance(value, str) and re.fullmatch(r"\s*\d+\s*", value):
        return int(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != int(value) or value < 0:
        raise InvalidInput(f"{_shown(value)} is no place", hint="places are whole numbers from 0")
    return int(value)


def _shown(value: object) -> str:
    return f"'{str(value)[:80]}'"
