"""What captions say of a run, a study or a weight: the model, the texts and how they were measured. torch-free."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import PurePath

from cwa_engine.base.table import Row, Table
from cwa_engine.data.token_text import visible
from cwa_engine.records.compared import Comparison
from cwa_engine.records.run_report import RunReport
from cwa_engine.rows import GIVEN, MATRICES, Baseline, TextUse
from cwa_engine.studies.report import StudyReport
from cwa_engine.weight_rows import WeightCard

NATS = "change of the loss (nats per token)"
LAYER_OUTSIDE = "outside"  # what stands for a layer outside the decoder blocks


def model_of(report: RunReport) -> str:
    """The model with its dtype: `gpt2 in bfloat16`."""
    return f"{name_of(report.model.name)} in {report.model.dtype}"


def card_model(card: WeightCard) -> str:
    """The weight and its model."""
    return f"{visible(card.facts.target)} of {name_of(card.model)} in {card.dtype}"


def name_of(source: str) -> str:
    """A model or a file of texts, of a path the last part alone; what cannot be seen is spelled out."""
    return visible(PurePath(source).name or source if source.startswith(("/", "~", ".")) else source)


def measured_on(report: RunReport) -> str:
    """A sentence on what damage was measured on."""
    return _measured(report.texts, report.baseline)


def measured_by_card(card: WeightCard) -> str:
    """The same of a weight card."""
    return _measured(card.texts, card.baseline)


def _measured(texts: TextUse, baseline: Baseline) -> str:
    count = texts.damage or texts.evaluation
    what = "windows of the evaluation texts" if texts.packed else "evaluation texts"
    return (
        f"Measured on {count:,} {what} of {name_of(texts.source)} ({baseline.protocol}); the intact model has perplexity "
        f"{baseline.perplexity:.4g}."
    )


def scored_on(report: RunReport) -> str:
    """A sentence on what weights were ranked by."""
    return f"Ranked by {report.texts.scoring:,} scoring texts of {name_of(report.texts.source)}."


def study_runs(report: StudyReport) -> str:
    """A sentence on the runs of a study: their number, models and texts."""
    reports = [run.report for run in report.runs]
    models = _some(dict.fromkeys(name_of(each.model.name) for each in reports), "models")
    texts = _some(dict.fromkeys(name_of(each.texts.source) for each in reports), "sources of texts")
    protocols = "; ".join(dict.fromkeys(each.baseline.protocol for each in reports))
    return f"{len(reports):,} runs of {models} on {texts} ({protocols})."


def compared(found: Comparison) -> str:
    """A sentence on the runs of a comparison."""
    runs = "; ".join(f"{run.label} of {name_of(run.model)}" for run in found.runs)
    return f"Runs {runs}{f'; {visible(found.differing)}' if found.differing else ''}."


def _some(names: dict[str, None], what: str) -> str:
    return ", ".join(names) if len(names) <= 4 else f"{len(names):,} {what}"


def rows_of(report: StudyReport, table: Table[Row]) -> Sequence[Row]:
    """The rows of one table of a study's answer; none where it has no such table."""
    tables = report.answer.tables if report.answer else ()
    return next((found.rows for found in tables if found.table == table), ())


def ranking_of(metric: str) -> str:
    """A ranking in words: what stands after "the top k by"."""
    if metric == GIVEN:
        return "the order in which weights were given"
    if metric.endswith(MATRICES):
        return f"{metric.removesuffix(MATRICES)} among the matrices of blocks"
    return metric


def units_of(report: RunReport, metric: str) -> str:
    """What a metric ranked: "weights", "rows", "columns" or "heads"."""
    return next((f"{head.structure}s" for head in report.summary.rankings if head.metric == metric), "weights")


def linear_within(report: RunReport) -> float:
    """Up to where an axis of changes of the loss is linear: the numerical floor, or 0.001 where that is less."""
    return max(report.floor.largest if report.floor else 0.0, 1e-3)


def finite(value: float) -> float | None:
    """The value; None where it is not finite."""
    return value if math.isfinite(value) else None
