"""A model object that a program holds, as a LoadedModel: checked as a model from files is, and left as it was."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cwa_engine.base.errors import InvalidInput, ModelBroken
from cwa_engine.hub.sources import ModelSource, SourceKind
from cwa_engine.models import causality
from cwa_engine.models.anatomy import anatomy_of, config_number
from cwa_engine.models.checkpoint import WEIGHT_DTYPES
from cwa_engine.models.checksum import checksum
from cwa_engine.models.completeness import check_finite
from cwa_engine.models.empty import empty_model
from cwa_engine.models.forward import cancel_between_blocks
from cwa_engine.models.loading import LoadedModel, batching, notes_on_norms

WEIGHTS = "weights in memory"  # stands for the files of such a model; its hash is of their checksums


def wrap(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, name: str | None = None) -> LoadedModel:
    """A transformers model in memory and its tokenizer, for `analyze`.

    It must be a causal language model whose weights have one floating-point dtype and lie on one device; quantised models
    and those with adapters are refused. `name` is what reports call it, with "(in memory)" behind it; left out, its own
    name. The model stays as it is: its mode, its weights, their `requires_grad` and `grad` are the same after an analysis.

    Raises InvalidInput for an object that is no such model, ModelBroken for weights that are not finite, a tokenizer of
    another model, and a model that sees later tokens.

        loaded = wrap(model, tokenizer)
        loaded.anatomy.numel
    """
    tokenizer = _checked(model, tokenizer)
    # Not the bare name: these may be other weights than that name leads to, and a rerun must not take those instead.
    name = f"{name or getattr(model.config, 'name_or_path', '') or type(model).__name__} (in memory)"
    device, dtype = _one_place(name, model)
    with as_loaded(model):
        check_finite(name, model)
        _check_logits(name, model, tokenizer)
        if causality.sees_later_tokens(model, tokenizer.all_special_ids):
            raise ModelBroken(
                f"{name} ({type(model).__name__}) sees later tokens, so its loss is no perplexity",
                hint="cwtool analyses causal language models; docs/architectures.md lists those that work",
            )
        unbatched_above, on_batches = batching(model, tokenizer)
        anatomy = anatomy_of(model)
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        anatomy=anatomy,
        source=ModelSource(name, SourceKind.MEMORY, f"{type(model).__module__}.{type(model).__qualname__}"),
        revision=None,
        files={},  # its weights may change: `hashed` says which they are
        device=device,
        dtype=dtype,
        notes=tuple(filter(None, (on_batches, notes_on_norms(anatomy)))),
        unbatched_above=unbatched_above,
    )


def hashed(loaded: LoadedModel) -> LoadedModel:
    """The same, with a hash of the weights as they are now where they come from no file."""
    if loaded.source.kind is not SourceKind.MEMORY:
        return loaded
    sums = sorted(checksum(loaded.model).items())
    return dataclasses.replace(loaded, files={WEIGHTS: hashlib.sha256(repr(sums).encode()).hexdigest()})


@contextmanager
def as_loaded(model: PreTrainedModel) -> Iterator[None]:
    """Within, the model is as `load_model` gives one; on exit its modes, flags, gradients and hooks are as before.

    Modes of torch around it, such as no_grad, inference_mode and autocast, do not reach inside.
    """
    modes = {module: module.training for module in model.modules()}
    kept = {parameter: (parameter.requires_grad, parameter.grad) for parameter in model.parameters()}
    trainable = _trainable(model)
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.autocast(model.device.type, enabled=False))
        hooks = cancel_between_blocks(model)
        try:
            model.train(False)
            for name, parameter in model.named_parameters():
                parameter.grad = None
                parameter.requires_grad_(trainable.get(name, True))
            yield
        finally:
            for hook in hooks:
                hook.remove()
            for module, training in modes.items():
                module.training = training
            for parameter, (requires_grad, grad) in kept.items():
                parameter.requires_grad_(requires_grad)
                parameter.grad = grad


def _trainable(model: PreTrainedModel) -> dict[str, bool]:
    """Which parameters the loss is differentiated by in a model as its class makes it: a few freeze tables of positions."""
    try:
        made = empty_model(model.config, model.dtype)
    except (ValueError, TypeError, AttributeError, RuntimeError):  # a class that transformers does not know
        return {}
    return {name: parameter.requires_grad for name, parameter in made.named_parameters()}


def _checked(model: object, tokenizer: object) -> PreTrainedTokenizerBase:
    """The tokenizer. Raises InvalidInput for what is no plain model of transformers, or no tokenizer."""
    kind = f"{type(model).__module__}.{type(model).__qualname__}"
    if not isinstance(model, PreTrainedModel):
        hint = "give a PreTrainedModel: of a PEFT model `merge_and_unload()`, of a compiled one `_orig_mod`"
        raise InvalidInput(f"a {kind} is no model of transformers", hint)
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        given = "no tokenizer is given" if tokenizer is None else f"a {type(tokenizer).__name__} is no tokenizer"
        raise InvalidInput(f"{given} for the {kind}", hint="tokenizer=AutoTokenizer.from_pretrained(...) of this model")
    if not tokenizer("a", add_special_tokens=False)["input_ids"]:
        raise ModelBroken("the tokenizer gives no token for 'a'", hint="load it from the folder or repository again")
    quantised = getattr(model, "is_quantized", False) or getattr(model.config, "quantization_config", None)
    if quantised:
        raise InvalidInput(f"the {kind} is quantised", hint="give its name: `load_model` restores quantised weights")
    if getattr(model, "_hf_peft_config_loaded", False):
        raise InvalidInput(f"the {kind} has adapters", hint="merge them into the weights first")
    return tokenizer


def _one_place(name: str, model: PreTrainedModel) -> tuple[torch.device, str]:
    """(device, dtype) that all weights share. Raises InvalidInput where they do not."""
    weights = dict(model.named_parameters())
    devices = sorted({str(weight.device) for weight in weights.values()})
    if devices == ["meta"] or not weights:
        raise InvalidInput(f"{name} has no weights in memory", hint="load it with from_pretrained")
    if len(devices) > 1:
        raise InvalidInput(
            f"{name} lies on {' and '.join(devices)}", hint="load it without device_map, or bring it to one device"
        )
    dtypes = sorted({str(weight.dtype).removeprefix("torch.") for weight in weights.values()})
    if len(dtypes) > 1:
        raise InvalidInput(f"{name} has weights in {' and '.join(dtypes)}", hint=f"model.to(torch.{dtypes[-1]})")
    if all(weight.dtype not in WEIGHT_DTYPES for weight in weights.values()):
        raise InvalidInput(f"{name} has weights in {dtypes[0]}", hint="model.to(torch.float32)")
    for path, weight in weights.items():
        if weight.is_inference():
            raise InvalidInput(f"{path} of {name} was made in inference mode", hint="load the model outside of it")
        if not weight.is_contiguous():
            raise InvalidInput(f"{path} of {name} is not contiguous", hint="weight.data = weight.data.contiguous()")
    return next(iter(weights.values())).device, dtypes[0]


@torch.no_grad()
def _check_logits(name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises InvalidInput for a model without a head, ModelBroken for a tokenizer with tokens that the model has not."""
    output = model(input_ids=torch.zeros(1, 2, dtype=torch.long, device=model.device), use_cache=False)
    logits = getattr(output, "logits", None)
    known = config_number(model, "vocab_size") or 2
    if not isinstance(logits, Tensor) or logits.shape[:2] != (1, 2) or logits.dim() != 3 or logits.shape[2] < known:
        raise InvalidInput(
            f"{name} ({type(model).__name__}) gives no logits of all its {known:,} tokens",
            hint="give a model of AutoModelForCausalLM, with a config of return_dict=True",
        )
    embedded = model.get_input_embeddings().get_parameter("weight").shape[0]
    ids = tokenizer("a", add_special_tokens=False)["input_ids"]
    if max(ids) >= embedded:
        raise ModelBroken(
            f"the tokenizer gives token {max(ids)}, but {name} knows only {embedded}",
            hint="give the tokenizer of this model",
        )
