"""Rank the weights of a model, damage the highest ranked, and see whether that is worse than what controls do."""

from __future__ import annotations

from tiny_model import sentences, trained

import cwa_engine as cwa

model, tokenizer = trained()
report = cwa.analyze(
    model,
    tokenizer=tokenizer,
    texts=sentences(64, seed=2),
    metrics=["grad_x_weight"],
    topk=[5, 20],
    controls=["random"],
)

print(f"intact perplexity {report.baseline.perplexity:.2f} ({report.baseline.protocol})")
for weight in report.topk()[:5]:
    print(f"{weight.rank:2} {weight.target}  value {weight.value:.3f}  score {weight.score:.4f}")
for verdict in report.verdicts:
    print(f"k={verdict.k} by {verdict.metric}: {verdict.sentence}")
