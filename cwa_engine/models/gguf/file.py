"""Reading GGUF files: the headers of all shards, and tensors as floats.

The layout is that of https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3. We read the header
ourselves, because the reader of the package gguf takes 10 seconds for a vocabulary of 150,000 tokens and does not say what
is broken. The package gives the kinds of quantisation and dequantises.
"""

from __future__ import annotations

import functools
import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cwa_engine.base.cancellation import cancellable_steps, check_cancelled
from cwa_engine.base.errors import InvalidInput, ModelBroken
from cwa_engine.hub.sources import gguf_shards
from cwa_engine.models.gguf.values import checked

_VERSIONS = (2, 3)
_ALIGNMENT = 32  # bytes; the default of general.alignment
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY, _FLOAT32 = 8, 9, 6
_AT_ONCE = 1 << 22  # numbers that are dequantised at once
_MOST_HEADER = 128 * 2**20  # bytes; vocabularies of 262,000 tokens take 15 MB
_MOST_ENTRIES = 2**22  # entries of one list
_MOST_AXES = 8  # axes of a tensor; ggml has 4

# Kinds of storage that are dtypes of torch. All others are dequantised to float32.
_PLAIN = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """A tensor in one of the shards. `shape` has the outermost axis first, as in torch."""

    name: str
    shape: tuple[int, ...]
    kind: str  # "F32", "Q4_K"
    path: Path
    offset: int  # bytes from the start of the file
    size_bytes: int

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the loaded tensor."""
        return _PLAIN.get(self.kind, torch.float32)

    @property
    def quantised(self) -> bool:
        return self.kind not in _PLAIN

    def load(self) -> Tensor:
        """Read the tensor into fresh memory. Raises ModelBroken if the file has become shorter."""
        if not self.quantised:
            return torch.from_numpy(self._bytes(0, self.size_bytes)).view(self.dtype).reshape(self.shape)
        gguf = package()
        kind, width = gguf.GGMLQuantizationType[self.kind], self.shape[-1]
        loaded = torch.empty(math.prod(self.shape) // width, width)
        row_bytes, step = self.size_bytes // len(loaded), max(_AT_ONCE // width, 1)
        # A few rows at a time, because the package takes twice the memory of its result.
        for first in range(0, len(loaded), step):
            check_cancelled()
            rows = loaded[first : first + step]
            codes = self._bytes(first * row_bytes, len(rows) * row_bytes).reshape(len(rows), row_bytes)
            rows.copy_(torch.from_numpy(gguf.dequantize(codes, kind)))
        return loaded.reshape(self.shape)

    def _bytes(self, start: int, size: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        stored = np.fromfile(self.path, np.uint8, size, offset=self.offset + start)
        if stored.size != size:
            raise broken(self.path, f"it ends inside {self.name}")
        return stored


@dataclass(frozen=True)
class GgufFile:
    """The metadata of the first shard, and the tensors of all shards."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]


def read_file(path: Path) -> GgufFile:
    """The headers of a model's shards; `path` is any one of them.

    Raises ModelBroken for a broken file, and for shards that are missing or do not belong together; InvalidInput if the
    package gguf is not installed.
    """
    package()
    paths = gguf_shards(path)
    metadata, tensors = _read_header(paths[0])
    count = checked(paths[0], "split.count", metadata.get("split.count", 1), listed=False)
    if count != len(paths):
        raise ModelBroken(
            f"{path.name} is one of {count} shards, and its name does not say which"
            if len(paths) == 1
            else f"{path.name} is named as one of {len(paths)} shards, but its metadata (split.count) says {count}",
            hint="put all shards into one folder, named NAME-00001-of-00002.gguf and so on, as they were downloaded",
        )
    for number, shard in enumerate(paths[1:], start=1):
        own, more = _read_header(shard)
        if own.get("split.no") != number or own.get("split.count") != count:
            raise ModelBroken(
                f"{shard.name} says that it is shard {own.get('split.no')} of {own.get('split.count')} (from 0)",
                hint="download the shards of one model again, under the names they have there",
            )
        if twice := sorted(tensors.keys() & more.keys()):
            raise ModelBroken(f"{twice[0]} is in two shards of {path.name}", hint="download the shards again")
        tensors |= more
    expected = metadata.get("split.tensors.count", len(tensors))
    if expected != len(tensors):
        raise ModelBroken(
            f"the shards of {path.name} hold {len(tensors)} tensors, where split.tensors.count says {expected}",
            hint="download the shards of one model again",
        )
    return GgufFile(path, metadata, tensors)


def package() -> Any:
    """The package gguf, an extra. Raises InvalidInput if it is not installed."""
    try:
        import gguf
    except ImportError as error:
        raise InvalidInput("reading a GGUF file needs the package gguf", hint="pip install 'cwtool[gguf]'") from error
    return gguf


def broken(path: Path, why: str) -> ModelBroken:
    return ModelBroken(f"{path} is broken or truncated: {why}", hint="download or convert the model again")


