"""What captions say of a run: the model, the texts and how they were measured. torch-free."""

from __future__ import annotations

from cwa_engine.data.token_text import visible
from cwa_engine.records.run_report import RunReport
from cwa_engine.rows import MATRICES

NATS = "change of the loss (nats per token)"


def model_of(report: RunReport) -> str:
    """The model with its dtype: `gpt2 in bfloat16`."""
    return f"{visible(report.model.name)} in {report.model.dtype}"


def measured_on(report: RunReport) -> str:
    """A sentence on what damage was measured on."""
    texts = report.texts.damage or report.texts.evaluation
    return (
        f"Measured on {texts:,} evaluation texts of {visible(report.texts.source)} ({report.baseline.protocol}); "
        f"the intact model has perplexity {report.baseline.perplexity:.4g}."
    )


def scored_on(report: RunReport) -> str:
    """A sentence on what weights were ranked by."""
    return f"Ranked by {report.texts.scoring:,} scoring texts of {visible(report.texts.source)}."


def ranking_of(metric: str) -> str:
    """A ranking in words."""
    if metric.endswith(MATRICES):
        return f"{metric.removesuffix(MATRICES)} among the matrices of blocks"
    return metric
