"""Your own metric: a function from weights and their statistics to scores. Everything else takes it by its name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tiny_model import sentences, trained

import cwa_engine as cwa
from cwa_engine.methods.metrics import Needs, WeightStats, metric

if TYPE_CHECKING:
    from torch import Tensor


@metric("squared_taylor", "w² mean_s (dL_s/dw)²", Needs.FISHER, "Molchanov et al. 2019, eq. 8, per sequence")
def squared_taylor(weight: Tensor, stats: WeightStats) -> Tensor:
    """Mean over sequences of the squared first-order loss change of zeroing each weight. Shape of `weight`."""
    assert stats.fisher is not None
    return weight.square() * stats.fisher


model, tokenizer = trained()
report = cwa.analyze(
    model, tokenizer=tokenizer, texts=sentences(48, seed=2), metrics=["squared_taylor", "magnitude"], topk=[20],
    controls=["random"], matrices=False,
)  # fmt: skip
for verdict in report.verdicts:
    print(f"{verdict.metric}: {verdict.sentence}")