def _read_header(path: Path) -> tuple[dict[str, object], dict[str, GgufTensor]]:
    with path.open("rb") as file:
        if path.stat().st_size == 0:
            raise broken(path, "it is empty")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as memory:
            try:
                return _parse(path, memory)
            except struct.error as error:
                why = str(error) or "its header is longer than the file"
                raise broken(path, why) from None


def _parse(path: Path, memory: mmap.mmap) -> tuple[dict[str, object], dict[str, GgufTensor]]:
    header = _Header(memory)
    if header.take(4) != b"GGUF":
        raise broken(path, "it does not begin with GGUF")
    version = header.number("I")
    if version not in _VERSIONS:
        if version & 0xFFFF == 0:
            raise ModelBroken(
                f"{path} is big-endian", hint=f"convert it with `gguf-convert-endian {path.name} little` (package gguf)"
            )
        raise ModelBroken(f"{path} is of GGUF version {version}", hint="cwtool reads 2 and 3: convert the model again")
    tensors, keys = header.number("Q"), header.number("Q")
    metadata: dict[str, object] = {}
    for _ in range(keys):
        key = header.text()
        if key in metadata:
            raise broken(path, f"it has {key} twice")
        metadata[key] = header.value(path, key, header.number("I"))
    found: dict[str, GgufTensor] = {}
    places = [_tensor_entry(path, header) for _ in range(tensors)]
    alignment = checked(path, "general.alignment", metadata.get("general.alignment", _ALIGNMENT), listed=False)
    if alignment.bit_count() != 1:
        raise broken(path, f"general.alignment is {alignment}, not a power of 2")
    start = end = header.position + -header.position % alignment
    for name, shape, kind, size_bytes, offset in places:
        if name in found:
            raise broken(path, f"it has {name} twice")
        if start + offset != end:
            raise broken(path, f"{name} does not begin where the tensor before it ends")
        if end + size_bytes > len(memory):
            raise broken(path, f"it ends before the end of {name}")
        found[name] = GgufTensor(name, shape, kind, path, end, size_bytes)
        end += size_bytes + -size_bytes % alignment
    return metadata, found


def _tensor_entry(path: Path, header: _Header) -> tuple[str, tuple[int, ...], str, int, int]:
    """(name, shape, kind, size in bytes, offset in the data)"""
    name = header.text()
    axes = header.number("I")
    if axes > _MOST_AXES:
        raise broken(path, f"{name[:80]} has {axes:,} axes")
    shape = tuple(header.number("Q") for _ in range(axes))[::-1]
    number, offset = header.number("I"), header.number("Q")
    storage = _storage(number)
    if storage is None:
        raise ModelBroken(
            f"{name} of {path.name} is stored in a way that the package gguf cannot dequantise (type {number})",
            hint="pip install -U gguf, or use another quantisation of the model, for instance Q8_0",
        )
    kind, block, block_bytes = storage
    if not shape or shape[-1] % block:
        raise broken(path, f"{name} has the shape {list(shape)}, which {kind} cannot have")
    return name, shape, kind, math.prod(shape) // block * block_bytes, offset


@functools.cache
def _storage(number: int) -> tuple[str, int, int] | None:
    """(kind, numbers in a block, bytes of a block); None for an unknown kind."""
    gguf = package()
    try:
        kind = gguf.GGMLQuantizationType(number)
        block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        if kind.name not in _PLAIN:
            gguf.dequantize(np.zeros((1, block_bytes), np.uint8), kind)
    except (KeyError, ValueError, NotImplementedError):
        return None
    return kind.name, block, block_bytes


class _Header:
    """The bytes of a header, read from front to back. Raises struct.error beyond the end, before it allocates memory."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory, self.position = memory, 0

    def take(self, size: int) -> bytes:
        end = self.position + size
        if end > len(self._memory):
            raise struct.error
        if end > _MOST_HEADER:
            raise struct.error(f"its header has more than {_MOST_HEADER / 1e6:,.0f} MB")
        taken = self._memory[self.position : end]
        self.position = end
        return taken

    def number(self, code: str) -> Any:
        (value,) = struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))
        return value

    def text(self) -> str:
        return self.take(self.number("Q")).decode("utf-8", "surrogateescape")

    def value(self, path: Path, key: str, kind: int) -> Any:
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY:
            inner, count = self.number("I"), self.number("Q")
            if inner == _ARRAY:
                raise broken(path, f"{key[:80]} is a list of lists; no model has one")
            if count > _MOST_ENTRIES:
                raise broken(path, f"{key[:80]} has {count:,} entries")
            if inner in _NUMBERS:
                code = _NUMBERS[inner]
                return list(struct.unpack(f"<{count}{code}", self.take(count * struct.calcsize(code))))
            return [self.value(path, key, inner) for _ in cancellable_steps(range(count))]
        if kind not in _NUMBERS:
            raise broken(path, f"{key} is of the unknown type {kind}")
        value = self.number(_NUMBERS[kind])
        # Storing 1e-05 as float32 made it 9.9999997e-06; its shortest decimal form is the number that was meant.
        return float(str(np.float32(value))) if kind == _FLOAT32 else value
