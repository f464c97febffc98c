"""The architectures of GGUF that cwtool reads. One function for each `general.architecture`.

Every key must be read: a key that no function reads is an error. If a file lacks a key, llama.cpp's default holds
(src/models/*.cpp). docs/gguf.md lists what its converter leaves out.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from cwa_engine.base.errors import ModelBroken, did_you_mean
from cwa_engine.models.gguf.description import Architecture
from cwa_engine.models.gguf.families import gemma, gpt, llama, qwen
from cwa_engine.models.gguf.keys import Keys

ARCHITECTURES: dict[str, Callable[[Keys], Architecture]] = {
    **llama.ARCHITECTURES,
    **qwen.ARCHITECTURES,
    **gemma.ARCHITECTURES,
    **gpt.ARCHITECTURES,
}

# Architectures for which llama.cpp requires an output tensor, and those whose output is the embedding if the file has none.
# The others may have either.
OWN_OUTPUT = ("stablelm", "nemotron", "olmo2", "qwen2moe", "olmoe", "phimoe", "gpt-oss", "gptneox", "phi2")
TIED_OUTPUT = (
    *("gemma", "gemma2", "gemma3", "command-r", "cohere2", "starcoder2", "smollm3"),
    *("gpt2", "starcoder", "bloom", "falcon", "mpt", "mamba", "lfm2"),
)


def describe(keys: Keys) -> Architecture:
    """The description of a file's architecture. Raises ModelBroken for an unknown architecture and for missing keys."""
    if keys.architecture not in ARCHITECTURES:
        raise ModelBroken(
            f"{keys.file.path.name} is of the architecture '{keys.architecture}', which cwtool does not read from GGUF files",
            hint=f"{did_you_mean(keys.architecture, ARCHITECTURES)} Give the model that the file was made from, as a folder or "
            "Hub id; docs/gguf.md lists the architectures".strip(),
        )
    _refuse_missing_blocks(keys)
    return ARCHITECTURES[keys.architecture](keys)


def _refuse_missing_blocks(keys: Keys) -> None:
    """Raises ModelBroken if block_count differs from the blocks in the file, before anything is made for each block."""
    there = {int(match[1]) for name in keys.file.tensors if (match := re.match(r"blk\.(\d+)\.", name))}
    if keys["block_count"] > len(there):
        raise keys.refused("block_count", keys["block_count"], f"it has tensors of {len(there)} blocks")
