"""A model on torch's "meta" device: names, shapes and sizes of its parameters, without memory for them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from cwa_engine.base.cancellation import check_cancelled
from cwa_engine.base.errors import ModelBroken

_MOST_PARAMETERS = 500_000  # tensors of a model; DeepSeek-V3 has 46,000 if experts are separate tensors


def empty_model(config: PretrainedConfig, dtype: torch.dtype, trust_remote_code: bool = False) -> PreTrainedModel:
    """A causal language model of this config on torch's device "meta"."""
    make: Any = AutoModelForCausalLM.from_config
    with torch.device("meta"), no_init_weights(), _counted():
        model: PreTrainedModel = make(config, dtype=dtype, trust_remote_code=trust_remote_code)
    model.tie_weights()
    return model


@contextmanager
def _counted() -> Iterator[None]:
    """Make building a model cancellable. Raises ModelBroken if the config makes more than _MOST_PARAMETERS tensors."""
    count = 0

    def hear(module: torch.nn.Module, name: str, parameter: torch.nn.Parameter | None) -> None:
        nonlocal count
        count += 1
        check_cancelled()
        if count > _MOST_PARAMETERS:
            raise ModelBroken(
                f"the config describes a model of more than {_MOST_PARAMETERS:,} tensors, and no model has so many",
                hint="download or save the model again",
            )

    handle = torch.nn.modules.module.register_module_parameter_registration_hook(hear)
    try:
        yield
    finally:
        handle.remove()
