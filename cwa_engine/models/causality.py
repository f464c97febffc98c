"""Whether a model's logits depend only on what a token may see: the tokens before it, and no other sequence's length.

Only then is the loss that is measured a perplexity, and the same alone and in a batch. Both are tried when a model is loaded.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from cwa_engine.models.anatomy import longest_sequence
from cwa_engine.models.forward import logits_of

TOKENS = 24  # of the longer texts that are tried; half of them are common to both

# As parts of the logits' standard deviation. Measured on all architectures of transformers 5.23 with random weights in
# float32: models that see later tokens differ by 6e-4 to 3, the others by 3e-7 at the most; a text beside a longer one
# differs by 3e-3 to 1 where that changes what is computed, elsewhere by 2e-5 at the most.
_LEAK = {torch.float32: 1e-5, torch.float64: 1e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}
_OTHERWISE = {torch.float32: 2e-4, torch.float64: 2e-4, torch.bfloat16: 0.2, torch.float16: 5e-2}

# Encoders that transformers has a causal class for become decoders by one of these fields of their config.
_SWITCHES = ("is_decoder", "causal")


def as_decoder(config: PretrainedConfig) -> str | None:
    """Switch a config to one of a decoder. Gives the field that was switched, None where there is none to switch."""
    for name in _SWITCHES:
        if getattr(config, name, None) is False:
            setattr(config, name, True)
            return name
    return None


@torch.inference_mode()
def sees_later_tokens(model: PreTrainedModel, avoided: Iterable[int] = ()) -> bool:
    """Whether the logits of a common beginning differ between two texts. `avoided` are special tokens."""
    texts = _texts(model, avoided)
    ours, theirs = logits_of(model, texts, None)[:, : texts.shape[1] // 2]
    return _differ(ours, theirs, _LEAK)


@torch.inference_mode()
def depends_on_batch(model: PreTrainedModel, avoided: Iterable[int] = ()) -> bool:
    """Whether a text's logits are others beside a longer text than alone."""
    texts = _texts(model, avoided)
    short = texts.shape[1] // 2
    mask = torch.ones_like(texts)
    mask[0, short:] = 0
    alone = logits_of(model, texts[:1, :short], None)[0]
    beside = logits_of(model, texts * mask, mask)[0, :short]
    return _differ(alone, beside, _OTHERWISE)


def unbatched_above_of(config: PretrainedConfig) -> int | None:
    """How many tokens a text may have to be batched with others: longer ones change the positions of the whole batch.

    longrope takes other factors for all positions as soon as one text exceeds the length of pretraining.
    """
    parameters = getattr(config.get_text_config(decoder=True), "rope_parameters", None) or {}
    kinds = [parameters, *(kind for kind in parameters.values() if isinstance(kind, dict))]
    limits = [
        int(kind["original_max_position_embeddings"])
        for kind in kinds
        if kind.get("rope_type") == "longrope" and kind.get("short_factor") != kind.get("long_factor")
    ]
    return min(limits, default=None)


def _texts(model: PreTrainedModel, avoided: Iterable[int]) -> Tensor:
    """Two texts of ordinary tokens with a common first half. [2, tokens]"""
    known = model.get_input_embeddings().get_parameter("weight").shape[0]
    usable = torch.tensor(sorted(set(range(known)) - set(avoided)) or range(known))
    tokens = min(TOKENS, longest_sequence(model) or TOKENS)
    drawn = torch.randint(len(usable), (2, tokens), generator=torch.Generator().manual_seed(0))
    drawn[1, : tokens // 2] = drawn[0, : tokens // 2]
    return usable[drawn].to(model.device)


def _differ(first: Tensor, second: Tensor, tolerances: dict[torch.dtype, float]) -> bool:
    tolerance, precise = tolerances[first.dtype], torch.promote_types(first.dtype, torch.float32)
    return bool((first.to(precise) - second.to(precise)).abs().max() > tolerance * first.to(precise).std())
