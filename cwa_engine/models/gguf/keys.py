"""The metadata keys of a GGUF file's architecture. A file with a key that nobody reads is refused."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from cwa_engine.base.errors import ModelBroken
from cwa_engine.models.gguf.file import GgufFile, GgufTensor
from cwa_engine.models.gguf.values import checked, shown

_REQUIRED = object()

# Keys that have no effect if they have one of these values, for every architecture.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    "attention.sliding_window": (0,),
    "expert_count": (0,),
    "expert_group_count": (0, 1),
    "expert_group_used_count": (0, 1),
    "expert_shared_count": (0,),
    "expert_used_count": (0,),
    "leading_dense_block_count": (0,),
    "nextn_predict_layers": (0,),
    "pooling_type": (0,),
    "tensor_data_layout": ("Meta AI original pth",),  # as in llama.cpp, consecutive features are rotated
}


class Keys:
    """The metadata under the prefix of `general.architecture`, and the tensors. It records which keys have been read."""

    def __init__(self, file: GgufFile) -> None:
        self.file = file
        self.architecture = str(file.metadata.get("general.architecture", ""))
        self._unread = {key for key in file.metadata if key.startswith(f"{self.architecture}.")}
        self.read_tensors: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        """One value for all blocks, or `default` if the file lacks the key. Raises ModelBroken if blocks differ."""
        value = self.list(key, default)
        if not isinstance(value, list):
            return value
        if len(set(value)) != 1:
            raise self.refused(key, value, "cwtool reads one value for all blocks of this architecture")
        return value[0]

    def __getitem__(self, key: str) -> Any:
        """One value. Raises ModelBroken if the file lacks the key."""
        value = self.get(key, _REQUIRED)
        if value is _REQUIRED:
            raise ModelBroken(
                f"{self.file.path.name} does not say {self.architecture}.{key}",
                hint="convert the model again with a current convert_hf_to_gguf.py of llama.cpp",
            )
        return value

    def list(self, key: str, default: Any = None) -> Any:
        """A value that may be a list with one entry for each block."""
        full = f"{self.architecture}.{key}"
        self._unread.discard(full)
        if full not in self.file.metadata:
            return default
        value = self.file.metadata[full]
        return checked(self.file.path, key, value, isinstance(value, list), f"{self.architecture}.")

    def expect(self, key: str, *values: Any) -> None:
        """Raises ModelBroken if the file has the key with none of these `values`, the only ones that transformers supports."""
        value = self.get(key, values[0])
        if value not in values:
            raise self.refused(key, value, f"transformers knows only {' or '.join(map(str, values))} here")

    def ignore(self, *keys: str) -> None:
        """Mark keys as read that have no effect on the model."""
        for key in keys:
            self.list(key)

    def has(self, tensor: str) -> bool:
        return tensor in self.file.tensors

    def tensor(self, name: str) -> GgufTensor:
        """A tensor by name. Raises ModelBroken if it is missing."""
        if name not in self.file.tensors:
            raise ModelBroken(
                f"{self.file.path.name} has no tensor {name}",
                hint="download the model again, with all its shards, or convert it again",
            )
        return self.file.tensors[name]

    def loaded(self, name: str) -> Tensor | None:
        """A small tensor that describes the architecture, such as factors of frequencies; None if there is none."""
        if not self.has(name):
            return None
        self.read_tensors.add(name)
        return self.tensor(name).load().float()

    def refused(self, key: str, value: Any, why: str) -> ModelBroken:
        return ModelBroken(
            f"{self.file.path.name} says {self.architecture}.{key} = {shown(value)}: {why}",
            hint="give the model that the file was made from, as a folder or Hub id",
        )

    def refuse_unread(self) -> None:
        """Raises ModelBroken with the keys that nobody has read."""
        start = len(self.architecture) + 1
        metadata = self.file.metadata
        unknown = [
            f"{key} = {shown(metadata[key])}"
            for key in sorted(self._unread)
            if metadata[key] not in _NEUTRAL.get(key[start:], ())
        ]
        if unknown:
            raise ModelBroken(
                f"{self.file.path.name} says {', '.join(unknown[:5])}{' and more' * (len(unknown) > 5)}, "
                f"which cwtool does not know for {self.architecture}: results could be wrong without it",
                hint="give the model that the file was made from, as a folder or Hub id; docs/gguf.md lists what is read",
            )
