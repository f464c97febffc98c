"""What `jobs`, `results`, `ps` and `models` list: one line a row, filtered, sorted, as many as are wanted."""

from __future__ import annotations

import json
import re

import pytest

from cwa_daemon import protocol
from cwa_engine.base.errors import InvalidInput
from cwa_tui.cli import listing
from tests.conftest import CommandLine

RANK = ("--eval-limit", "4", "--no-perturbation", "-k", "3")
DAMAGE = ("--eval-limit", "4", "--control-seeds", "1", "-k", "3")
SHORT_ID = r"[a-z2-9]{4}"


@pytest.fixture(scope="module")
def runs(module_cwtool: CommandLine) -> CommandLine:
    """A daemon that has run three models, one of them in vain, and has loaded and planned one."""
    cwtool = module_cwtool
    cwtool("run", "gpt2", *DAMAGE)
    cwtool("run", "EleutherAI/pythia-70m", *RANK, "--metric", "magnitude")
    cwtool("run", "facebook/opt-350m", "-k", "999999", "--eval-limit", "2", rc=2)
    cwtool("load", "distilgpt2")
    cwtool("plan", "distilgpt2", "-k", "3")
    return cwtool


def lines(cwtool: CommandLine, *typed: str, columns: str = "80", rc: int = 0, **env: str) -> list[str]:
    return cwtool(*typed, rc=rc, COLUMNS=columns, **env).stdout.splitlines()


def models(cwtool: CommandLine, *typed: str) -> list[str]:
    return [job["model"] for job in cwtool.json("jobs", *typed)["jobs"]]


def test_each_job_is_one_line_of_eighty_columns_with_an_id_that_finds_it(runs: CommandLine) -> None:
    heading, *rows = lines(runs, "jobs")
    assert heading.split()[:3] == ["run", "id", "state"]
    assert [re.split(r"\s{2,}", row)[1] for row in rows] == ["✗ failed", "✓ done", "✓ done"]
    for row in rows:
        assert len(row) <= 80
        (short,) = re.findall(rf"^{SHORT_ID}\b", row)
        assert runs.json("jobs", "show", short)["run_id"].endswith(short)
    assert "--topk 999999 is more" in rows[0] and rows[0].endswith("…")
    assert "k 3 x" in rows[2]


def test_where_there_is_room_ids_and_reasons_are_whole(runs: CommandLine) -> None:
    failed = runs.json("jobs", "--state", "failed")["jobs"][0]
    for shown in (lines(runs, "jobs", columns="240"), lines(runs, "jobs", columns="")):
        assert shown[1].startswith(failed["run_id"]) and shown[1].endswith(failed["error"]["message"])


def test_loads_and_plans_stand_apart_from_runs(runs: CommandLine) -> None:
    assert models(runs) == ["facebook/opt-350m", "EleutherAI/pythia-70m", "gpt2"]
    assert [job["kind"] for job in runs.json("jobs", "--all")["jobs"]][:2] == ["plan", "load"]
    assert [job["kind"] for job in runs.json("jobs", "--kind", "load,plan")["jobs"]] == ["plan", "load"]
    assert {"run", "load", "plan"} <= {row.split()[1] for row in lines(runs, "jobs", "-a")[1:]}
    assert runs.json("jobs", "show")["kind"] == "run"  # the latest


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        ("--state failed", ["facebook/opt-350m"]),
        ("--state failed,done -n 2", ["facebook/opt-350m", "EleutherAI/pythia-70m"]),
        ("--model pyth", ["EleutherAI/pythia-70m"]),
        ("-S magnitude", ["EleutherAI/pythia-70m"]),
        ("-S 999999", ["facebook/opt-350m"]),
        ("--search nothing", []),
        ("--sort model", ["EleutherAI/pythia-70m", "facebook/opt-350m", "gpt2"]),
        ("--sort model -r", ["gpt2", "facebook/opt-350m", "EleutherAI/pythia-70m"]),
        ("--reverse", ["gpt2", "EleutherAI/pythia-70m", "facebook/opt-350m"]),
        ("-n 1 --offset 1", ["EleutherAI/pythia-70m"]),
        ("--since 1h", ["facebook/opt-350m", "EleutherAI/pythia-70m", "gpt2"]),
        ("--since 2100-01-01", []),
        ("--since 2020-01-01T10:00 -n 1", ["facebook/opt-350m"]),
    ],
)
def test_jobs_are_filtered_and_sorted(runs: CommandLine, typed: str, found: list[str]) -> None:
    assert models(runs, *typed.split()) == found


