"""The tables of a study's answer as terminals show them."""

from __future__ import annotations

import io
from dataclasses import dataclass

from rich.console import Console

from cwa_engine.base.table import Table
from cwa_engine.figures.kinds.study_answer import answer_figure
from cwa_engine.questions.question import TableRows
from cwa_tui.cli.lines import as_lines
from cwa_tui.tables.study_answer import answer_table


@dataclass(frozen=True, slots=True)
class Measured:
    model: str
    family: str
    parameters: int
    metric: str
    k: int
    perturbation: str
    damage: float
    low: float
    high: float
    note: str | None = None


ROWS = TableRows(
    Table("scaling.csv", Measured),
    [
        Measured("EleutherAI/pythia-70m", "Pythia", 70_000_000, "grad_x_weight", 10, "zero", 0.25, 0.2, 0.3),
        Measured("EleutherAI/pythia-1.4b", "Pythia", 1_400_000_000, "grad_x_weight", 10, "zero", 0.5, 0.4, 0.6),
    ],
)


def printed(width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    console.print(as_lines(answer_table(ROWS)))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_what_all_rows_have_in_common_stands_in_the_title_once() -> None:
    table = answer_table(ROWS)
    assert table.title == "scaling · of all: family Pythia, metric grad_x_weight, k 10, perturbation zero"
    assert [column.key for column in table.columns if not column.hidden] == [
        "model",
        "parameters",
        "damage",
        "low",
        "high",
    ]
    assert table.rows[0].values["k"] == 10  # hidden columns are exported, as all


def test_the_figure_and_its_interval_are_shown_in_the_narrowest_table() -> None:
    assert any(line.split()[-3:] == ["0.25", "0.2", "0.3"] for line in printed(48))


def test_a_figure_has_the_sizes_across_on_a_logarithmic_axis() -> None:
    figure = answer_figure([ROWS])
    assert figure is not None and (figure.x.title, figure.x.scale, figure.y.title) == ("parameters", "log", "damage")
    assert [(point.across, point.value, point.low, point.high) for point in figure.table.rows] == [
        (70_000_000, 0.25, 0.2, 0.3),
        (1_400_000_000, 0.5, 0.4, 0.6),
    ]
