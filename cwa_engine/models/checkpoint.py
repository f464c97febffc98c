"""The weights files of a model: which ones are read, which tensors they hold, and reading those.

Tensors are read into fresh memory and never mapped, so overwriting a file does not change a warm model.
"""

from __future__ import annotations

import contextvars
import json
import math
import threading
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cwa_engine.base.cancellation import check_cancelled
from cwa_engine.base.errors import ModelBroken
from cwa_engine.machine.memory_limit import allow_mapping
from cwa_engine.models.model_files import read_json

Read = Callable[[int, int], None]  # a callback of progress: (bytes done, bytes in all)

ADAPTER = "adapter_config.json"
_PIECE = 1 << 26  # bytes of a tensor that are read at once
_MOST_HEADER = 32 * 2**20  # bytes of a safetensors file's header; 70,000 tensors in one file take 9 MB
_MOST_SHARED = 4  # the tensors of a pickle may be this many times its bytes, because tied weights share them
_SINGLE = ("model.safetensors", "pytorch_model.bin")
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
WEIGHT_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)  # dtypes of plain, unquantised weights


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a checkpoint. `load()` reads it into fresh memory."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    size_bytes: int  # in the file
    load: Callable[[], Tensor]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


def files_to_read(names: Collection[str], read_json: Callable[[str], Mapping[str, Any]]) -> list[str]:
    """The weights files that transformers would read, out of the file names of a repository or folder.

    `read_json(name)` gives a JSON file's content. The list is empty if transformers would read none.
    """
    explicit = read_json("config.json").get("transformers_weights") if "config.json" in names else None
    for name in (explicit,) if explicit else _SINGLE:
        if not isinstance(name, str):
            raise ModelBroken(
                f"config.json says transformers_weights = {str(name)[:60]}, which is not the name of a file"
            )
        if name in names and not name.endswith(".index.json"):
            return [name]
        index = name if name.endswith(".index.json") else f"{name}.index.json"
        if index in names:
            return _listed(index, read_json(index).get("weight_map"))
    return []


def _listed(index: str, weight_map: Any) -> list[str]:
    """The files of an index. Raises ModelBroken if it lists none, or lists files outside of the model's folder."""
    if not isinstance(weight_map, Mapping) or not all(isinstance(name, str) for name in weight_map.values()):
        raise ModelBroken(f"{index} has no weight_map with file names", hint="download or save the model again")
    found = sorted(set(weight_map.values()))
    if outside := [name for name in found if Path(name).name != name or name in ("", ".", "..")]:
        raise ModelBroken(
            f"{index} lists '{outside[0][:200]}', which is not a file in the model's folder",
            hint="put all weights files beside the index, and list them by their names",
        )
    return found


