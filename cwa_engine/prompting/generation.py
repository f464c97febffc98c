"""Tokens one by one: the model's own forward pass with its cache of keys and values, and a choice among its predictions."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cwa_engine.models.anatomy import config_number
from cwa_engine.models.failures import is_out_of_memory
from cwa_engine.models.forward import logits_of
from cwa_engine.models.loading import LoadedModel
from cwa_engine.models.precision import doubled
from cwa_engine.prompt_rows import COLLAPSED, END_TOKEN, LENGTH, POSITIONS

# A cached step may round otherwise than a whole pass. In units of the logits' standard deviation; a cache that is wrong
# differs by 0.05 to 3 in models with random weights.
_ROUNDING = {torch.float32: 1e-3, torch.float64: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.05}

# What forward passes of hybrid and state-space models raise that are handed the cache of another kind of layers.
_NO_CACHE = (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)


class Choice:
    """The next token, by its logits. Two of the same seed draw the same random numbers, step by step.

    At temperature 0 it is the likeliest token. Else it is argmax(logits / temperature + g) with g from the standard Gumbel
    distribution for each token (Gumbel 1954), which samples from softmax(logits / temperature). As both models get the same
    g, they choose the same token wherever their predictions agree: two distributions with total variation d choose different
    tokens with probability 2 d / (1 + d) at most. What differs is then due to the damage, not to the draws.
    """

    def __init__(self, temperature: float, seed: int) -> None:
        self._temperature = temperature
        self._generator = torch.Generator().manual_seed(seed)  # of the CPU, so that a seed means the same on any device

    def __call__(self, logits: Tensor) -> int:
        """The token for logits [vocabulary]."""
        if self._temperature == 0:
            return int(logits.float().argmax())
        uniform = torch.rand(len(logits), generator=self._generator, dtype=torch.float64)
        gumbel = -(-uniform.log()).log()
        return int((logits.cpu().double() / self._temperature + gumbel).argmax())


@dataclass(frozen=True, slots=True)
class Continuation:
    """The tokens that a model goes on with, an end token among them, and why it stopped (see `prompt_rows`)."""

    ids: tuple[int, ...]
    end: str


@torch.inference_mode()
def continuation(
    loaded: LoadedModel,
    prompt: Sequence[int],
    new_tokens: int,
    choose: Choice,
    ends: frozenset[int],
    tell: Callable[[Sequence[int]], None],
) -> Continuation:
    """Go on from a prompt. `tell(tokens so far)` is called after each token."""
    room = max(0, (loaded.max_tokens or len(prompt) + new_tokens) - len(prompt))
    steps = Steps(loaded)
    ids: list[int] = []
    for _ in range(min(new_tokens, room)):
        logits = steps.next_logits([*prompt, *ids])
        if not logits.isfinite().all():
            return Continuation(tuple(ids), COLLAPSED)
        ids.append(choose(logits))
        tell(ids)
        if ids[-1] in ends:
            return Continuation(tuple(ids), END_TOKEN)
    return Continuation(tuple(ids), POSITIONS if room < new_tokens else LENGTH)


class Steps:
    """Logits of one next token after the other. Without a cache that can be relied on, each is of a whole forward pass."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded
        self._cached = cache_is_right(loaded)
        self._cache: Any = None

    def next_logits(self, ids: Sequence[int]) -> Tensor:
        """Logits [vocabulary] after these tokens, of which the last is new."""
        if len(ids) - 1 == self._loaded.unbatched_above:  # from here on, longrope turns all positions by other factors
            self._cache = None
        new = ids[-1:] if self._cache is not None else ids
        tokens = torch.tensor([new], device=self._loaded.device)  # [1, new]
        if not self._cached:
            return logits_of(self._loaded.model, tokens, None)[0, -1]
        logits, self._cache = _forward(self._loaded.model, tokens, self._cache)
        return logits[0, -1]


def cache_is_right(loaded: LoadedModel) -> bool:
    """Whether steps with the model's cache give what whole forward passes give. Tried once for each model."""
    return loaded.facts.once("cache of keys and values", lambda: _tried(loaded))


def _tried(loaded: LoadedModel) -> bool:
    count = min(8, config_number(loaded.model, "vocab_size") or 2)
    ids = torch.arange(count, device=loaded.device)[None]  # [1, count]
    with torch.inference_mode():
        whole = doubled(logits_of(loaded.model, ids, None)[0, -3:])
        cache: Any = None
        stepped = []
        for start, stop in ((0, count - 2), (count - 2, count - 1), (count - 1, count)):
            try:
                logits, cache = _forward(loaded.model, ids[:, start:stop], cache)
            except _NO_CACHE as error:
                if is_out_of_memory(error):
                    raise
                return False
            if cache is None:
                return False
            stepped.append(doubled(logits[0, -1]))
    difference = float((torch.stack(stepped) - whole).abs().max() / whole.std())
    return difference < _ROUNDING[loaded.model.dtype]  # False for NaN


def _forward(model: nn.Module, tokens: Tensor, cache: Any) -> tuple[Tensor, Any]:
    """(logits [1, tokens or 1, vocabulary], cache) of tokens that follow those in the cache; None for no cache."""
    options: dict[str, Any] = {"use_cache": True}
    if cache is not None:
        options["past_key_values"] = cache
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        options["logits_to_keep"] = 1  # those of a long prompt would take gigabytes
    output = model(input_ids=tokens, **options)
    return output.logits, getattr(output, "past_key_values", None)
