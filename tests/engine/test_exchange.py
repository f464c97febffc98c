"""What `cwtool export` writes reads back, by other programs' readers, as what the run found."""

from __future__ import annotations

import csv
import io
import json
import math
import pkgutil
import re
import shutil
import subprocess
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import duckdb
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from pyarrow import parquet

import cwa_engine as cwa
from cwa_engine import questions
from cwa_engine.base.table import Table
from cwa_engine.exchange.latex import escape, latex
from cwa_engine.exchange.parquet import parquet_bytes
from cwa_engine.exchange.printed import Number, PrintedTable, Strong, number_texts
from cwa_engine.exchange.tables import data_table, table_names
from cwa_engine.exchange.writing import EXPORTS, one_table, printed_tables
from cwa_engine.questions.tasks import TaskComparison
from cwa_engine.records import tables as run_tables
from cwa_engine.records.run_report import FilesInMemory
from cwa_engine.studies.folder import StudyFolder
from cwa_engine.studies.registry import answered
from cwa_tui.cli.parameters import EXPORTED
from tests.engine.conftest import TEXTS
from tests.engine.study_runs import Planted, planted_run, study_runs
from tests.models import tiny_model, tiny_tokenizer

HOSTILE = r"\input{/etc/passwd} $x$ 50% a_b & <script> ^^5c ~ # { -- ''q'' ``"
ROW = tuple[Any, ...]


class SimpleRun(cwa.RunReport):
    """A report of which nothing but its tables is asked."""

    def __init__(self, contents: dict[str, bytes]) -> None:
        object.__setattr__(self, "hashes", dict.fromkeys(contents, ""))
        object.__setattr__(self, "files", FilesInMemory(contents))