def weight_files(folder: Path) -> list[Path]:
    """The weights files to read from a folder, also missing ones. Raises ModelBroken for an unreadable index."""
    names = {entry.name for entry in folder.iterdir()}
    return [folder / name for name in files_to_read(names, lambda name: read_json(folder / name))]


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Name -> tensor, of all weights files. Raises ModelBroken for files that are missing or broken."""
    found: dict[str, StoredTensor] = {}
    origin: dict[str, str] = {}
    files = weight_files(folder)
    if not files:
        raise ModelBroken(
            f"{folder} has no file named model.safetensors or pytorch_model.bin, nor an index of several",
            hint="give the folder that `save_pretrained` wrote",
        )
    for path in files:
        if not path.is_file():
            raise ModelBroken(f"{folder} lacks {path.name}, which its index lists", hint="download the model again")
        for name, tensor in (_of_safetensors(path) if path.suffix == ".safetensors" else _of_torch(path)).items():
            if name in found:
                raise ModelBroken(
                    f"{name} is in two files, {origin[name]} and {path.name}",
                    hint="remove the file that does not belong to this model",
                )
            found[name], origin[name] = tensor, path.name
    return found


class Checkpoint:
    """The tensors of a model while it is loaded. It counts the bytes read and records which tensors were taken."""

    def __init__(self, tensors: Mapping[str, StoredTensor], read: Read = lambda done, total: None) -> None:
        self.tensors = tensors
        self.taken: set[str] = set()
        self._read, self._done = read, 0
        self._total = sum(tensor.size_bytes for tensor in tensors.values())
        self._one_at_a_time = threading.Lock()
        self._context = contextvars.copy_context()

    def state_dict(self) -> dict[str, _LazyTensor]:
        """The state dict for transformers: name -> an object whose `[...]` reads the tensor. Several threads read from it."""
        return {name: _LazyTensor(self, name) for name in self.tensors}

    def take(self, name: str) -> Tensor:
        # transformers calls this in threads of its own, which lack the context with the check for cancelling.
        tensor = self._context.copy().run(self.tensors[name].load)
        with self._one_at_a_time:
            self.taken.add(name)
            self._done += self.tensors[name].size_bytes
            self._read(self._done, self._total)
        return tensor

    @property
    def left_over(self) -> list[str]:
        """The tensors that no parameter and no buffer took."""
        return [name for name in self.tensors if name not in self.taken]


@dataclass(frozen=True)
class _LazyTensor:
    checkpoint: Checkpoint
    name: str

    def __getitem__(self, everything: object) -> Tensor:
        return self.checkpoint.take(self.name)


def _of_safetensors(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file: eight bytes with the header's length, little-endian, then the header as JSON."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length + 8 > size:
            raise _broken(path, "its header is longer than the file")
        if length > _MOST_HEADER:
            raise _broken(path, f"its header has {length / 1e6:,.0f} MB, more than that of any model")
        try:
            header = json.loads(file.read(length))
        except (ValueError, RecursionError):
            raise _broken(path, "its header is not JSON") from None
    if not isinstance(header, dict):
        raise _broken(path, "its header is not a JSON object")
    header.pop("__metadata__", None)
    return dict(_entries(path, header, length + 8, size - length - 8))


def _entries(path: Path, header: Mapping[str, Any], start: int, size: int) -> Iterator[tuple[str, StoredTensor]]:
    left = size  # overlapping tensors would take more memory than the file has bytes
    for name, entry in header.items():
        try:
            shape, (begin, end) = tuple(map(int, entry["shape"])), map(int, entry["data_offsets"])
            dtype = _DTYPES[entry["dtype"]]
        except (KeyError, TypeError, ValueError):
            raise _broken(path, f"the entry of {name} cannot be read: {str(entry)[:80]}") from None
        left -= end - begin
        fits = 0 <= begin <= end <= size and left >= 0 and all(axis >= 0 for axis in shape)
        if not fits or end - begin != math.prod(shape) * dtype.itemsize:
            raise _broken(path, f"its header gives {name} a place or size that does not fit")
        yield (
            name,
            StoredTensor(shape, dtype, end - begin, _bytes_reader(path, start + begin, end - begin, dtype, shape)),
        )


def _bytes_reader(
    path: Path, start: int, size: int, dtype: torch.dtype, shape: tuple[int, ...]
) -> Callable[[], Tensor]:
    def load() -> Tensor:
        tensor = torch.empty(shape, dtype=dtype)
        if size:
            memory: Any = tensor.view(-1).view(torch.uint8).numpy()
            with path.open("rb") as file:
                file.seek(start)
                for first in range(0, size, _PIECE):
                    check_cancelled()
                    piece = memory[first : first + _PIECE]
                    if file.readinto(piece) != len(piece):
                        raise _broken(path, "it became shorter while it was read")
        return tensor

    return load


def _of_torch(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a file of torch.save. A file in its zip format stays mapped until every tensor has been copied."""
    if zipfile.is_zipfile(path):
        if packed := _compressed(path):
            raise _broken(path, f"{packed} in it is compressed, which torch.save does not do")
        allow_mapping(path.stat().st_size)
    try:
        try:
            content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        except RuntimeError:  # the older format cannot be mapped
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken file raises errors of many types; pickles of other objects are refused
        raise _broken(path, str(error).strip().splitlines()[0]) from error
    if not isinstance(content, Mapping):
        raise _broken(path, f"it holds a {type(content).__name__}, not tensors by name")
    others = [name for name, value in content.items() if not isinstance(value, Tensor)]
    if others:
        raise _broken(path, f"{others[0]} is not a tensor")
    asked = sum(tensor.numel() * tensor.element_size() for tensor in content.values())
    if asked > _MOST_SHARED * path.stat().st_size:
        raise _broken(path, "its tensors are larger than the file")
    return {
        name: StoredTensor(tuple(tensor.shape), tensor.dtype, tensor.numel() * tensor.element_size(), tensor.clone)
        for name, tensor in content.items()
    }


def _compressed(path: Path) -> str:
    """The name of a compressed entry of a zip file; empty if none is compressed."""
    with zipfile.ZipFile(path) as content:
        return next((entry.filename for entry in content.infolist() if entry.file_size > entry.compress_size), "")


def _broken(path: Path, why: str) -> ModelBroken:
    return ModelBroken(
        f"the weights file {path} is broken or truncated: {why}", hint="download or save the model again"
    )
