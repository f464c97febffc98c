"""From the tensors of a GGUF file to the parameters of a model. Every parameter is made, and every tensor is used."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from cwa_engine.base.cancellation import check_cancelled
from cwa_engine.base.errors import ModelBroken
from cwa_engine.models.checkpoint import StoredTensor
from cwa_engine.models.gguf.description import Architecture
from cwa_engine.models.gguf.file import GgufFile, GgufTensor
from cwa_engine.models.gguf.keys import Keys
from cwa_engine.models.gguf.layouts import Heads, TensorSource


def stored_parameters(model: PreTrainedModel, architecture: Architecture, keys: Keys) -> dict[str, StoredTensor]:
    """Name of a parameter -> its stored tensor, which is not read yet. `model` may be without memory.

    Raises ModelBroken for tensors that are missing, have another shape, or have no place in the model.
    """
    file, found, missing = keys.file, {}, []
    used = set(keys.read_tensors)
    for name, wanted in _wanted(model).items():
        ways = _ways(name, architecture, model)
        made = next((way for way in ways if all(tensor in file.tensors for tensor in way.tensors)), None)
        if made is None:
            missing += [tensor for tensor in ways[0].tensors if tensor not in file.tensors]
            continue
        found[name] = _stored(name, tuple(wanted.shape), made, architecture.heads, file)
        used.update(made.tensors)
    if missing:
        raise ModelBroken(
            f"{file.path.name} has no tensor {_some(missing)}",
            hint="download the model again, with all its shards, or convert it again",
        )
    if left_over := [tensor for tensor in file.tensors if tensor not in used]:
        raise ModelBroken(
            f"{file.path.name} has tensors that cwtool does not know for {keys.architecture}: {_some(left_over)}",
            hint="give the model that the file was made from, as a folder or Hub id",
        )
    return found


def same_bytes(first: GgufTensor, second: GgufTensor) -> bool:
    """Whether the stored bytes of two tensors are equal."""
    if (first.kind, first.shape) != (second.kind, second.shape):
        return False
    piece = 1 << 20
    with first.path.open("rb") as ours, second.path.open("rb") as theirs:
        ours.seek(first.offset)
        theirs.seek(second.offset)
        left = first.size_bytes
        while left > 0:
            check_cancelled()
            size = min(piece, left)
            if ours.read(size) != theirs.read(size):
                return False
            left -= size
    return True


def dequantised(file: GgufFile) -> str:
    """A note on quantised tensors, for the reader of results; empty if there are none."""
    quantised = [tensor.kind for tensor in file.tensors.values() if tensor.quantised]
    kinds = ", ".join(sorted(set(quantised), key=lambda kind: (-quantised.count(kind), kind)))
    return f"analysed as dequantised from {kinds}: {len(quantised)} of {len(file.tensors)} tensors" if kinds else ""


def _wanted(model: PreTrainedModel) -> dict[str, Tensor]:
    """The parameters of a model, tied ones once, and its saved buffers."""
    every = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    buffers = {name: value for name, value in model.state_dict().items() if name not in every}
    return {**dict(model.named_parameters()), **buffers}


def _ways(name: str, architecture: Architecture, model: PreTrainedModel) -> tuple[TensorSource, ...]:
    """The ways to make a parameter, with the number of its block filled in."""
    block = re.search(r"\.(\d+)\.", name)
    pattern = f"{name[: block.start(1)]}*{name[block.end(1) :]}" if block else name
    stem, _, end = pattern.rpartition(".")
    way, ending = architecture.parameters.get(pattern), ""
    if way is None:
        way, ending = architecture.parameters.get(stem), f".{end}"
    if way is None:
        raise ModelBroken(
            f"cwtool does not know from which tensors of GGUF to make {name} of {type(model).__name__}",
            hint="this version of transformers uses other names for this architecture's parameters: install an older version",
        )
    number = block[1] if block else ""

    def own(tensor: str) -> str:
        return f"{tensor}{ending}".replace("*", number)

    made = (TensorSource((way,)),) if isinstance(way, str) else way
    return tuple(TensorSource(tuple(own(tensor) for tensor in one.tensors), one.layout, one.whole) for one in made)


def _stored(name: str, shape: tuple[int, ...], made: TensorSource, heads: Heads, file: GgufFile) -> StoredTensor:
    tensors = [file.tensors[tensor] for tensor in made.tensors]
    _check_shape(name, shape, made, tensors, file)

    def load() -> Tensor:
        loaded = [tensor.load() for tensor in tensors]
        value = made.layout(loaded, heads) if made.layout else loaded[0].reshape(shape)
        if value.shape != shape:
            raise _misshapen(name, shape, tensors, file)
        return value.contiguous() if made.whole else value.clone()

    dtype = functools.reduce(torch.promote_types, (tensor.dtype for tensor in tensors))
    return StoredTensor(shape, dtype, sum(tensor.size_bytes for tensor in tensors), load)


def _check_shape(
    name: str, shape: tuple[int, ...], made: TensorSource, tensors: Sequence[GgufTensor], file: GgufFile
) -> None:
    """Raises ModelBroken for a wrong shape, as far as it shows without reading. Axes of length 1 are not compared."""
    numbers, needed = sum(math.prod(tensor.shape) for tensor in tensors), math.prod(shape)
    fits = numbers == needed if made.whole else numbers > needed
    if made.layout is None:
        fits = fits and [size for size in tensors[0].shape if size != 1] == [size for size in shape if size != 1]
    if not fits:
        raise _misshapen(name, shape, tensors, file)


def _misshapen(name: str, shape: tuple[int, ...], tensors: Sequence[GgufTensor], file: GgufFile) -> ModelBroken:
    stored = " and ".join(f"{tensor.name} of {list(tensor.shape)}" for tensor in tensors)
    return ModelBroken(
        f"{file.path.name} has {stored}, which do not fit {name} of {list(shape)}: its metadata describes other sizes",
        hint="convert the model again with a current convert_hf_to_gguf.py of llama.cpp",
    )


def _some(names: Sequence[str], shown: int = 5) -> str:
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")
