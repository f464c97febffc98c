"""Checks that every tensor of a checkpoint is in the model or named, and that every weight comes from the checkpoint."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from transformers import PreTrainedModel

from cwa_engine.base.cancellation import check_cancelled
from cwa_engine.base.errors import ModelBroken
from cwa_engine.hub.sources import WEIGHT_SUFFIXES
from cwa_engine.models.checkpoint import ADAPTER, WEIGHT_DTYPES, Checkpoint, weight_files

# Tables of positions and masks, which older versions of transformers saved and newer ones compute.
_COMPUTED = (
    r"rotary_emb\.inv_freq$",
    r"(^|\.)position_ids$",
    r"\.attn\.(masked_)?bias$",
    r"\.attention\.(masked_)?bias$",
)


# (pattern of a tensor's name, what such a tensor without a place in the model looks like, hint). The first match counts.
_LOOKS = (
    (
        r"lora_|\.base_layer\.|modules_to_save",
        "a LoRA adapter beside its base model",
        "merge it (`merge_and_unload` of the package peft) and save the whole",
    ),
    (
        r"scale(_inv|_\d)?$|scales$|_blocks$|zero_point$|zeros$|absmax|quant_map|quant_state|qweight$|g_idx$|\.SCB$|_packed$",
        "scales or codes of a quantised model whose config does not say how it was quantised",
        "add the quantiser's quantization_config to config.json, or give the model it was made from",
    ),
    (
        r"(^|\.)(vision|visual|image|audio|speech)\w*\.|multi_modal_projector",
        "a part for pictures or sound",
        "save the language model alone",
    ),
    (
        r"(^|\.)(score|classifier|classification_head|qa_outputs|v_head|value_head)\.",
        "a head for another task than language modelling",
        "give the language model it was made from",
    ),
    (
        r"\.bias$",
        "biases that the config switches off",
        "set the config's field for them (attention_bias, mlp_bias, use_bias ...) as the model was trained",
    ),
)


def refuse_adapter(names: Iterable[str], model: str) -> None:
    """Raises ModelBroken for files of a LoRA adapter: alone they are not a model, and beside a model they change it."""
    if ADAPTER in names:
        raise ModelBroken(
            f"{model} is or contains an adapter ({ADAPTER})",
            hint="merge it with its base model (`merge_and_unload` of the package peft) and give the merged folder",
        )


def files_left_out(folder: Path) -> str:
    """A note on weights files in the folder that are not read; empty if there are none."""
    read = set(weight_files(folder))
    others = sorted(
        path.name for path in folder.iterdir() if path.suffix in (*WEIGHT_SUFFIXES, ".pt", ".pth") and path not in read
    )
    others = [name for name in others if name != "training_args.bin"]
    return f"not read: {', '.join(others)}; the weights are those of {_some([p.name for p in read])}" if others else ""


def check_complete(name: str, model: PreTrainedModel, info: Mapping[str, Any], checkpoint: Checkpoint) -> list[str]:
    """Compare a model with the checkpoint it was loaded from. Returns notes on differences that the model class allows.

    `info` is the loading info of `from_pretrained`. Raises ModelBroken if a weight is not in the checkpoint, if a tensor
    has no place in the model, or if a tensor was misread.
    """
    _refuse_left_over(name, model, info, checkpoint)
    _refuse_lacking(name, model, info)
    _refuse_codes(name, model, checkpoint)
    _refuse_doubled(name, model, checkpoint)
    notes = []
    if ignored := checkpoint.left_over:
        notes.append(f"not used, for the model computes or ignores them: {_some(ignored)}")
    if unset := [key for key in _not_loaded(model) if key in dict(model.named_buffers())]:
        notes.append(f"not in its files, and left as the model begins with them: {_some(unset)}")
    return [*notes, *_against_config(model)]


def _against_config(model: PreTrainedModel) -> list[str]:
    """Notes on fields of the config that contradict the loaded model."""
    notes, kind, heads = [], type(model).__name__, cast(Any, model)
    if (named := model.config.architectures or ()) and kind not in named:
        notes.append(f"its config names {', '.join(named)}; it is analysed as {kind}")
    embeddings, head = heads.get_input_embeddings(), heads.get_output_embeddings()
    ties = getattr(model.config.get_text_config(decoder=True), "tie_word_embeddings", False)
    if ties and getattr(head, "weight", None) is not None and head.weight is not embeddings.weight:
        notes.append(
            "its config ties the head to the embedding, but its files hold two that differ: each is used as stored"
        )
    return notes


def check_finite(name: str, model: PreTrainedModel) -> None:
    """Raises ModelBroken for weights that are NaN or infinite: every metric would rank them first."""
    for parameter_name, parameter in model.named_parameters():
        check_cancelled()
        # The extremes are NaN if any weight is, and take a tenth of the time of a test of each weight.
        if parameter.numel() and not all(extreme.isfinite() for extreme in torch.aminmax(parameter.detach())):
            raise ModelBroken(
                f"{parameter_name} of {name} has weights that are NaN or infinite in {parameter.dtype}",
                hint="float16 cannot hold numbers beyond 65,504: try another --dtype; otherwise the files are broken",
            )


def _refuse_lacking(name: str, model: PreTrainedModel, info: Mapping[str, Any]) -> None:
    # transformers gives names, or (name, shape in the file, shape in the model)
    misshapen = sorted(key if isinstance(key, str) else key[0] for key in info["mismatched_keys"])
    if misshapen:
        raise ModelBroken(
            f"{name} has weights of another shape for {_some(misshapen)}",
            hint="config.json does not describe these weights; download or save the model again",
        )
    made_up = [key for key in _not_loaded(model) if key in dict(model.named_parameters())]
    if lacking := sorted({*made_up, *info["missing_keys"]}):
        raise ModelBroken(
            f"{name} has no weights for {_some(lacking)}",
            hint="the files do not hold this whole architecture; download or save the model again",
        )


def _not_loaded(model: PreTrainedModel) -> list[str]:
    """Parameters and saved buffers that were not in the checkpoint, including those that the class allows to be missing.

    transformers marks every tensor that it has loaded or tied.
    """
    tensors = model.state_dict(keep_vars=True)
    return [key for key, tensor in tensors.items() if not getattr(tensor, "_is_hf_initialized", False)]


def _refuse_left_over(name: str, model: PreTrainedModel, info: Mapping[str, Any], checkpoint: Checkpoint) -> None:
    harmless = [*_COMPUTED, *(model._keys_to_ignore_on_load_unexpected or ())]
    left_over = [key for key in checkpoint.left_over if not any(re.search(pattern, key) for pattern in harmless)]
    if not left_over:
        return
    looks, hint = _looks_like(left_over, model)
    raise ModelBroken(
        f"{type(model).__name__} as {name}'s config describes it has no place for {_some(left_over)}: {looks}",
        hint=hint,
    )


def _looks_like(left_over: Sequence[str], model: PreTrainedModel) -> tuple[str, str]:
    """(what these tensors look like, hint)"""
    for pattern, looks, hint in _LOOKS:
        if all(re.search(pattern, key) for key in left_over):
            return f"they look like {looks}", hint
    blocks = {number for key, _ in model.named_parameters() for number in _numbers(key)}
    beyond = {number for key in left_over for number in _numbers(key)} - blocks
    if beyond and all(set(_numbers(key)) & beyond for key in left_over):
        return (
            f"they look like layers {min(beyond)} to {max(beyond)}, beyond those of the config",
            "set the config's number of layers to that of the checkpoint",
        )
    for pattern, looks, hint in _LOOKS:
        if found := [key for key in left_over if re.search(pattern, key)]:
            return f"{_some(found)} look like {looks}", hint
    return "they are of another architecture or version", "check model_type and the sizes in config.json"


def _refuse_codes(name: str, model: PreTrainedModel, checkpoint: Checkpoint) -> None:
    """Raises ModelBroken for integers and 8-bit floats without scales, which transformers would cast to floats silently."""
    buffers = {key for key, _ in model.named_buffers()}
    codes = [
        key
        for key in sorted(checkpoint.taken)
        if checkpoint.tensors[key].dtype not in WEIGHT_DTYPES
        and key not in buffers
        and f"{model.base_model_prefix}.{key}" not in buffers
    ]
    if codes:
        dtype = str(checkpoint.tensors[codes[0]].dtype).removeprefix("torch.")
        raise ModelBroken(
            f"{name} stores {_some(codes)} as {dtype}, and nothing says what the numbers mean",
            hint="give the model it was made from, or one that was saved with its quantization_config",
        )


def _refuse_doubled(name: str, model: PreTrainedModel, checkpoint: Checkpoint) -> None:
    """Raises ModelBroken if a weight is stored twice, with and without the decoder's name as prefix: only one is used."""
    prefix = f"{model.base_model_prefix}."
    doubled = [key for key in sorted(checkpoint.taken) if f"{prefix}{key}" in checkpoint.taken]
    if doubled:
        raise ModelBroken(
            f"{name} has {_some(doubled)} twice, with and without '{prefix}' before it",
            hint="remove one of the two from the checkpoint",
        )


def _numbers(key: str) -> list[int]:
    """The numbers in a tensor's name: those of layers and experts."""
    return [int(number) for number in re.findall(r"(?<=\.)\d+(?=\.)", key)]


def _some(names: Sequence[str], shown: int = 3) -> str:
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")
