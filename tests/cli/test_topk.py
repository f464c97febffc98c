"""Rankings and tables of a run on the command line: any number of rows, filtered and sorted, exact in every format."""

from __future__ import annotations

import csv
import io
import json
import subprocess
from pathlib import Path

import pytest

from tests.conftest import CWTOOL, CommandLine

MANY = 12_345


@pytest.fixture(scope="module")
def ranked(module_cwtool: CommandLine) -> CommandLine:
    """A daemon with a run whose ranking is longer than one reply."""
    cwtool = module_cwtool
    cwtool("run", "gpt2", "-k", str(MANY), "--eval-limit", "2", "--no-perturbation", "--output", "out")
    return cwtool


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_a_ranking_of_any_length_is_listed_and_as_csv_it_is_the_run_s_own_file(ranked: CommandLine) -> None:
    ranking = (ranked.cwd / "out/topk_grad_x_weight.csv").read_text()
    assert ranked("results", "topk", "-n", "99999", "--csv").stdout == ranking
    assert len(ranked.json("results", "topk", "-n", str(MANY))["weights"]) == MANY
    assert len(ranked("results", "topk", "-n", str(MANY)).stdout.splitlines()) == 2 + MANY
    piece = rows_of(ranked("results", "topk", "-n", "7", "--offset", "10001", "--csv").stdout)
    assert [row["rank"] for row in piece] == [str(rank) for rank in range(10002, 10009)]
    assert "1 to 100; -n lists as many as you like" in ranked("results", "topk").stderr


def test_a_ranking_is_sorted_by_any_column_and_filtered_by_words(ranked: CommandLine) -> None:
    everything = rows_of((ranked.cwd / "out/topk_grad_x_weight.csv").read_text())

    def listed(*typed: str) -> list[dict[str, str]]:
        return rows_of(ranked("results", "topk", "--csv", "-n", "99999", *typed).stdout)

    assert listed("--sort", "value") == sorted(everything, key=lambda row: -float(row["value"]))
    assert listed("--sort", "value", "-r") == sorted(everything, key=lambda row: float(row["value"]))
    assert listed("-S", "mlp layer:1") == [r for r in everything if "mlp" in r["parameter"] and r["layer"] == "1"]
    bound = everything[50]["score"]
    assert listed("--filter", f"score>{bound}") == [row for row in everything if float(row["score"]) > float(bound)]
    assert ranked("results", "topk", "-S", "nowhere").stdout == "no weight matches\n"
    assert "did you mean 'score'" in ranked("results", "topk", "--sort", "scroe", rc=2).stderr  # codespell:ignore scroe
    assert "give one of them" in ranked("results", "topk", "--csv", "--json", rc=2).stdout


def test_names_keep_what_tells_rows_apart_at_eighty_columns(ranked: CommandLine) -> None:
    shown = ranked("results", "topk", "-n", "300", COLUMNS="80").stdout.splitlines()[2:]
    assert all(len(line) <= 80 for line in shown)
    assert len({line.split()[1] for line in shown}) == 300


def test_a_table_is_exported_as_it_is_and_in_other_formats(ranked: CommandLine) -> None:
    file = ranked.cwd / "out/topk_grad_x_weight.csv"
    asked = [CWTOOL, "results", "export", "--table", "topk_grad_x_weight"]
    as_csv = subprocess.run(asked, cwd=ranked.cwd, env={**ranked.env, "LC_ALL": "C"}, capture_output=True, check=True)
    assert as_csv.stdout == file.read_bytes()
    first = rows_of(file.read_text())[0]
    as_json = json.loads(ranked(*asked[1:], "--format", "json").stdout)
    assert len(as_json) == MANY
    assert (as_json[0]["score"], as_json[0]["target"]) == (float(first["score"]), first["target"])
    assert ranked(*asked[1:], "--format", "markdown").stdout.startswith("| rank | parameter |")
    assert "did you mean" in ranked("results", "export", "--table", "topk_grad_x_wieght", rc=6).stderr
    assert "there is no format 'xls'" in ranked("results", "export", "--format", "xls", rc=2).stderr


def test_all_tables_are_written_into_a_new_folder(ranked: CommandLine) -> None:
    written = [Path(line) for line in ranked("results", "export", "--format", "json", "-o", "tables").stdout.split()]
    assert {path.name for path in written} == {
        "topk_grad_x_weight.json", "topk_grad_x_weight_matrices.json", "scores.json",
    }  # fmt: skip
    assert len(json.loads((ranked.cwd / "tables/topk_grad_x_weight.json").read_text())) == MANY
    assert "exists" in ranked("results", "export", "-o", "tables", rc=2).stderr


def test_a_run_is_exported_for_papers_and_its_masks_come_back_as_the_same_weights(ranked: CommandLine) -> None:
    listed = ranked.json("results", "topk", "-n", "5")["weights"]
    tables = ranked.json("export", "--format", "latex", "-o", "paper")["files"]
    assert {Path(path).name for path in tables} == {
        "weights_grad_x_weight.tex", "weights_grad_x_weight_matrices.tex",
    }  # fmt: skip
    assert r"\toprule" in ranked("export", "-f", "latex", "--table", "weights_grad_x_weight").stdout
    [masks] = ranked.json("export", "-f", "safetensors", "-k", "5", "-o", "top.safetensors")["files"]
    assert "exists" in ranked("export", "-f", "safetensors", "-o", "top.safetensors", rc=2).stderr
    ranked("run", "gpt2", "--weights", masks, "--eval-limit", "2", "--no-perturbation", "--output", "given")
    given = rows_of((ranked.cwd / "given/topk_given.csv").read_text())
    assert {(row["target"], float(row["value"])) for row in given} == {(row["target"], row["value"]) for row in listed}
    (ranked.cwd / "list.csv").write_text("layer,module,row,col\n1,mlp.c_proj,3,5\n1,mlp.c_porj,3,5\n")
    refused = ranked("run", "gpt2", "--weights", "list.csv", "--eval-limit", "2", rc=2).stderr
    assert "list.csv, line 3: " in refused and "1.mlp.c_proj" in refused