@pytest.fixture(scope="module")
def report() -> cwa.RunReport:
    """A run that was asked every question."""
    return cwa.analyze(
        tiny_model("llama"), tokenizer=tiny_tokenizer(), texts=TEXTS, metrics=["grad_x_weight", "super_weight", "ablation"],
        topk=[2, 3], candidates=6, critical_set=1.01, iterate=2, stability="halves", fidelity=4, individually=True,
        control_seeds=2, controls=["random"], position_test=True, kl=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def planted() -> cwa.RunReport:
    """A run with figures of the test's own: one set that is far worse than its controls, and one that collapses."""
    cases = [
        Planted(k=1, delta=0.0123, error=0.001),
        Planted(k=10, delta=2.345, error=0.05),
        Planted(k=100, delta=math.inf),
    ]
    return planted_run(
        "evil/" + HOSTILE, damage=cases, tops={"grad_x_weight": ["model.layers.1.mlp.down_proj.weight[3,5]"]}
    )


def test_the_command_offers_the_formats_that_there_are() -> None:
    assert EXPORTED == EXPORTS


def test_every_table_that_a_run_may_have_is_known() -> None:
    modules = [import_module(f"{questions.__name__}.{each.name}") for each in pkgutil.iter_modules(questions.__path__)]
    tables = [each for module in (*modules, run_tables) for each in vars(module).values() if isinstance(each, Table)]
    assert len(tables) > 10
    for table in tables:
        report = SimpleRun({table.name: table.to_bytes([])})
        assert data_table(report, table.name).table == table


def test_a_table_of_another_version_can_be_copied_and_is_otherwise_refused_by_name(planted: cwa.RunReport) -> None:
    newer = replace(
        planted, hashes={**planted.hashes, "news.csv": ""}, files=FilesInMemory({"news.csv": b"a,b\n1,2\n"})
    )
    assert one_table(newer, "news", "csv") == b"a,b\n1,2\n"
    with pytest.raises(cwa.DataError, match="does not know the table 'news'"):
        one_table(newer, "news", "json")


def test_task_results_are_printed_with_their_intervals(planted: cwa.RunReport) -> None:
    row = TaskComparison(
        "arc", "acc", "obd", 10, "zero", "critical", None, "intact", 200, 0.5, 0.31, -0.19, -0.26, -0.12, 0.001, 0
    )
    collapsed = replace(row, k=100, after=None, difference=None, low=None, high=None, lost=3)
    asked = replace(planted, summary=replace(planted.summary, task_comparisons=(row, collapsed)))
    text = one_table(asked, "task_results", "markdown").decode()
    assert "| -0.190 [-0.260, -0.120] |" in text and "| 0.5000 |  |  |" in text and "acc of arc" in text


def test_csv_is_the_file_of_the_run_and_json_has_the_same_rows(report: cwa.RunReport, tmp_path: Path) -> None:
    cwa.export(report, tmp_path / "csv")
    cwa.export(report, tmp_path / "json", "json")
    assert {path.name for path in (tmp_path / "csv").iterdir()} == set(report.hashes)
    for file in report.hashes:
        content = (tmp_path / "csv" / file).read_bytes()
        assert content == report.files.read(file)
        rows = json.loads((tmp_path / "json" / file).with_suffix(".json").read_text())
        lines = list(csv.DictReader(io.StringIO(content.decode())))
        assert len(rows) == len(lines)
        for row, line in zip(rows, lines, strict=True):
            assert {name: as_csv(value) for name, value in row.items()} == {k: v.lower() for k, v in line.items()}


def as_csv(value: Any) -> str:
    return {"Infinity": "inf", "-Infinity": "-inf", "NaN": "nan"}.get(
        str(value), "" if value is None else repr(value) if isinstance(value, float) else str(value)
    ).lower()


def test_parquet_reads_back_as_the_same_rows_with_the_types_of_their_fields(
    report: cwa.RunReport, tmp_path: Path
) -> None:
    for name in table_names(report):
        table = data_table(report, name)
        path = tmp_path / f"{name}.parquet"
        path.write_bytes(parquet_bytes(table))
        expected = [tuple(row) for row in table.cells()]
        read = parquet.read_table(path).to_pydict()
        assert list(read) == list(table.table.columns)
        assert same_rows(list(zip(*read.values(), strict=True)), expected), name
        assert same_rows(queried(f"SELECT * FROM read_parquet('{path}')"), expected), name


def test_parquet_keeps_what_is_not_finite_and_what_is_not_there_apart(planted: cwa.RunReport, tmp_path: Path) -> None:
    [path] = cwa.export(planted, tmp_path / "p.parquet", "parquet", table="perturbation")
    rows = queried(f"SELECT k, delta_nll, seed FROM '{path}' WHERE selection = 'critical' ORDER BY k")
    assert [row[0] for row in rows] == [1, 10, 100]
    assert rows[1][1] == next(point.delta_nll for point in planted.damage if point.k == 10)
    assert not math.isfinite(rows[2][1]) and rows[2][2] is None


def queried(sql: str) -> list[ROW]:
    with duckdb.connect() as connection:
        return connection.execute(sql).fetchall()


def same_rows(ours: list[ROW], theirs: list[ROW]) -> bool:
    return [list(map(as_bits, row)) for row in ours] == [list(map(as_bits, row)) for row in theirs]


def as_bits(cell: Any) -> tuple[type, Any]:
    return type(cell), cell.hex() if isinstance(cell, float) else cell


def test_latex_has_the_damage_with_its_intervals_and_bold_where_it_is_distinguishable(planted: cwa.RunReport) -> None:
    text = one_table(planted, "damage", "latex").decode()
    points = {point.k: point for point in planted.damage if point.selection == "critical"}
    value, low, high = (
        f"{number:.2f}" for number in (points[10].delta_nll, points[10].delta_low, points[10].delta_high)
    )
    whole, fraction = value.split(".")
    assert rf"$\mathbf{{{whole}}}$ & $\mathbf{{.{fraction}}}$ & [${low}$, ${high}$]" in text
    assert r"\textbf{collapsed at" in text or "collapsed at" in text
    for said in ("95 \\%", "Bold: distinguishable", "jackknife", planted.run_id[:8], r"\toprule", r"\label{tab:"):
        assert said in text


def test_a_printed_table_of_damage_says_on_how_many_texts_the_leading_draws_were_measured(
    planted: cwa.RunReport, report: cwa.RunReport
) -> None:
    assert "measured on" not in one_table(planted, "damage", "markdown").decode()  # as runs of early versions
    text = one_table(report, "damage", "markdown").decode()
    texts = text.partition("changes the loss most, measured on ")[2].partition(" texts; p is")[0]
    assert {int(number) for number in texts.split(" or ")} <= {row.largest_texts for row in report.separations}


def test_numbers_have_the_digits_that_their_interval_decides() -> None:
    assert number_texts(Number(2.3142, 2.1011, 2.5183)) == ("2.31", "[2.10, 2.52]")
    assert number_texts(Number(-12345.6, -12600, -12000)) == ("-12350", "[-12600, -12000]")
    assert number_texts(Number(0.0000123, 0.0000120, 0.0000126)) == ("0.00001230", "[0.00001200, 0.00001260]")
    assert number_texts(Number(1.234e12, 1.1e12, 1.3e12)) == ("1.23e+12", "[1.10e+12, 1.30e+12]")
    assert number_texts(Number(0.98765, digits=4)) == ("0.9877", "")
    assert number_texts(Number(123456.0)) == ("123456", "")
    assert number_texts(Number(-0.0004, -0.02, 0.02)) == ("0.000", "[-0.020, 0.020]")
    assert number_texts(Number(math.nan)) == number_texts(Number(None)) == ("n/a", "")


@given(st.floats(-1e9, 1e9), st.floats(1e-9, 1e6))
def test_a_printed_number_is_off_by_less_than_a_twentieth_of_its_half_width(value: float, half: float) -> None:
    low, high = value - half, value + half
    if (high - low) / 2 <= 1e-6 * abs(value):  # more digits than a float holds well
        return
    said, interval = number_texts(Number(value, low, high))
    ends = [float(end) for end in interval.strip("[]").split(", ")]
    for given_number, printed in ((value, float(said)), (low, ends[0]), (high, ends[1])):
        assert abs(given_number - printed) <= (high - low) / 2 * 0.0501 + 1e-12


@given(st.text(max_size=40))
def test_no_text_is_taken_for_a_command_of_latex(text: str) -> None:
    plain = re.sub(r"\\(textbackslash|textasciicircum|textasciitilde|textless|textgreater|textbar|textquotedbl|textasciigrave|"
                   r"ldots)\{\}|\\[{}$&#%_]|\{\}|\$\\?[\w{}^\\]+\$|\$-\$|\$\^\{2\}\$", "", escape(text))  # fmt: skip
    assert not set(plain) & set("\\{}$&#%_^") and plain.isprintable()


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="pdflatex is not installed")
def test_pdflatex_takes_every_table_with_hostile_names(
    planted: cwa.RunReport, report: cwa.RunReport, tmp_path: Path
) -> None:
    odd = PrintedTable(
        "x", HOSTILE + " 中文 émile 🙂", ("a & b", "n"), ((HOSTILE, Strong(Number(1e12, 9e11, 1.1e12))),)
    )
    texts = [latex(odd, HOSTILE)] + [
        one_table(of, name, "latex").decode() for of in (planted, report) for name in printed_tables(of)
    ]
    document = "\n".join(
        [r"\documentclass{article}", r"\usepackage[T1]{fontenc}", r"\usepackage{textcomp,booktabs,graphicx}",
         r"\begin{document}", *texts, r"\end{document}"]
    )  # fmt: skip
    (tmp_path / "all.tex").write_text(document)
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"],
        cwd=tmp_path, capture_output=True, timeout=200, check=False,
    )  # fmt: skip
    log = done.stdout.decode("utf-8", "replace")
    assert done.returncode == 0, log[-2000:]
    assert "Overfull" not in log and (tmp_path / "all.pdf").exists()


