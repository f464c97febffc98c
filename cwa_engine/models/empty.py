"""A model whose weights have no memory: its names, shapes and sizes."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights


def empty_model(config: PretrainedConfig, dtype: torch.dtype, trust_remote_code: bool = False) -> PreTrainedModel:
    """A causal language model of this config on torch's device "meta"."""
    make: Any = AutoModelForCausalLM.from_config
    with torch.device("meta"), no_init_weights():
        model: PreTrainedModel = make(config, dtype=dtype, trust_remote_code=trust_remote_code)
    model.tie_weights()
    return model
