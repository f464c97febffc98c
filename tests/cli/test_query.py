"""`results query`, `tag`, `note` and the filters of lists, as typed."""

from __future__ import annotations

import csv
import io
import json
import shlex
from pathlib import Path

import pytest

from tests.conftest import SHORT, CommandLine

pytest.importorskip("duckdb")


@pytest.fixture(scope="module")
def runs(module_cwtool: CommandLine) -> list[str]:
    """Run ids of two finished runs."""
    first = module_cwtool.json("run", *SHORT)["run_id"]
    return [first, module_cwtool.json("run", *SHORT, "--metric", "magnitude", "--seed", "7")["run_id"]]


def test_a_query_is_printed_as_a_table_as_csv_and_as_json(module_cwtool: CommandLine, runs: list[str]) -> None:
    sql = "SELECT run_id, seed, metrics, baseline_nll FROM runs ORDER BY started"
    folder = module_cwtool.home / "runs"
    nlls = [json.loads((folder / run_id / "summary.json").read_text())["baseline"]["nll"] for run_id in runs]
    table = module_cwtool("results", "query", sql).stdout.splitlines()
    assert table[0].split() == ["run", "id", "seed", "metrics", "baseline_nll"]
    assert table[1].split() == [runs[0], "0", "grad_x_weight", f"{nlls[0]:.6g}"]
    rows = list(csv.DictReader(io.StringIO(module_cwtool("results", "query", sql, "--csv").stdout)))
    assert [(row["run_id"], float(row["baseline_nll"])) for row in rows] == list(zip(runs, nlls, strict=True))
    assert json.loads(rows[1]["metrics"]) == ["magnitude"]
    found = module_cwtool.json("results", "query", sql)
    assert found["rows"] == [
        {"run_id": run_id, "seed": seed, "metrics": [metric], "baseline_nll": nll}
        for run_id, seed, metric, nll in zip(runs, (0, 7), ("grad_x_weight", "magnitude"), nlls, strict=True)
    ]
    assert found["more"] is False


def test_what_has_no_room_in_80_columns_is_named(module_cwtool: CommandLine, runs: list[str]) -> None:
    done = module_cwtool("results", "query", "SELECT * FROM damage", "-n", "3", COLUMNS="80")
    assert all(len(line) <= 80 for line in done.stdout.splitlines()) and len(done.stdout.splitlines()) == 4
    assert "there is no room for" in done.stderr and "top1_agreement" in done.stderr
    assert "the first 3 rows; -n lists more" in done.stderr


def test_tables_lists_what_can_be_queried(module_cwtool: CommandLine) -> None:
    said = module_cwtool("results", "query", "--tables").stdout
    assert "damage: each critical set" in said and "perplexity_ratio" in said
    found = module_cwtool.json("results", "query", "--tables")
    assert found["runs"]["columns"]["tags"] == "VARCHAR[]"
    module_cwtool("results", "query", rc=2)
    module_cwtool("results", "query", "SELECT 1", "--tables", rc=2)


def test_a_query_can_come_from_a_pipe_and_a_wrong_one_ends_with_2(module_cwtool: CommandLine, runs: list[str]) -> None:
    refused = module_cwtool("results", "query", "SELECT baseline_nl FROM runs", rc=2)
    assert "did you mean 'baseline_nll'" in refused.stderr and not refused.stdout
    refused = module_cwtool("results", "query", "COPY runs TO 'x.csv'", rc=2)
    assert "COPY is not allowed" in refused.stderr and not (module_cwtool.cwd / "x.csv").exists()
    assert module_cwtool("--host", "box", "results", "query", "SELECT 1 FROM runs", rc=2).stderr


def test_an_altered_run_is_left_out_and_named(module_cwtool: CommandLine, runs: list[str]) -> None:
    file = module_cwtool.home / "runs" / runs[0] / "perturbation.csv"
    sound = file.read_bytes()
    file.write_bytes(sound.replace(b"1", b"2", 1))
    try:
        done = module_cwtool("results", "query", "SELECT run_id FROM runs", "--csv")
        assert done.stdout.split() == ["run_id", runs[1]]
        assert f"left out: {runs[0]}" in done.stderr and "perturbation.csv is altered" in done.stderr
    finally:
        file.write_bytes(sound)


def test_run_folders_anywhere_can_be_queried(module_cwtool: CommandLine, runs: list[str], tmp_path: Path) -> None:
    module_cwtool("results", "fetch", runs[0], "--output", str(tmp_path / "published" / "one"))
    sql = "SELECT run_id FROM runs"
    done = module_cwtool("results", "query", sql, "--runs", str(tmp_path / "published"), "--csv")
    assert done.stdout.split() == ["run_id", runs[0]]
    module_cwtool("results", "query", sql, "--runs", str(tmp_path / "nowhere"), rc=6)