def test_markdown_shows_the_numbers_and_the_names_as_they_are(planted: cwa.RunReport, tmp_path: Path) -> None:
    cwa.export(planted, tmp_path / "md", "markdown")
    html = MarkdownIt("gfm-like", {"linkify": False}).render((tmp_path / "md" / "tables.md").read_text())
    assert html.count("<table>") == len(printed_tables(planted))
    assert "<strong>2.3" in html and "<script>" not in html and "model.layers.1.mlp.down_proj.weight[3,5]" in html


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> cwa.StudyReport:
    """A study of scaling with two models, whose damage is planted; its cells have not run."""
    asked = cwa.Study(question="scaling", grid={"model": ["a", "b"]}, run={"topk": [10]})
    folder, _ = StudyFolder.of(asked, tmp_path_factory.mktemp("studies"), "the memory of a test")
    runs = study_runs([planted_run(f"tiny-{n}", parameters=n, damage=[Planted()]) for n in (10**5, 10**6)])
    return cwa.StudyReport(folder, (), tuple(runs), answered("scaling", runs))


def test_a_study_is_written_with_its_answer_and_every_table(study: cwa.StudyReport, tmp_path: Path) -> None:
    assert study.answer is not None
    names = {rows.table.name.removesuffix(".csv") for rows in study.tables()}
    for form, ending in (("csv", "csv"), ("json", "json"), ("parquet", "parquet"), ("markdown", "md")):
        written = {path.name for path in cwa.export(study, tmp_path / form, form)}
        assert {f"{name}.{ending}" for name in names} | {"answer.json"} <= written
    points = json.loads((tmp_path / "json" / "scaling.json").read_text())
    assert [row["damage"] for row in points] == [row.damage for row in study.answer.tables[0].rows]
    cwa.export(study, tmp_path / "latex", "latex")
    text = (tmp_path / "latex" / "scaling.tex").read_text()
    first = study.answer.tables[0].rows[0]
    value, low, high = (f"{number:.3f}" for number in (first.damage, first.low, first.high))
    assert f"${value.split('.')[0]}$ & $.{value.split('.')[1]}$ & [${low}$, ${high}$]" in text
    assert "All rows have" in text and escape(study.folder.id) in text
    with pytest.raises(cwa.InvalidInput, match="masks are of one run"):
        cwa.export(study, tmp_path / "m.safetensors", "safetensors")


