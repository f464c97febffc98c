"""A question to several models: how does damage go with size? Its answer, what would overturn it, and its figures."""

from __future__ import annotations

import tempfile
from pathlib import Path

from tiny_model import saved, sentences

import cwa_engine as cwa

folder = Path(tempfile.mkdtemp(prefix="cwtool-study-"))
models = [str(saved(folder / f"width-{width}", width=width)) for width in (16, 24, 32, 48)]
texts = folder / "texts.txt"
texts.write_text("\n\n".join(sentences(48, seed=2)))

study = cwa.Study(
    question="scaling",
    grid={"model": models},
    run={"topk": [10], "data_file": str(texts), "control_seeds": 19, "controls": ["random"]},
)
with cwa.LocalRunner(folder / "runs") as runner:
    answered = cwa.run_study(study, on=runner, folder=folder / "studies")

assert answered.answer is not None
print(answered.answer.sentence)
for finding in answered.answer.findings:
    print(f"- {finding.sentence}\n  overturned by: {finding.overturned_by}")
print(answered.frame("scaling")[["parameters", "damage", "low", "high", "outcome"]].to_string(index=False))
for figure in cwa.figures_of(answered):
    for path in cwa.write_figure(figure, folder / "figures", ("svg", "pdf")):
        print(path)
