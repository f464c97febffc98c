"""Masks and places in binary files: .safetensors, .npz and .npy. Nothing is unpickled."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from cwa_engine.base.errors import DataError, InvalidInput
from cwa_engine.base.plain import JsonMap
from cwa_engine.targets import parse_target
from cwa_engine.weight_files.entries import target_of_entry

MOST_TARGETS = 40_000  # a request to the daemon holds as many
FORM, SHAPES, INDICES = "cwtool.form", "cwtool.shapes", "indices"  # in the metadata of cwtool's own masks
_HINT = "tensors are masks of 0 and 1 in the shape of a parameter, each by the parameter's name"
Array = NDArray[Any]


def targets_of_masks(path: Path) -> list[str]:
    """The targets of a safetensors file: a mask for each parameter, by its name, or the places that cwtool writes.

    Raises DataError for other tensors, and for more weights than a run takes.
    """
    from safetensors import SafetensorError, safe_open

    found: list[str] = []
    try:
        with safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            shapes = _shapes(metadata, path)
            for name in file.offset_keys():
                array = file.get_tensor(name)
                if metadata.get(FORM) == INDICES:
                    found += _of_places(name, array, path, shapes.get(name))
                else:
                    found += _of_mask(name, array, path)
                _check_count(len(found), path)
    except SafetensorError as error:
        raise DataError(f"weights file {path} is no whole safetensors file: {error}", hint=_HINT) from None
    except TypeError:  # of a dtype that numpy does not have, such as bfloat16
        raise DataError(f"{path}: {name} has a dtype that masks do not have", hint="save masks as bool") from None
    return _some(found, path)


def targets_of_arrays(path: Path) -> list[str]:
    """The targets of a .npz file with an array for each parameter, or of a .npy file with named fields.

    In .npz arrays of bool are masks, and arrays of whole numbers are places: [weights, axes], or [weights] in the flattened
    parameter. Raises DataError for others.
    """
    found: list[str] = []
    try:
        with path.open("rb") as opened:
            content: Any = np.load(opened, allow_pickle=False)
            if isinstance(content, np.ndarray):
                return _some(_of_rows(content, path), path)
            for name in content.files:
                array = content[name]
                found += _of_mask(name, array, path) if array.dtype == bool else _of_places(name, array, path, None)
                _check_count(len(found), path)
    except (ValueError, EOFError, KeyError, NotImplementedError, MemoryError, BadZipFile, zlib.error) as error:
        why = "it holds Python objects, which may run any program" if "pickle" in str(error) else str(error)
        raise DataError(f"weights file {path} is not read: {why}", hint="save arrays of numbers alone") from None
    return _some(found, path)


def _of_mask(name: str, mask: Array, path: Path) -> list[str]:
    if mask.dtype != bool:
        if not ((mask == 0) | (mask == 1)).all():
            raise DataError(f"{path}: {name} has values other than 0 and 1", hint=_HINT)
        mask = mask.astype(bool)
    shape = "x".join(map(str, mask.shape))
    if not mask.ndim:
        raise DataError(f"{path}: {name} is a single number", hint=_HINT)
    if whole := _whole_lines(mask):
        return [_stored(name, index, mask.shape) for index in whole]
    count = int(mask.sum())
    if count > MOST_TARGETS:
        raise DataError(
            f"{path}: {name} ({shape}) selects {count:,} weights, and a run takes {MOST_TARGETS:,}",
            hint="1 stands for a weight that is selected; where it stands for one that is kept, turn the mask around",
        )
    return [_stored(name, map(str, index), mask.shape) for index in np.argwhere(mask)]


def _whole_lines(mask: Array) -> list[list[str]]:
    """The indices of whole rows or columns where nothing else is selected; none otherwise."""
    for axis in (-1, -2) if mask.ndim > 1 else ():
        whole = mask.all(axis=axis)
        if mask.shape[axis] > 1 and whole.any() and whole.sum() * mask.shape[axis] == mask.sum():
            return [_with_all(list(map(str, index)), axis) for index in np.argwhere(whole)]
    return []


def _with_all(index: list[str], axis: int) -> list[str]:
    return [*index, ":"] if axis == -1 else [*index[:-1], ":", index[-1]]


def _of_places(name: str, places: Array, path: Path, shape: tuple[int, ...] | None) -> list[str]:
    if places.dtype.kind not in "iu" or places.ndim not in (1, 2) or (places.size and places.min() < 0):
        raise DataError(
            f"{path}: {name} holds neither a mask nor places",
            hint="places are whole numbers from 0, [weights, axes] or [weights] in the flattened parameter",
        )
    _check_count(len(places), path)
    if places.ndim == 1:
        return [parse_target(f"{name}[flat {place}]").text for place in places.tolist()]
    if shape is not None and len(places) and (len(shape) != places.shape[1] or (places >= np.array(shape)).any()):
        raise DataError(f"{path}: {name} has places outside of its shape {list(shape)}", hint="write the file anew")
    return [_stored(name, map(str, place), shape) for place in places.tolist()]


def _of_rows(rows: Array, path: Path) -> list[str]:
    """The targets of an array with named fields, such as parameter, row and column."""
    if rows.dtype.names is None or rows.ndim != 1:
        raise DataError(
            f"{path}: the array does not say which parameters its places are of",
            hint="give fields like parameter, row and column, or a .npz file with an array for each parameter",
        )
    _check_count(len(rows), path)
    return list(_of_fields(rows, path))


def _of_fields(rows: Array, path: Path) -> Iterator[str]:
    for number, row in enumerate(rows):
        entry = {name: value.decode() if isinstance(value, bytes) else value for name, value in _plain(row).items()}
        try:
            yield target_of_entry(entry)
        except InvalidInput as error:
            raise DataError(f"{path}, row {number}: {error.message}", hint=error.hint) from None


def _plain(row: Any) -> JsonMap:
    return {name: row[name].item() for name in row.dtype.names}


def _stored(name: str, index: Any, shape: tuple[int, ...] | None) -> str:
    of = f" of {','.join(map(str, shape))}" if shape else ""
    return parse_target(f"{name}[stored {','.join(index)}{of}]").text


def _shapes(metadata: Mapping[str, str], path: Path) -> dict[str, tuple[int, ...]]:
    try:
        return {name: tuple(map(int, shape)) for name, shape in json.loads(metadata.get(SHAPES, "{}")).items()}
    except (ValueError, TypeError, AttributeError):
        raise DataError(f"{path}: its metadata have no readable {SHAPES}", hint="write the file anew") from None


def _check_count(count: int, path: Path) -> None:
    if count > MOST_TARGETS:
        raise DataError(
            f"{path} selects {count:,} weights, and a run takes {MOST_TARGETS:,}", hint="a critical set is small"
        )


def _some(found: list[str], path: Path) -> list[str]:
    if not found:
        raise DataError(f"weights file {path} names no weight", hint="no mask in it selects any")
    return found
