"""`cwtool compare` of runs by id, by the end of an id, and by folder."""

from __future__ import annotations

import shutil

import pytest

from tests.conftest import SHORT, CommandLine


@pytest.fixture
def runs(cwtool: CommandLine) -> tuple[str, str]:
    """Two runs of one model, by other numbers of texts."""
    first = cwtool.json("run", *SHORT, "--output", "one")["run_id"]
    again = cwtool.json("run", *SHORT, "--eval-limit", "6", "--output", "two")["run_id"]
    return first, again


def test_runs_are_compared_by_id_by_its_end_and_by_folder(cwtool: CommandLine, runs: tuple[str, str]) -> None:
    first, second = runs
    found = cwtool.json("compare", first, second.rpartition("-")[2])
    assert [run["run"] for run in found["runs"]] == [first, second]
    overlap = next(row for row in found["overlaps"] if row["metric"] == "grad_x_weight")
    assert (overlap["k"], overlap["of_first"], overlap["population"]) == (5, 5, found_population(cwtool))
    assert found == cwtool.json("compare", "one", "./two") == cwtool.json("compare", first, "two")

    for name in ("one", "two"):
        shutil.rmtree(cwtool.cwd / name)
    assert found == cwtool.json("compare", *runs)


def found_population(cwtool: CommandLine) -> int:
    return int(cwtool.json("results", "show")["model"]["parameters"])


def test_the_answer_comes_first_and_fits_eighty_columns(
    cwtool: CommandLine, runs: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = cwtool("compare", *runs).stdout
    words = " ".join(said.split())
    assert (
        words.index("the runs differ in")
        < words.index("share")
        < words.index("shared weights")
        < words.index("damage by")
    )
    assert "other texts measured" in words and "must not be read against each other" in words
    assert "by chance" in words and "critical" in words and "component" in words


def test_what_cannot_be_compared_is_refused(cwtool: CommandLine, runs: tuple[str, str]) -> None:
    first, second = runs
    assert "given twice" in cwtool("compare", first, first, rc=2).stderr
    assert "1 runs cannot be compared" in cwtool("compare", first, rc=2).stderr
    said = cwtool.json("compare", first, second, "--metric", "taylor", rc=2)["error"]
    assert "no two of the runs" in said["message"] and "grad_x_weight" in said["hint"]
    assert "they have 5 places" in cwtool("compare", first, second, "--k", "6", rc=2).stderr
    assert cwtool.json("compare", first, "nothing-like-this", rc=6)["error"]["message"]
    assert "no folder and no run" in cwtool("compare", first, "./nowhere", rc=6).stderr


def test_damage_on_other_texts_is_subtracted_with_force_and_the_reason_stands_beside_it(
    cwtool: CommandLine, runs: tuple[str, str]
) -> None:
    assert cwtool.json("compare", *runs)["damage_differences"] == []
    assert "--force subtracts damage" in " ".join(cwtool("compare", *runs).stdout.split())
    found = cwtool.json("compare", *runs, "--force")["damage_differences"]
    assert found and all(any("other texts measured" in reason for reason in row["reasons"]) for row in found)
    said = cwtool("compare", *runs, "--force").stdout
    assert "although" in said and "other texts measured" in said.partition("although")[2]


def test_runs_of_which_nothing_may_be_compared_end_with_the_reason_and_an_exit_code(cwtool: CommandLine) -> None:
    weights = cwtool.json("run", *SHORT)["run_id"]
    rows = cwtool.json("run", *SHORT, "--structure", "row", "--eval-limit", "6")["run_id"]
    refused = cwtool.json("compare", weights, rows, rc=2)["error"]
    assert "one by weight, the other by row" in refused["message"] and "--force" in refused["hint"]
    assert all(row["reasons"] for row in cwtool.json("compare", weights, rows, "--force")["damage_differences"])
