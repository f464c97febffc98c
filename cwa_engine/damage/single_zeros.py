"""The NLL of texts with one weight zeroed, for many weights: from the first block that a weight changes, many at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from cwa_engine.base.statistics import Array
from cwa_engine.damage.copies import NotCopyable, Zeroed, owners_of, zeroed_in_copies
from cwa_engine.damage.patch import patched
from cwa_engine.data.tokens import TokenSequence, batched
from cwa_engine.evaluation.perplexity import measured_nll, nll_from
from cwa_engine.evaluation.resume import CachedStates, cache_states
from cwa_engine.methods.perturbations import PERTURBATIONS
from cwa_engine.models.chain import Chain, NotAChain, ResumePoint
from cwa_engine.models.loading import LoadedModel
from cwa_engine.rows import TopWeight

TOKENS = {"cpu": 512}  # of all copies together that go through the model at once,
TOKENS_ELSEWHERE = 8192  # and on what is not a CPU


class SingleZeros:
    """Measures texts with one weight after the other zeroed, beside whatever is damaged in the model already.

    `texts` are the sequences from the longest to the shortest, `tokens` and `intact` their scored tokens and NLL sums
    where no further weight is zeroed. `spent` counts the work in forward passes over all texts; a pass that begins at a
    block counts as the part of the matrices that it goes through.
    """

    def __init__(
        self, loaded: LoadedModel, sequences: Sequence[TokenSequence], tick: Callable[[], None] = lambda: None
    ) -> None:
        """`tick` is called after every forward pass: what it raises ends the measuring."""
        self._loaded, self._tick = loaded, tick
        try:
            self._kept: CachedStates | None = cache_states(loaded, sequences, 1, after_batch=lambda done: tick())
        except NotAChain:
            self._kept = None
        self.texts = [batch[0] for batch in batched(sequences, 1)]  # longest first
        self._all_tokens = sum(len(text.ids) for text in self.texts)
        self.tokens = np.array([text.scored_tokens for text in self.texts], dtype=np.float64)
        self._shares = _shares(loaded, self._kept.chain) if self._kept else [1.0]
        self._owners = owners_of(loaded.model)
        self._not_copyable: set[str] = set()
        self.spent = 1 - self._shares[-1]  # what was kept took all but the tail
        tail = len(self._kept.chain.blocks) if self._kept else 0
        self.intact = np.array([self._nll(n, self._begin(n, tail)).item() for n in range(len(self.texts))])

    def nll(self, weights: Sequence[Zeroed], number: int) -> Array:
        """NLL sums of a text, each with one of these weights zeroed. [weights]"""
        found = np.full(len(weights), self.intact[number])
        groups: dict[tuple[int, bool], list[int]] = {}
        for place, weight in enumerate(weights):
            first = self._first_block(weight, number)
            if first is not None:
                groups.setdefault((first, weight.parameter.name in self._not_copyable), []).append(place)
        most = max(1, TOKENS.get(self._loaded.device.type, TOKENS_ELSEWHERE) // len(self.texts[number].ids))
        for (first, one_by_one), places in groups.items():
            point, step = self._begin(number, first), 1 if one_by_one else most
            for start in range(0, len(places), step):
                some = places[start : start + step]
                found[some] = self._measure([weights[place] for place in some], number, point)
        return found

    def reaches(self, weight: Zeroed, number: int) -> bool:
        """False for a weight of the token embedding whose token is not in the text: at most the tail depends on it."""
        if not self._kept or weight.parameter.name not in self._kept.chain.lookups:
            return True
        token = weight.flat_index // (weight.parameter.numel // weight.parameter.shape[0])
        return token in self.texts[number].ids

    def really_zeroed(self, weight: Zeroed) -> Array:
        """NLL sums of all texts with the weight written as zero, read back, and put back after. [texts]"""
        found = self.intact.copy()
        for number in range(len(self.texts)):
            first = self._first_block(weight, number)
            if first is not None:
                found[number] = self._alone(weight, number, self._begin(number, first)).item()
        return found

    def _begin(self, number: int, first: int) -> ResumePoint | None:
        """Where a text begins if nothing changes before block `first`; None for a whole forward pass."""
        return self._kept.start(number, first) if self._kept else None

    def _first_block(self, weight: Zeroed, number: int) -> int | None:
        """Where a weight begins to change what the model makes of a text; None where it does not."""
        if not self._kept:
            return 0
        chain, name = self._kept.chain, weight.parameter.name
        if not self.reaches(weight, number):
            return len(chain.blocks) if name in chain.after else None
        return chain.first_block(self._loaded, [name])

    def _measure(self, weights: Sequence[Zeroed], number: int, start: ResumePoint | None) -> Array:
        """Each weight in a copy of the text where that can be, else one after the other. [weights]"""
        if self._kept and self._not_copyable.isdisjoint(weight.parameter.name for weight in weights):
            try:
                with zeroed_in_copies(self._owners, weights):
                    return self._nll(number, start, len(weights))
            except NotCopyable as refused:
                self._not_copyable |= refused.parameters
        return np.concatenate([self._alone(weight, number, start) for weight in weights])

    def _alone(self, weight: Zeroed, number: int, start: ResumePoint | None) -> Array:
        chosen = {weight.parameter.name: np.array([weight.flat_index])}
        with patched(self._loaded.model, chosen, PERTURBATIONS["zero"], offsets=self._loaded.anatomy.offsets):
            return self._nll(number, start)

    @torch.inference_mode()
    def _nll(self, number: int, start: ResumePoint | None, copies: int = 1) -> Array:
        """NLL sums of copies of a text by the model as it is. [copies]"""
        self._tick()
        text = self.texts[number]
        self.spent += copies * self._shares[start.index if start else 0] * len(text.ids) / self._all_tokens
        if not self._kept:
            return measured_nll(self._loaded, [text]).cpu().double().numpy()
        texts = self._kept.texts[number].copies(copies)
        if start:
            start = replace(start, hidden=start.hidden.expand(copies, *start.hidden.shape[1:]))
        return nll_from(self._loaded, self._kept.chain, start, texts).cpu().double().numpy()


def _shares(loaded: LoadedModel, chain: Chain) -> list[float]:
    """What part of a forward pass is left from each block on, and from the tail on, by the size of the matrices."""
    tail = [loaded.model.get_parameter(name) for name in chain.after]
    parts = [*(block.parameters() for block in chain.blocks), tail]
    sizes = [sum(parameter.numel() for parameter in part if parameter.dim() > 1) for part in parts]
    left = np.cumsum(sizes[::-1])[::-1]
    return [float(part / left[0]) for part in left]


def zeroed(loaded: LoadedModel, unit: TopWeight) -> Zeroed:
    """What zeroing this weight alone changes."""
    return Zeroed(loaded.anatomy.parameters[unit.parameter], unit.flat_index)
