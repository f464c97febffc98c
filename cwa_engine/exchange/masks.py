"""Ranked weights as a safetensors file of masks that loads beside the model. torch-free.

For each parameter that has a selected weight the file has a tensor of the parameter's name:

- form "mask": bool, of the shape that the model stores, true at the selected weights
- form "indices": int64 [weights, axes], the place of each selected weight in that shape; taken where the masks together
  would have more than `MOST_MASK_BYTES`

The form, and what was selected, stand in the metadata of the file. Masks are written piece by piece into a file that is zero
where nothing is selected, so a mask of a model of any size takes no memory to write.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from cwa_engine.base.errors import DataError, InvalidInput, OutputError, OutputTaken
from cwa_engine.base.files import scratch_path
from cwa_engine.base.version import __version__
from cwa_engine.models.anatomy import Parameter
from cwa_engine.models.structures import find_weights
from cwa_engine.records.run_report import RunReport
from cwa_engine.rows import TopWeight
from cwa_engine.targets import parse_target

Indices = NDArray[np.int64]
FORM, SHAPES = "cwtool.form", "cwtool.shapes"
MASK, INDICES = "mask", "indices"
MOST_MASK_BYTES = 2**30  # of all masks together: those of a few large layers


def write_masks(report: RunReport, path: Path, metric: str | None = None, k: int | None = None) -> Path:
    """Write the weights of a ranking, with `k` its first k of each group, as masks.

    Raises InvalidInput for a k that the ranking does not have, NotFound for a metric, DataError for a run that does not say
    how its model is stored, and OutputError where the file is there or cannot be written.
    """
    name = metric or (report.metrics[0] if report.metrics else None)
    ranked = report.topk(name)
    depth = max((weight.rank for weight in ranked), default=0)
    if k is not None and not 1 <= k <= depth:
        raise InvalidInput(f"k {k} is not in the ranking by {name}", hint=f"it has {depth} places: give 1 to {depth}")
    selected = _selected(report, [weight for weight in ranked if weight.rank <= (k or depth)])
    shapes = {row.parameter: row.shape for row in report.stored if row.parameter in selected}
    form = MASK if sum(map(math.prod, shapes.values())) <= MOST_MASK_BYTES else INDICES
    metadata = {
        "format": "pt",
        FORM: form,
        SHAPES: json.dumps({parameter: list(shape) for parameter, shape in shapes.items()}),
        "cwtool.version": __version__,
        "cwtool.run": report.run_id,
        "cwtool.fingerprint": report.fingerprint or "",
        "cwtool.metric": str(name),
        "cwtool.k": str(k or depth),
        "cwtool.structure": report.spec.structure,
        "cwtool.model": report.model.name,
        "cwtool.revision": report.model.revision or "",
        "cwtool.files": json.dumps(report.model.files),
    }
    _write(path, selected, shapes, metadata)
    return path


def _selected(report: RunReport, weights: Sequence[TopWeight]) -> dict[str, Indices]:
    """Parameter -> flat indices of all selected weights in it, sorted; in the order of the model."""
    parameters = {
        row.parameter: Parameter(
            row.parameter, order, row.shape, None, "", transposed=row.transposed, experts=row.experts
        )
        for order, row in enumerate(report.stored)
    }
    found: dict[str, list[Indices]] = {row.parameter: [] for row in report.stored}
    for weight in weights:
        if weight.parameter not in parameters:
            raise DataError(
                f"{report.run_id} does not say how the model stores {weight.parameter}",
                hint=f"an earlier version of cwtool made the run: `cwtool rerun {report.run_id}` makes one that says so",
            )
        found[weight.parameter].append(find_weights(parse_target(weight.target), parameters))
    return {name: np.unique(np.concatenate(places)) for name, places in found.items() if places}


def _write(
    path: Path, selected: Mapping[str, Indices], shapes: Mapping[str, tuple[int, ...]], metadata: Mapping[str, str]
) -> None:
    if path.exists():
        raise OutputTaken(f"{path} exists", hint="give --output a file that does not exist yet")
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, places in selected.items():
        is_mask = metadata[FORM] == MASK
        shape = shapes[name] if is_mask else (len(places), len(shapes[name]))
        begin, end = end, end + math.prod(shape) * (1 if is_mask else 8)
        header[name] = {"dtype": "BOOL" if is_mask else "I64", "shape": list(shape), "data_offsets": [begin, end]}
    said = json.dumps(header).encode()
    said += b" " * (-len(said) % 8)
    scratch = scratch_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with scratch.open("xb") as file:
            file.write(len(said).to_bytes(8, "little") + said)
            file.truncate(file.tell() + end)  # zeros, which take no room on most file systems
            for name, places in selected.items():
                start = 8 + len(said) + header[name]["data_offsets"][0]
                _put(file, start, places, shapes[name], metadata[FORM])
            file.flush()
            os.fsync(file.fileno())
        scratch.rename(path)
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written: {error.strerror}", hint="give another file, or make room"
        ) from error
    finally:
        scratch.unlink(missing_ok=True)


def _put(file: BinaryIO, start: int, places: Indices, shape: tuple[int, ...], form: str) -> None:
    """Write the selected weights of one parameter."""
    if form == INDICES:
        file.seek(start)
        file.write(np.stack(np.unravel_index(places, shape), axis=-1).astype("<i8").tobytes())
        return
    ends = np.flatnonzero(np.diff(places) != 1) + 1  # neighbours are written at once: a row is one piece
    for run in np.split(places, ends):
        file.seek(start + int(run[0]))
        file.write(b"\x01" * len(run))