def test_a_table_a_metric_and_a_format_that_are_not_there_are_named(report: cwa.RunReport, tmp_path: Path) -> None:
    with pytest.raises(cwa.NotFound, match="no table 'pertubation'") as refused:  # codespell:ignore pertubation
        cwa.export(report, tmp_path / "x", "csv", table="pertubation")  # codespell:ignore pertubation
    assert "perturbation" in refused.value.hint
    with pytest.raises(cwa.NotFound, match="'perturbation' in LaTeX") as refused:
        cwa.export(report, tmp_path / "x", "latex", table="perturbation")
    assert "damage" in refused.value.hint
    with pytest.raises(cwa.NotFound, match="no ranking by 'magnitude'"):
        cwa.export(report, tmp_path / "x", "latex", metric="magnitude")
    with pytest.raises(cwa.InvalidInput, match="no format 'xls'"):
        cwa.export(report, tmp_path / "x", "xls")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "there").mkdir()
    with pytest.raises(cwa.OutputTaken):
        cwa.export(report, tmp_path / "there")


def test_without_pyarrow_parquet_is_refused_with_what_to_install(
    report: cwa.RunReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(cwa.InvalidInput, match="need pyarrow") as refused:
        cwa.export(report, tmp_path / "x", "parquet")
    assert "pip install pyarrow" in refused.value.hint and not (tmp_path / "x").exists()