def test_a_list_says_that_there_are_more_and_how_to_see_them(runs: CommandLine) -> None:
    assert "1 to 2 of 3; -n 3 lists all" in runs("jobs", "-n", "2").stderr
    assert runs.json("jobs", "-n", "2")["total"] == 3
    assert runs("jobs", "-n", "3").stderr == ""


def test_results_name_their_model_and_what_was_found(runs: CommandLine) -> None:
    heading, pythia, gpt2 = lines(runs, "results")
    assert heading.split()[2:] == ["model", "metrics", "k", "critical", "control", "verdict", "age"]
    assert re.match(rf"{SHORT_ID}\s+\S+/pythia-70m\s+magnitude\s+-\s+-\s+-", pythia)
    assert re.match(rf"{SHORT_ID}\s+gpt2\s+grad_x_weight\s+3\s+x[\d.]+\s+x[\d.]+\s+not tested", gpt2)
    assert max(map(len, (heading, pythia, gpt2))) <= 80
    assert runs.json("results", "--sort", "model", "-r")["results"][0]["model"]["name"] == "gpt2"
    assert [run["model"]["name"] for run in runs.json("results", "-S", "magnitude")["results"]] == [
        "EleutherAI/pythia-70m"
    ]
    (failed,) = lines(runs, "results", "--state", "failed")[1:]
    assert re.match(rf"{SHORT_ID}\s+✗ failed --topk 999999 is more than", failed) and len(failed) <= 80
    assert "no such run" in runs("results", "--model", "nothing").stdout


def test_results_and_jobs_tell_the_same_of_a_run(runs: CommandLine) -> None:
    (result,) = [row for row in lines(runs, "results", columns="200") if " gpt2 " in row]
    (job,) = [row for row in lines(runs, "jobs", columns="200") if " gpt2 " in row]
    k, critical, control = re.search(r" (\d+)\s+(x[\d.]+)\s+(x[\d.]+)", result).groups()  # type: ignore[union-attr]
    assert f"k {k} {critical}, control {control}, not tested" in job


@pytest.mark.parametrize("typed", ["ps", "models -n 4", "models gpt2", "results topk"])
def test_other_lists_are_one_line_a_row_too(runs: CommandLine, typed: str) -> None:
    for columns in (80, 120):
        shown = lines(runs, *typed.split(), columns=str(columns))
        assert shown and all(len(line) <= columns and line.strip() for line in shown)


def test_states_are_signs_and_words_without_colours_and_in_ascii(runs: CommandLine) -> None:
    plain = lines(runs, "jobs", NO_COLOR="1", TERM="dumb", LC_ALL="C")
    assert [re.split(r"\s{2,}", row)[1] for row in plain[1:]] == ["x failed", "+ done", "+ done"]
    assert all(row.isascii() and len(row) <= 80 for row in plain)
    assert json.loads(runs("jobs", "--json", LC_ALL="C").stdout)["total"] == 3


def test_more_models_than_are_wanted_are_left_out(runs: CommandLine) -> None:
    few = runs.json("models", "-n", "2")
    assert len(few["guide"]) == 2
    assert len(runs.json("models", "pythia", "-n", "1")["guide"]) == 1


def test_kinds_and_orders_are_those_that_the_daemon_knows() -> None:
    assert protocol.KINDS == listing.KINDS and protocol.SORTS == listing.SORTS


@pytest.mark.parametrize("given", ["", "tomorrow", "1h30", "2026-13-01"])
def test_what_is_no_time_is_refused(given: str) -> None:
    with pytest.raises(InvalidInput, match="no span of time and no date"):
        listing.moment(given)
