"""Two tests at loading: do logits depend on earlier tokens only, and do they depend on the rest of the batch?

The loss is a perplexity only if a token sees no later token, and it may be measured in batches only if a text has the same
logits in a batch as alone.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from cwa_engine.models.anatomy import longest_sequence
from cwa_engine.models.forward import logits_of

TOKENS = 24  # of the longer test texts; the first half is common to both

# Limits in units of the logits' standard deviation, measured on all architectures of transformers 5.23 with random weights
# in float32. Models that see later tokens differ by 6e-4 to 3, the others by at most 3e-7. In a batch with a longer text
# logits differ by 3e-3 to 1 if the batch matters, else by at most 2e-5.
_LEAK = {torch.float32: 1e-5, torch.float64: 1e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}
_OTHERWISE = {torch.float32: 2e-4, torch.float64: 2e-4, torch.bfloat16: 0.2, torch.float16: 5e-2}

# One of these config fields makes a decoder of an encoder for which transformers has a causal class.
_SWITCHES = ("is_decoder", "causal")


def as_decoder(config: PretrainedConfig) -> str | None:
    """Switch a config to that of a decoder. Returns the name of the switched field; None if there is none."""
    for name in _SWITCHES:
        if getattr(config, name, None) is False:
            setattr(config, name, True)
            return name
    return None


@torch.inference_mode()
def sees_later_tokens(model: PreTrainedModel, avoided: Iterable[int] = ()) -> bool:
    """Whether the logits at a common beginning of two texts differ. `avoided` are special tokens, which are not used."""
    texts = _texts(model, avoided)
    ours, theirs = logits_of(model, texts, None)[:, : texts.shape[1] // 2]
    return _differ(ours, theirs, _LEAK)


@torch.inference_mode()
def depends_on_batch(model: PreTrainedModel, avoided: Iterable[int] = ()) -> bool:
    """Whether a text's logits in a batch with a longer text differ from those of the text alone."""
    texts = _texts(model, avoided)
    short = texts.shape[1] // 2
    mask = torch.ones_like(texts)
    mask[0, short:] = 0
    alone = logits_of(model, texts[:1, :short], None)[0]
    beside = logits_of(model, texts * mask, mask)[0, :short]
    return _differ(alone, beside, _OTHERWISE)


def unbatched_above_of(config: PretrainedConfig) -> int | None:
    """The most tokens of a text that may share a batch with others; None if there is no limit.

    longrope uses other factors for all positions of a batch as soon as one text exceeds the length of pretraining.
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
