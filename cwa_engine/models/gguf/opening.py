"""Opening a GGUF file: config, tokenizer and tensors for transformers, of the model that the file was made from.

No converted copy is written. Tensors are dequantised one by one when the model is loaded. This takes no longer than reading
float32 from a disk, needs no disk space, and cannot leave a stale or half-written copy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from cwa_engine.base.errors import ModelBroken
from cwa_engine.models.checkpoint import StoredTensor
from cwa_engine.models.empty import empty_model
from cwa_engine.models.gguf.description import Architecture
from cwa_engine.models.gguf.families import OWN_OUTPUT, TIED_OUTPUT, describe
from cwa_engine.models.gguf.file import GgufFile, read_file
from cwa_engine.models.gguf.keys import Keys
from cwa_engine.models.gguf.parameters import dequantised, same_bytes, stored_parameters
from cwa_engine.models.gguf.rope import check_rope
from cwa_engine.models.gguf.tokenizer import read_tokenizer
from cwa_engine.models.model_files import check_counts

_QUANTISATION_VERSION = 2  # of ggml, since 2023
_ELSEWHERE = (
    "adapter.",
    "clip.",
    "xielu.",
)  # prefixes of keys that describe a model, outside of its architecture's prefix
_OF_NO_MODEL = (
    "general.",
    "tokenizer.",
    "split.",
    "quantize.",
)  # keys that are read elsewhere, and keys about the origin of the file


@dataclass(frozen=True)
class GgufModel:
    """Config, tokenizer and parameters for transformers. `tensors` are read and dequantised on demand."""

    config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase
    tensors: Mapping[str, StoredTensor]
    notes: tuple[str, ...]


def open_gguf(path: Path) -> GgufModel:
    """Read the headers of all shards of a GGUF file, and account for every key and tensor.

    Raises ModelBroken for anything missing, unknown or contradictory, and InvalidInput without the package gguf.
    """
    file = read_file(path)
    _refuse_other_contents(file)
    keys = Keys(file)
    check_counts({"block_count": keys.get("block_count", 0)}, path, len(file.tensors))
    architecture = describe(keys)
    tied, on_tying = _tied(file, keys)
    tokenizer, notes = read_tokenizer(file)
    model = _empty(path, architecture, tokenizer, tied)
    tensors = stored_parameters(model, architecture, keys)
    check_rope(model, architecture.ropes, path.name)
    keys.refuse_unread()
    _refuse_tokens_beyond(file, model.config)
    notes = [dequantised(file), architecture.assumed, on_tying, *notes, _outside(file, keys)]
    return GgufModel(model.config, tokenizer, tensors, tuple(filter(None, notes)))


def _empty(path: Path, architecture: Architecture, tokenizer: PreTrainedTokenizerBase, tied: bool) -> PreTrainedModel:
    """The transformers model without memory. Its config gets no padding token, whose embedding would have no gradient."""
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": None}
    fields = {**architecture.fields, **ids, "tie_word_embeddings": tied}
    try:
        config = AutoConfig.for_model(architecture.model_type, **fields)
        model = empty_model(config, torch.float32)
    except Exception as error:  # each class checks its config with its own errors
        raise ModelBroken(
            f"transformers cannot make a {architecture.model_type} model from the metadata of {path.name}: "
            f"{' '.join(str(error).split())}",
            hint="convert the model again with a current convert_hf_to_gguf.py of llama.cpp",
        ) from error
    model.config.architectures = [type(model).__name__]
    return model


def _tied(file: GgufFile, keys: Keys) -> tuple[bool, str]:
    """(whether the output is tied to the embedding, a note). Some converters write a tied embedding twice."""
    if not keys.has("output.weight"):
        usual = keys.architecture in TIED_OUTPUT
        return (
            keys.architecture not in OWN_OUTPUT,
            "" if usual else "the file has no output.weight: the output is tied to the embedding",
        )
    if not same_bytes(keys.tensor("output.weight"), keys.tensor("token_embd.weight")):
        return False, ""
    keys.read_tensors.add("output.weight")
    return True, "output.weight and token_embd.weight are the same numbers: analysed as one tied tensor"


def _refuse_other_contents(file: GgufFile) -> None:
    """Raises ModelBroken for files without a language model, and for unknown versions of quantisation."""
    name, says = file.path.name, file.metadata.get
    if says("general.type", "model") != "model":
        raise ModelBroken(
            f"{name} does not hold a model but a {says('general.type')}", hint="give the model's own GGUF file"
        )
    version = says("general.quantization_version", _QUANTISATION_VERSION)
    if version != _QUANTISATION_VERSION and any(tensor.quantised for tensor in file.tensors.values()):
        raise ModelBroken(
            f"{name} is quantised in version {version} of ggml's formats, cwtool reads {_QUANTISATION_VERSION}",
            hint="quantise the model again with a current llama.cpp",
        )


def _outside(file: GgufFile, keys: Keys) -> str:
    """A note on keys outside of the architecture's prefix that llama.cpp does not read either; empty if there are none."""
    known = (*_OF_NO_MODEL, f"{keys.architecture}.")
    others = sorted(key for key in file.metadata if not key.startswith(known))
    if meaning := [key for key in others if key.startswith(_ELSEWHERE)]:
        raise ModelBroken(
            f"{file.path.name} says {meaning[0]}, which cwtool does not know for {keys.architecture}",
            hint="give the model that the file was made from, as a folder or Hub id",
        )
    return f"metadata that is not read: {', '.join(others)}" if others else ""


def _refuse_tokens_beyond(file: GgufFile, config: PretrainedConfig) -> None:
    tokens, rows = len(file.metadata["tokenizer.ggml.tokens"]), config.vocab_size
    if tokens > rows:
        raise ModelBroken(
            f"{file.path.name} has {tokens} tokens, and token_embd.weight has rows for {rows}",
            hint="convert the model again with a current convert_hf_to_gguf.py of llama.cpp",
        )
