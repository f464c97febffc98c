"""The tables of a run. Those of questions are defined with their question. torch-free."""

from __future__ import annotations

from cwa_engine.base.table import Table
from cwa_engine.rows import ControlDraw, DamagePoint, ScoreBin, SequenceNll, TopWeight

PERTURBATION = Table("perturbation.csv", DamagePoint)
EVALUATION = Table("evaluation.csv", SequenceNll)
CONTROLS = Table("controls.csv", ControlDraw)
SCORES = Table("scores.csv", ScoreBin)


def topk_table(metric: str) -> Table[TopWeight]:
    """The ranking by one metric."""
    return Table(f"topk_{metric}.csv", TopWeight)
