"""The grid of a study: what a cell says in each state, what is left out at 80 columns, and which values are behind it."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from cwa_daemon.protocol import StageProgress
from cwa_engine.base.errors import NotFound
from cwa_engine.records.run_summary import RunSummary
from cwa_engine.studies.progress import CellProgress
from cwa_engine.studies.study import Cell, Study, cells_of
from cwa_tui.cli.lines import as_lines
from cwa_tui.tables.study import counted, failures, left_out, study_grid
from tests.tui.fake_client import FakeDaemon
from tests.tui.finished_run import finished

METRICS = ("grad_x_weight", "magnitude")


@pytest.fixture(scope="module")
def summary() -> RunSummary:
    return finished(FakeDaemon()).summary


def cells(count: int, metrics: tuple[str, ...] = METRICS) -> tuple[Cell, ...]:
    models = tuple(f"EleutherAI/pythia-{number}m" for number in range(count))
    return cells_of(Study(run={"metrics": metrics}, grid={"model": models}))


def test_each_state_has_its_sign_and_word_and_a_running_cell_its_stage(summary: RunSummary) -> None:
    first, second, third, fourth = cells(4)
    at = [
        CellProgress(first, "done", "r1", reused=True),
        CellProgress(second, "running", "r2"),
        CellProgress(third, "failed", "r3", NotFound("there is no such model", hint="type it anew"), attempt=2),
        CellProgress(fourth, "waiting"),
    ]
    stage = StageProgress(stage="score", done=3, total=12, unit="sequence")
    rows = study_grid(at, {"r1": summary}, {"r2": stage}).rows
    states = [row.cells["state"] for row in rows]
    assert states == ["✓ done, reused", "▶ score 3/12 ██░░░░", "✗ failed, try 2", "· waiting"]
    assert rows[2].cells["why"] == "there is no such model (type it anew)"
    assert failures(at) == ["3 EleutherAI/pythia-2m: there is no such model (type it anew)"]
    assert counted(at) == "1 of 4 done, 1 failed, 1 running, 1 waiting"


def test_a_done_cell_has_the_ratio_of_the_largest_k_that_was_compared_of_each_metric(summary: RunSummary) -> None:
    table = study_grid([CellProgress(cells(1)[0], "done", "r1")], {"r1": summary}, {})
    for metric in METRICS:
        compared = [row for row in summary.damage if row.metric == metric and row.critical and row.controls]
        largest = max(compared, key=lambda row: row.k)
        assert largest.k == 4
        assert largest.critical is not None
        assert table.rows[0].values[metric] == largest.critical.perplexity_ratio
        assert table.rows[0].values[f"{metric} k"] == 4
        assert table.rows[0].values[f"{metric} verdict"] == largest.verdict
        assert table.rows[0].cells[metric].startswith("x")
        assert table.rows[0].cells[metric][-1] in "▲▼≈?"


def test_metrics_that_do_not_fit_are_left_out_and_named() -> None:
    many = ("grad_x_weight", "magnitude", "wanda", "obd", "taylor")
    table = study_grid([CellProgress(cell, "queued") for cell in cells(2, many)], {}, {})
    assert left_out(table, 200) == []
    assert left_out(table, 80) == ["wanda", "obd", "taylor"]
    console = Console(file=io.StringIO(), width=80, no_color=True)
    console.print(as_lines(table))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert max(map(len, lines)) <= 80
    assert "○ queued" in lines[2]


def test_what_varies_beside_the_model_has_a_column() -> None:
    study = Study(run={"metrics": METRICS}, grid={"seed": (0, 1), "model": ("gpt2",)})
    table = study_grid([CellProgress(cell, "queued") for cell in cells_of(study)], {}, {})
    assert [column.key for column in table.columns][:4] == ["cell", "model", "seed", "state"]
    assert [row.cells["seed"] for row in table.rows] == ["0", "1"]
