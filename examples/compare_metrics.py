"""Which metric finds the weights that matter? Measured: the loss change of zeroing a sample of weights one by one."""

from __future__ import annotations

from tiny_model import sentences, trained

import cwa_engine as cwa

METRICS = ["grad_x_weight", "taylor", "magnitude", "wanda"]

model, tokenizer = trained()
report = cwa.analyze(
    model, tokenizer=tokenizer, texts=sentences(48, seed=2), metrics=METRICS, topk=[20], perturbations=[], fidelity=40,
    matrices=False,
)  # fmt: skip

print(report.frame("fidelity").to_string(index=False))
tops = {metric: {weight.target for weight in report.topk(metric)} for metric in METRICS}
for metric in METRICS[1:]:
    print(f"{metric} shares {len(tops[metric] & tops[METRICS[0]])} of its top 20 with {METRICS[0]}")