def test_tags_are_added_with_plus_removed_with_minus_and_shown(module_cwtool: CommandLine, runs: list[str]) -> None:
    run_id = runs[0]
    assert module_cwtool("results", "tag", run_id, "+sweep", "harmful", "+ünï").stdout == "sweep harmful ünï\n"
    assert module_cwtool("results", "tag", run_id, "-harmful", "--remove", "ünï", "--add", "x").stdout == "sweep x\n"
    assert module_cwtool.json("results", "tag", run_id) == {"run_id": run_id, "tags": ["sweep", "x"], "note": ""}
    assert "tags: sweep x" in module_cwtool("results", "show", run_id).stdout
    assert module_cwtool.json("results", "show", run_id)["tags"] == ["sweep", "x"]
    assert [run["run_id"] for run in module_cwtool.json("results", "list", "--tag", "sweep")["results"]] == [run_id]
    assert [job["run_id"] for job in module_cwtool.json("jobs", "--tag", "x")["jobs"]] == [run_id]
    assert "sweep x" in module_cwtool("results", COLUMNS="200").stdout
    sql = "SELECT run_id FROM runs WHERE list_contains(tags, 'sweep')"
    assert module_cwtool("results", "query", sql, "--csv").stdout.split() == ["run_id", run_id]
    refused = module_cwtool("results", "tag", run_id, "two words", rc=2)
    assert "cannot be a tag" in refused.stderr
    module_cwtool("results", "tag", run_id, "-sweep", "-x")


def test_a_note_is_written_shown_found_and_removed(module_cwtool: CommandLine, runs: list[str]) -> None:
    run_id = runs[1]
    module_cwtool("results", "note", run_id, "seen by Ann\n\x1b[31mred")
    assert module_cwtool("results", "note", run_id).stdout == "seen by Ann\n\\x1b[31mred\n"
    assert "note: seen by Ann" in module_cwtool("results", "show", run_id).stdout
    assert [run["run_id"] for run in module_cwtool.json("results", "-S", "ann seen")["results"]] == [run_id]
    (row,) = module_cwtool.json("results", "query", "SELECT note FROM runs WHERE note != ''")["rows"]
    assert row == {"note": "seen by Ann\n\x1b[31mred"}
    module_cwtool("results", "note", run_id, "")
    assert "has no note" in module_cwtool("results", "note", run_id).stdout


def test_lists_are_filtered_by_metric_ratio_and_condition(module_cwtool: CommandLine, runs: list[str]) -> None:
    def listed(*options: str) -> list[str]:
        return [run["run_id"] for run in module_cwtool.json("results", "list", *options)["results"]]

    assert listed("--metric", "magnitude") == [runs[1]]
    assert listed("--where", "seed = 7 AND parameters > 1000") == [runs[1]]
    assert listed("--where", "true", "--metric", "grad_x_weight") == [runs[0]]
    assert listed("--where", "true") == [runs[1], runs[0]]
    page = module_cwtool.json("results", "list", "--where", "true", "-n", "1", "--offset", "1")
    assert ([run["run_id"] for run in page["results"]], page["total"]) == ([runs[0]], 2)
    ratios = {job["run_id"]: job["headline"]["ratio"] for job in module_cwtool.json("jobs")["jobs"]}
    least, most = sorted(runs, key=lambda run_id: float(ratios[run_id]))
    assert listed("--ratio-above", str(ratios[least])) == [most]
    refused = module_cwtool("results", "list", "--where", "seeed = 7", rc=2)
    assert "did you mean 'seed'" in refused.stderr


DOCS = Path(__file__).parents[2] / "docs" / "query.md"
EXAMPLES = [
    line for line in DOCS.read_text().splitlines() if line.startswith(("cwtool results query", "cwtool results list"))
]


@pytest.mark.parametrize("line", EXAMPLES)
def test_an_example_of_the_docs_is_answered(
    line: str, module_cwtool: CommandLine, runs: list[str], tmp_path: Path
) -> None:
    (tmp_path / "figure-2.sql").write_text("SELECT 1 FROM runs")
    typed = line.removeprefix("cwtool ").replace("~/published", str(module_cwtool.home / "runs"))
    if "<" in typed.split('"')[0]:  # the pipe of a shell
        assert len(shlex.split(typed)) == 5
        return
    done = module_cwtool(*shlex.split(typed))
    assert done.stdout and not done.stderr.startswith("Error")
