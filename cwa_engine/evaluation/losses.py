"""The loss of a model on some sequences, as plain numbers. torch-free, because losses are also read from files."""

from __future__ import annotations

from dataclasses import dataclass

from cwa_engine.base.statistics import Array
from cwa_engine.rows import exp


@dataclass(frozen=True)
class Evaluation:
    """The NLL of each sequence, from which every statistic is made."""

    nll_sums: Array  # nats [sequences]
    tokens: Array  # scored tokens [sequences]

    @property
    def nll(self) -> float:
        """Mean NLL in nats per token; NaN or infinite if the model collapsed."""
        return float(self.nll_sums.sum() / self.tokens.sum())

    @property
    def perplexity(self) -> float:
        return exp(self.nll)
