"""A study of tiny models with a question of its own, for screens: its answer is made of nothing but how many runs are done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from cwa_engine.base.table import Table
from cwa_engine.questions.question import TableRows
from cwa_engine.records.run_summary import DamageSummary
from cwa_engine.studies.answer import Answer, Finding, StudyQuestion, StudyRun
from cwa_engine.studies.study import Study
from tests.tui.fake_client import FakeDaemon
from tests.tui.finished_run import finished

MODELS = ("tiny-a", "tiny-b", "tiny-c", "tiny-d")
RUN = {"metrics": ["grad_x_weight", "magnitude"], "topk": [1, 4]}


@dataclass(frozen=True)
class Size:
    """A row of the answer."""

    model: str
    parameters: int
    damage: float
    low: float
    high: float


SIZES_TABLE = Table("sizes.csv", Size)


def answer(runs: Sequence[StudyRun]) -> Answer:
    rows = [
        Size(run.cell.spec.model, 1000 * 10**place, 0.5 + place, 0.4 + place, 0.6 + place)
        for place, run in enumerate(runs)
    ]
    findings = (Finding("damage grows by 1.0 [0.8, 1.2] nats a decade", "a size that lies outside"),)
    refused = ("no law is fitted to fewer than four sizes",)
    cells = TableRows(Table("models.csv", Size), rows)
    tables = (TableRows(SIZES_TABLE, rows), cells)
    return Answer("sizes", f"damage grows over {len(runs)} models", findings, tables, refused, "the slope of a line")


QUESTION = StudyQuestion("sizes", 1, "does damage grow with size?", "models of two sizes", lambda study: None, answer)


def study(models: Sequence[str] = MODELS, question: str = "sizes") -> Study:
    return Study(question=question, name="four sizes", run=RUN, grid={"model": tuple(models)})


def ends(daemon: FakeDaemon, run_id: str) -> None:
    """Let a queued run end with the results of a tiny model, in which figures stand that are the same everywhere."""
    made = finished(FakeDaemon())
    damage = tuple(_certain(group) for group in made.summary.damage)
    daemon.reports[run_id] = replace(made, summary=replace(made.summary, run_id=run_id, damage=damage))
    daemon.say(run_id, "state", state="running", error=None)
    daemon.end(run_id)


def _certain(group: DamageSummary) -> DamageSummary:
    if group.critical is None:
        return group
    return replace(group, critical=replace(group.critical, perplexity_ratio=4.62 + group.k), outcome="harmful")
