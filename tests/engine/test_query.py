"""SQL over run folders gives what the files of the runs say, of runs that are as they were written, and reaches nothing else.

Right values are read from the files with csv and json, here.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import shutil
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import cwa_engine as cwa
from cwa_engine.base.errors import CwaError, InvalidInput, NotFound
from cwa_engine.pipeline import analyze
from cwa_engine.queries import batches
from cwa_engine.queries.asking import Mark, all_columns, query
from cwa_engine.records.export import ModelRecord, RunRecord, write_run
from cwa_engine.records.run_report import RunReport, open_run
from cwa_engine.spec import RunSpec
from cwa_engine.studies.folder import StudyFolder
from cwa_engine.studies.identity import Identity
from cwa_engine.studies.journal import Submission
from cwa_engine.studies.study import Study
from tests.engine.conftest import TEXTS, wrap
from tests.models import tiny_model

pytest.importorskip("duckdb")
DAMAGE = "perturbation.csv"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one run that was asked many questions."""
    home = tmp_path_factory.mktemp("written")
    texts = home / "texts.txt"
    texts.write_text("\n\n".join(TEXTS) + "\n")
    spec = RunSpec(
        model="tiny", data_file=texts, metrics=("grad_x_weight", "super_weight", "ablation"), topk=(2, 3), kl=True,
        candidates=6, stability="halves", fidelity=4, individually=True, control_seeds=2, controls=("random",),
    )  # fmt: skip
    result = analyze(wrap(tiny_model("llama")), spec)
    model = ModelRecord(
        "tiny", "/nowhere", "folder", None, {"m": "0" * 64}, "float32", "cpu", "", result.parameters, ()
    )
    write_run(home / "run", RunRecord("run", spec, "cwtool run", model, result, 1.5e9, ["one line"]))
    return home / "run"


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for run folders, and a state folder for the cache."""
    monkeypatch.setenv("CWTOOL_HOME", str(tmp_path))
    (tmp_path / "runs").mkdir()
    return tmp_path / "runs"


def add_run(runs: Path, run_id: str, written: Path, **tables: bytes) -> Path:
    """A copy of a run under another id, with other tables, its hashes right."""
    folder = runs / run_id
    shutil.copytree(written, folder)
    for name, content in tables.items():
        (folder / f"{name}.csv").write_bytes(content)
    for name in ("summary.json", "manifest.json"):
        plain = json.loads((folder / name).read_text())
        plain["run_id"] = run_id
        if "tables" in plain:
            plain["tables"] = {path.name: sha256(path) for path in folder.glob("*.csv")}
        (folder / name).write_text(json.dumps(plain))
    seal(folder)
    return folder


def seal(folder: Path) -> None:
    """Write the hashes of the files that a folder has now."""
    files = sorted(path for path in folder.iterdir() if path.name != "SHA256SUMS")
    (folder / "SHA256SUMS").write_text("".join(f"{sha256(path)}  {path.name}\n" for path in files))


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def rows_of(path: Path, kinds: Iterable[str]) -> list[tuple[Any, ...]]:
    """The rows of a CSV file by the types that their columns have in SQL."""
    read: dict[str, Callable[[str], Any]] = {
        "VARCHAR": str, "BIGINT": int, "DOUBLE": float, "BOOLEAN": lambda text: {"True": True, "False": False}[text]
    }  # fmt: skip
    with path.open(newline="", encoding="utf-8") as file:
        heading, *lines = csv.reader(file)
    never_none = {name for name in heading if name not in ("collapsed_at", "token")}
    return [
        tuple(
            read[kind](cell) if cell or (kind == "VARCHAR" and name in never_none) else None
            for name, cell, kind in zip(heading, line, kinds, strict=True)
        )
        for line in lines
    ]


@pytest.mark.parametrize(
    ("table", "file"),
    [
        ("damage", DAMAGE),
        ("evaluations", "evaluation.csv"),
        ("controls", "controls.csv"),
        ("stability", "stability.csv"),
        ("interactions", "interactions.csv"),
        ("ablations", "ablation.csv"),
        ("spikes", "spikes.csv"),
        ("scores", "scores.csv"),
    ],
)
def test_a_table_has_the_rows_of_its_file_with_the_run_id_before_them(
    table: str, file: str, runs: Path, written: Path
) -> None:
    for run_id in ("a", "b"):
        add_run(runs, run_id, written)
    kinds = list(all_columns()[table].values())[1:]
    expected = rows_of(written / file, kinds)
    assert expected
    heading = (written / file).read_text().splitlines()[0]
    found = query(f"SELECT * FROM {table}")
    assert ",".join(found.columns[1:]) == heading
    for run_id in ("a", "b"):
        assert [row[1:] for row in found.rows if row[0] == run_id] == expected


def test_rankings_are_one_table_with_the_metric_of_each(runs: Path, written: Path) -> None:
    add_run(runs, "a", written)
    kinds = list(all_columns()["topk"].values())[2:]
    files = sorted(written.glob("topk_*.csv"))
    assert len(files) > 2
    for file in files:
        metric = file.stem.removeprefix("topk_")
        found = query(f"SELECT * EXCLUDE (run_id, metric) FROM topk WHERE metric = '{metric}'")
        assert list(found.rows) == rows_of(file, kinds)


def test_what_the_summary_says_is_in_tables_too(runs: Path, written: Path) -> None:
    add_run(runs, "a", written)
    summary = json.loads((written / "summary.json").read_text())
    (run,) = query("SELECT * FROM runs")
    assert (run["run_id"], run["model"], run["parameters"]) == ("a", "tiny", summary["model"]["parameters"])
    assert {name: run[f"baseline_{name}"] for name in summary["baseline"]} == summary["baseline"]
    assert {name: run[f"texts_{name}"] for name in summary["texts"]} == summary["texts"]
    manifest = json.loads((written / "manifest.json").read_text())
    assert run["versions"] == manifest["versions"] and run["model_files"] == {"m": "0" * 64}
    options = {name: run.get(f"asked_{name}", run.get(name)) for name in manifest["spec"]}
    assert {name: str(value) for name, value in options.items()} == {n: str(v) for n, v in manifest["spec"].items()}
    assert run["started"].isoformat() == "2017-07-14T02:40:00"
    found = query("SELECT metric, k, perturbation, outcome, sentence FROM verdicts").rows
    groups = [group for group in summary["damage"] if group["outcome"]]
    assert found == tuple((g["metric"], g["k"], g["perturbation"], g["outcome"], g["verdict"]) for g in groups) != ()
    controls = [(g["metric"], g["k"], row) for g in summary["damage"] for row in g["controls"]]
    found = query("SELECT metric, k, control, draws, critical, ratio, p_value, beyond FROM separations").rows
    names = ("control", "draws", "critical", "ratio", "p_value", "beyond")
    assert found == tuple((metric, k, *(row[name] for name in names)) for metric, k, row in controls) != ()
    fidelity = query("SELECT * EXCLUDE (run_id) FROM fidelity")
    assert list(fidelity) == summary["fidelity"] != []
    assert list(query("SELECT * EXCLUDE (run_id) FROM halves")) == summary["halves"] != []


numbers = st.floats()
texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
damage_rows = st.lists(
    st.tuples(
        texts, st.integers(1, 2**53), texts, texts, st.none() | st.integers(-(2**63), 2**63 - 1), st.integers(0, 9),
        numbers, numbers, numbers, numbers, numbers, numbers, st.none() | numbers, st.none() | numbers,
        st.none() | texts, st.integers(0, 9),
    ),
    min_size=1,
    max_size=4,
)  # fmt: skip


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=damage_rows)
def test_every_number_and_text_is_the_one_that_csv_and_python_read(
    rows: list[tuple[Any, ...]], runs: Path, written: Path
) -> None:
    shutil.rmtree(runs)
    runs.mkdir()
    folder = add_run(runs, "a", written)
    heading = (written / DAMAGE).read_text().splitlines()[0].split(",")
    with (folder / DAMAGE).open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([heading, *rows])  # its lines end in \r\n, which runs do not write
    content = (
        (folder / DAMAGE).read_bytes().replace(b"\r\n", b"\n") if not any(_has_line_end(row) for row in rows) else b""
    )
    if content:
        (folder / DAMAGE).write_bytes(content)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["tables"][DAMAGE] = sha256(folder / DAMAGE)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    seal(folder)
    found = query("SELECT * EXCLUDE (run_id) FROM damage").rows
    expected = [
        tuple(None if place in _OPTIONAL and value == "" else value for place, value in enumerate(row)) for row in rows
    ]
    assert list(map(_comparable, found)) == list(map(_comparable, expected))


_OPTIONAL = (14,)  # collapsed_at: an empty text reads back as None


def _has_line_end(row: tuple[Any, ...]) -> bool:
    return any(isinstance(value, str) and "\n" in value for value in row)


def _comparable(row: tuple[Any, ...]) -> tuple[Any, ...]:
    """NaN equals NaN, and -0.0 does not equal 0.0."""
    return tuple(value.hex() if isinstance(value, float) else value for value in row)


def test_what_is_new_removed_or_written_anew_is_known_at_the_next_query(runs: Path, written: Path) -> None:
    ids = "SELECT run_id FROM damage GROUP BY run_id ORDER BY run_id"
    assert query(ids).rows == ()
    for run_id in "cab":
        add_run(runs, run_id, written)
        query(ids)
    assert query(ids).rows == (("a",), ("b",), ("c",))
    shutil.rmtree(runs / "b")
    assert query(ids).rows == (("a",), ("c",))
    shutil.rmtree(runs / "a")
    lines = (written / DAMAGE).read_text().splitlines()
    add_run(runs, "a", written, perturbation="\n".join(lines[:2]).encode() + b"\n")
    assert query("SELECT run_id, count(*) FROM damage GROUP BY run_id ORDER BY run_id").rows == (
        ("a", 1), ("c", len(lines) - 1)
    )  # fmt: skip


@pytest.mark.parametrize("table", ["runs", "damage", "topk", "verdicts"])
@pytest.mark.parametrize("name", [DAMAGE, "evaluation.csv", "summary.json", "SHA256SUMS", "log.txt"])
def test_an_altered_run_is_in_no_table_and_is_named(table: str, name: str, runs: Path, written: Path) -> None:
    folder = add_run(runs, "a", written)
    add_run(runs, "b", written)
    ids = f"SELECT DISTINCT run_id FROM {table} ORDER BY 1"
    assert query(ids).rows == (("a",), ("b",))
    sound = (folder / name).read_bytes()
    (folder / name).write_bytes(sound.replace(b"0", b"1", 1) if b"0" in sound else sound + b"x")
    for _ in range(2):
        found = query(ids)
        assert found.rows == (("b",),)
        (left_out,) = found.left_out
        assert left_out.folder == "a" and "a is not as it was written" in left_out.reason
    (folder / name).write_bytes(sound)
    assert query(ids).rows == (("a",), ("b",)) and query(ids).left_out == ()


def test_folders_that_hold_no_run_or_the_same_run_once_more_are_named(runs: Path, written: Path) -> None:
    folder = add_run(runs, "a", written)
    shutil.copytree(folder, runs / "0-copy of a")
    (runs / "notes").mkdir()
    (runs / ".half").mkdir()
    (runs / "file").touch()
    found = query("SELECT folder FROM runs")
    assert found.rows == ((str(folder),),)
    assert {run.folder: run.reason for run in found.left_out} == {
        "0-copy of a": "it holds the same run as a",
        "notes": f"{runs / 'notes'} holds no run",
    }
    assert query("SELECT count(DISTINCT run_id) FROM damage").rows == ((1,),)


def test_columns_that_an_earlier_version_did_not_have_get_their_defaults(runs: Path, written: Path) -> None:
    with (written / DAMAGE).open(newline="") as file:
        lines = [line[:12] for line in csv.reader(file)]
    add_run(runs, "old", written, perturbation="".join(",".join(line) + "\n" for line in lines).encode())
    found = query("SELECT nll, kl, collapsed_at, sequences FROM damage").rows
    assert found == tuple((float(line[6]), None, None, 0) for line in lines[1:])


@pytest.mark.parametrize("content", [b"metric\n1\n", b"", b"metric,k\n\xff\xfe\n", b"not a table\n"])
def test_a_run_with_a_table_that_is_none_is_left_out_and_named(content: bytes, runs: Path, written: Path) -> None:
    add_run(runs, "a", written)
    add_run(runs, "b", written, perturbation=content)
    found = query("SELECT DISTINCT run_id FROM damage")
    assert found.rows == (("a",),)
    assert [run.folder for run in found.left_out] == ["b"]


def test_a_value_that_is_no_number_leaves_that_run_out_alone(runs: Path, written: Path) -> None:
    sound = (written / DAMAGE).read_text()
    heading, first, *_ = sound.splitlines()
    cells = first.split(",")
    cells[6] = "much"
    add_run(runs, "a", written)
    add_run(runs, "b", written, perturbation=f"{heading}\n{','.join(cells)}\n".encode())
    found = query("SELECT DISTINCT run_id FROM damage")
    assert found.rows == (("a",),)
    assert "much" in found.left_out[0].reason


# the cache


def parquet_files(runs: Path) -> list[Path]:
    return sorted((runs.parent / "cache" / "query").rglob("*.parquet"))


@pytest.mark.parametrize(
    "spoil", [lambda content: content[:-9], lambda content: b"", lambda content: content[:200] + b"x" + content[201:]]
)
def test_a_damaged_cache_is_made_anew(spoil: Callable[[bytes], bytes], runs: Path, written: Path) -> None:
    add_run(runs, "a", written)
    sql = "SELECT * FROM runs JOIN damage USING (run_id)"
    before = query(sql).rows
    for path in parquet_files(runs):
        path.write_bytes(spoil(path.read_bytes()))
    assert query(sql).rows == before
    shutil.rmtree(runs.parent / "cache")
    assert query(sql).rows == before != ()


def test_many_small_files_of_the_cache_are_brought_together(runs: Path, written: Path) -> None:
    lines = len((written / DAMAGE).read_text().splitlines()) - 1
    for number in range(batches.MOST_FILES + 3):
        add_run(runs, f"run{number:02}", written)
        assert query("SELECT count(*) FROM damage").rows == ((lines * (number + 1),),)
        assert query("SELECT count(*) FROM runs").rows == ((number + 1,),)
    by_table: dict[Path, int] = {}
    for path in parquet_files(runs):
        by_table[path.parent] = by_table.get(path.parent, 0) + 1
    assert max(by_table.values()) <= batches.MOST_FILES
    assert query("SELECT count(DISTINCT run_id), count(*) FROM damage").rows == ((number + 1, lines * (number + 1)),)


def test_only_what_is_new_is_read(runs: Path, written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def opened(folder: Path) -> RunReport:
        read.append(folder.name)
        return open_run(folder)

    monkeypatch.setattr("cwa_engine.queries.taking_up.open_run", opened)
    add_run(runs, "a", written)
    query("SELECT 1 FROM runs")
    add_run(runs, "b", written)
    query("SELECT 1 FROM runs")
    query("SELECT 1 FROM damage")
    assert read == ["a", "b"]


def test_queries_at_once_agree(runs: Path, written: Path) -> None:
    for number in range(6):
        add_run(runs, f"run{number}", written)
    lines = len((written / DAMAGE).read_text().splitlines()) - 1
    found: list[Any] = []

    def ask() -> None:
        found.extend(query("SELECT run_id, count(*) FROM damage JOIN runs USING (run_id) GROUP BY 1 ORDER BY 1").rows)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [(f"run{number}", lines) for number in range(6)] * 4


def test_a_path_may_hold_anything(runs: Path, written: Path, tmp_path: Path) -> None:
    folder = tmp_path / "it's [here]* ?"
    folder.mkdir()
    add_run(folder, "a", written)
    assert query("SELECT run_id, folder FROM runs", folder).rows == (("a", str(folder / "a")),)
    assert query("SELECT count(DISTINCT run_id) FROM topk", folder).rows == ((1,),)


def test_runs_can_be_queried_where_no_cache_can_be_kept(
    runs: Path, written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_run(runs, "a", written)
    (tmp_path / "file").touch()
    monkeypatch.setenv("CWTOOL_HOME", str(tmp_path / "file"))
    said: list[str] = []
    assert query("SELECT run_id FROM runs", runs, say=said.append).rows == (("a",),)
    assert "read anew each time" in said[0]


def test_a_folder_that_is_not_there_is_named_and_one_without_runs_is_empty(runs: Path) -> None:
    with pytest.raises(NotFound, match="no folder /nowhere"):
        query("SELECT 1 FROM runs", Path("/nowhere"))
    shutil.rmtree(runs)
    assert query("SELECT * FROM runs JOIN damage USING (run_id)").rows == ()


# what may be asked


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM read_csv('{file}')",
        "SELECT * FROM '{file}'",
        "SELECT * FROM read_text('{file}')",
        "SELECT * FROM read_blob('/proc/self/environ')",
        "SELECT * FROM glob('/*')",
        "COPY runs TO '{new}'",
        "COPY (SELECT 1) TO '{new}'",
        "EXPORT DATABASE '{new}'",
        "ATTACH '{new}' AS other",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SET enable_external_access = true",
        "SET memory_limit = '1TB'",
        "PRAGMA database_list",
        "CREATE TABLE x AS SELECT 1",
        "DROP VIEW runs",
        "DELETE FROM runs",
        "CALL pragma_version()",
        "EXPLAIN ANALYZE COPY runs TO '{new}'",
        "SELECT 1; COPY runs TO '{new}'",
        "WITH x AS (DELETE FROM runs RETURNING *) SELECT * FROM x",
        "SELECT * FROM read_csv('https://example.com/x.csv')",
        "SELECT * FROM query('COPY runs TO ''{new}''')",
        "SELECT * FROM some_rows",
    ],
)
def test_a_query_reads_the_tables_of_runs_and_nothing_else(sql: str, runs: Path, written: Path, tmp_path: Path) -> None:
    some_rows = [1, 2]  # an object of Python, which DuckDB would look for by its name
    add_run(runs, "a", written)
    secret = tmp_path / "secret.csv"
    secret.write_text("a,b\n1,2\n")
    with pytest.raises(InvalidInput):
        query(sql.format(file=secret, new=tmp_path / "new"))
    assert not (tmp_path / "new").exists() and some_rows


@pytest.mark.parametrize(
    ("sql", "message", "hint"),
    [
        ("SELECT baseline_nl FROM runs", 'column "baseline_nl" not found', "did you mean 'baseline_nll'"),
        ("SELECT nll FROM damge", "damge does not exist", "did you mean 'damage'?"),  # codespell:ignore damge
        ("SELEC 1", 'syntax error at or near "SELEC"', "--tables"),
        ("", "nothing was asked", "give one SELECT"),
        ("SELECT '\udcff'", "no text", "UTF-8"),
        ("SELECT '\0'", "no text", "UTF-8"),
        ("SELECT 1; SELECT 2", "2 statements were given", "give one SELECT"),
        ("UPDATE runs SET model = 'x'", "UPDATE is not allowed", "give a SELECT"),
        ("SELECT sum(model) FROM runs", "No function matches", "--tables"),
        ("SELECT CAST(model AS INTEGER) FROM runs", "Could not convert", "--tables"),
    ],
)
def test_what_is_wrong_with_a_query_is_said_with_what_was_meant(
    sql: str, message: str, hint: str, runs: Path, written: Path
) -> None:
    add_run(runs, "a", written)
    with pytest.raises(InvalidInput) as raised:
        query(sql)
    assert message in raised.value.message
    assert hint in raised.value.hint
    assert "\n" not in raised.value.message and "Candidate" not in raised.value.message


def test_a_wrong_query_is_refused_before_any_run_is_read(runs: Path, written: Path) -> None:
    add_run(runs, "a", written)
    with pytest.raises(InvalidInput):
        query("SELECT nothing FROM runs")
    assert not parquet_files(runs)


def test_without_duckdb_an_error_says_how_to_install_it(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "duckdb", None)
    with pytest.raises(InvalidInput, match="DuckDB, which is not installed") as raised:
        query("SELECT 1 FROM runs")
    assert "cwtool[query]" in raised.value.hint


def test_an_answer_has_as_many_rows_as_were_asked_for_and_says_that_there_are_more(runs: Path, written: Path) -> None:
    for run_id in "abc":
        add_run(runs, run_id, written)
    found = query("SELECT run_id FROM runs ORDER BY run_id", limit=2)
    assert (found.rows, found.more) == ((("a",), ("b",)), True)
    assert not query("SELECT run_id FROM runs", limit=3).more
    assert list(found) == [{"run_id": "a"}, {"run_id": "b"}] and len(found) == 2


def test_two_columns_of_one_name_are_told_apart(runs: Path, written: Path) -> None:
    add_run(runs, "a", written)
    sql = "SELECT x.run_id, y.run_id, y.run_id AS run_id_1 FROM runs x, runs y"
    assert query(sql).columns == ("run_id", "run_id_1", "run_id_1_1")


def test_pivot_describe_and_summarize_are_queries(runs: Path, written: Path) -> None:
    add_run(runs, "a", written)
    assert ("nll", "DOUBLE") in {row[:2] for row in query("DESCRIBE damage").rows}
    assert "grad_x_weight" in query("PIVOT damage ON metric USING max(delta_nll) GROUP BY run_id").columns
    assert query("SUMMARIZE verdicts").rows
    assert query("FROM runs SELECT count(*)").rows == ((1,),)


def test_tags_and_notes_are_columns_of_runs(runs: Path, written: Path) -> None:
    for run_id in "ab":
        add_run(runs, run_id, written)
    marks = {"b": Mark(("keep", "ünï"), "it's\nseen"), "gone": Mark(("x",), "")}
    found = query("SELECT run_id, tags, note FROM runs ORDER BY 1", marks=marks)
    assert found.rows == (("a", [], ""), ("b", ["keep", "ünï"], "it's\nseen"))
    assert query("SELECT run_id FROM runs WHERE list_contains(tags, 'keep')", marks=marks).rows == (("b",),)


def test_a_run_tells_the_studies_that_it_is_a_run_of(runs: Path, written: Path) -> None:
    for run_id in ("a", "b"):
        add_run(runs, run_id, written)
    grids = [
        Study(name=name, run={"model": "gpt2"}, grid={"topk": [[k]]}) for k, name in enumerate(("one", "two"), start=1)
    ]
    first, second = [StudyFolder.create(grid) for grid in grids]
    for folder in (first, second):
        submission = Submission(0, 1, "key", Identity("s", "m", "t", "c"), run_id="a")
        folder.journal.submitting(submission)
        folder.journal.submitted(submission)
    found = query("SELECT run_id, studies FROM runs ORDER BY 1").rows
    assert [(run_id, sorted(ids)) for run_id, ids in found] == [("a", sorted([first.id, second.id])), ("b", [])]


def test_the_notebook_asks_all_runs_of_the_state_folder_and_takes_them_as_a_frame(runs: Path, written: Path) -> None:
    pandas = pytest.importorskip("pandas")
    add_run(runs, "a", written)
    frame = cwa.query("SELECT run_id, max(delta_nll) AS worst FROM damage GROUP BY run_id").frame()
    assert isinstance(frame, pandas.DataFrame) and list(frame.columns) == ["run_id", "worst"]
    largest = max(row[8] for row in rows_of(written / DAMAGE, list(all_columns()["damage"].values())[1:]))
    assert math.isclose(frame["worst"][0], largest, rel_tol=0)


def test_every_error_is_one_of_cwtool(runs: Path, written: Path) -> None:
    add_run(runs, "a", written)
    for sql in ("SELECT list(i) FROM range(500000000) t(i)", "SELECT error('no')"):
        with pytest.raises(CwaError):
            query(sql)


def test_a_number_that_no_column_holds_leaves_that_run_out_alone(runs: Path, written: Path) -> None:
    add_run(runs, "a", written)
    folder = add_run(runs, "b", written)
    plain = json.loads((folder / "summary.json").read_text())
    plain["model"]["parameters"] = 2**70
    (folder / "summary.json").write_text(json.dumps(plain))
    seal(folder)
    for _ in range(2):
        found = query("SELECT run_id, count(*) FROM runs JOIN verdicts USING (run_id) GROUP BY 1")
        assert [row[0] for row in found.rows] == ["a"]
        assert [run.folder for run in found.left_out] == ["b"] and "runs cannot be read" in found.left_out[0].reason
