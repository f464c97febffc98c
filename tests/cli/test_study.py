"""`cwtool study`: what a user types, and what is said of it."""

from __future__ import annotations

import csv
import json
import signal
from pathlib import Path

import pytest

from cwa_daemon.client import stop_daemon
from tests.conftest import CommandLine, free_address, reached_as_box
from tests.engine.conftest import TEXTS

SMALL = ("--topk", "3", "--eval-limit", "4", "--control", "random", "--control-seeds", "2")


@pytest.fixture
def toml(cwtool: CommandLine) -> Path:
    path = cwtool.cwd / "two.toml"
    path.write_text(
        'name = "two models"\n[run]\ntopk = [3]\neval-limit = 4\ncontrol = ["random"]\ncontrol-seeds = 2\n'
        '[grid]\nmodel = ["gpt2", "EleutherAI/pythia-70m"]\n'
    )
    return path


def test_a_file_is_run_shown_listed_and_exported(cwtool: CommandLine, toml: Path) -> None:
    ran = cwtool("study", "run", str(toml))
    study_id = ran.stdout.split()[0]
    assert "two models" in ran.stdout and "done" in ran.stdout and "grad_x_weight" in ran.stdout
    assert "running  1 gpt2" in ran.stderr
    again = cwtool.json("study", "run", str(toml))
    assert again["study"] == study_id and again["complete"]
    runs = [cell["run_id"] for cell in again["cells"]]
    assert [cwtool.json("jobs", "show", run)["state"] for run in runs] == ["done", "done"]
    planned = cwtool.json("study", "run", str(toml), "--dry-run")
    assert [cell["done"] for cell in planned["cells"]] == [True, True]

    shown = cwtool.json("study", "show", study_id[-4:])
    assert shown["cells"] == again["cells"] and shown["folder"].endswith(study_id)
    listed = next(study for study in cwtool.json("study", "list")["studies"] if study["study"] == study_id)
    assert (listed["name"], listed["cells"]) == ("two models", {"done": 2})
    assert study_id in cwtool("study").stdout

    cwtool("study", "export", study_id, "--output", "as-csv")
    with (cwtool.cwd / "as-csv" / "cells.csv").open() as file:
        assert [row["run_id"] for row in csv.DictReader(file)] == runs
    files = cwtool.json("study", "export", study_id, "--output", "as-json", "--format", "json")["files"]
    assert [Path(file).name for file in files] == ["answer.json", "cells.json"]
    assert [row["run_id"] for row in json.loads((cwtool.cwd / "as-json" / "cells.json").read_text())] == runs
    assert "exists" in cwtool("study", "export", study_id, "--output", "as-csv", rc=2).stderr


def test_what_is_typed_wins_over_the_file(cwtool: CommandLine, toml: Path) -> None:
    plan = cwtool.json(
        "study", "run", str(toml), "--models", "gpt2", "--seeds", "0", "1", "--grid", "metric=magnitude+wanda,wanda",
        "perturb=zero,sign_flip", "--dry-run",
    )  # fmt: skip
    labels = [cell["label"] for cell in plan["cells"]]
    assert len(labels) == 8
    assert labels[0] == "gpt2, metrics magnitude+wanda, perturbations zero, seed 0"
    assert cwtool.json("study", "run", str(toml), "--seed", "3", "--dry-run")["cells"][0]["label"] == "gpt2"


def test_a_model_that_is_not_there_stops_no_other_and_is_named(cwtool: CommandLine) -> None:
    asked = ("study", "run", "--models", "gpt2", "./nothing", *SMALL, "--name", "one of two")
    ran = cwtool(*asked, rc=1)
    assert "nothing" in ran.stdout and "done" in ran.stdout and "study resume" in ran.stderr
    cells = cwtool.json("study", "show", rc=1)["cells"]
    assert [cell["state"] for cell in cells] == ["done", "failed"] and "nothing" in cells[1]["error"]
    resumed = cwtool.json("study", "resume", rc=1)["cells"]
    assert resumed[0] == cells[0] and resumed[1]["attempt"] == 2


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (("scalin", "--models", "gpt2"), "'scalin' is no question of studies"),  # codespell:ignore scalin
        (("nothing.toml",), "there is no file nothing.toml"),
        ((), "no model is given"),
        (("--models", "gpt2", "--grid", "dtyp=float32"), "there is no option 'dtyp'"),
        (("--models", "gpt2", "--grid", "dtype"), "--grid dtype has no values"),
        (("--models", "gpt2", "--grid", "model=gpt2"), "'model' is given twice"),
        (("--models", "gpt2", "--grid", "packed=maybe,true"), "maybe is neither true nor false"),
        (("--models", "gpt2", "--data-file", "-"), "is a pipe"),
        (("--models", "gpt2", "--seed", "1", "--seeds", "1", "2"), "'seed' is in the grid and in what all runs share"),
        (("--models", "gpt2", "gpt2"), "gpt2 is in the grid twice"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_runs(
    cwtool: CommandLine, typed: tuple[str, ...], said: str
) -> None:
    assert said in cwtool("study", "run", *typed, rc=2).stderr


def test_ctrl_c_leaves_a_study_that_goes_on_and_says_how_to_come_back(cwtool: CommandLine) -> None:
    started = cwtool.start(
        "study", "run", "--models", "gpt2", "--seeds", "0", "1", *SMALL[:-1], "300", "--name", "left"
    )
    assert started.stderr and any(" running  1 " in line for line in started.stderr)
    started.send_signal(signal.SIGINT)
    _, said = started.communicate(timeout=60)
    assert started.returncode == 130 and "study resume" in said and "study cancel" in said
    cancelled = cwtool.json("study", "cancel")
    assert cancelled["name"] == "left"
    cwtool("study", "show")
    study = cwtool.json("study", "resume")
    assert [cell["state"] for cell in study["cells"]] == ["done", "done"]


def test_detached_it_prints_its_id_alone(cwtool: CommandLine) -> None:
    study_id = cwtool("study", "run", "--models", "gpt2", *SMALL, "--name", "detached", "--detach").stdout.strip()
    assert cwtool.json("study", "resume", study_id)["complete"]


def test_an_unknown_study_is_said(cwtool: CommandLine) -> None:
    assert "no study 'zzzz'" in cwtool("study", "show", "zzzz", rc=6).stderr


def test_a_study_of_another_machine_is_gone_on_with_there_alone(
    hub: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    box = CommandLine(tmp_path_factory.mktemp("box") / "state", tmp_path_factory.mktemp("there"), hub)
    here = reached_as_box(box, CommandLine(tmp_path / "state", tmp_path, hub), free_address())
    (tmp_path / "texts.txt").write_text("\n\n".join(TEXTS) + "\n")
    try:
        asked = (
            "--host",
            "box",
            "study",
            "run",
            "--models",
            "gpt2",
            "--data-file",
            "texts.txt",
            "--seeds",
            "0",
            "1",
            *SMALL,
        )
        told = here.json(*asked)
        assert [cell["state"] for cell in told["cells"]] == ["done", "done"]
        assert here.json(*asked)["cells"] == told["cells"]
        assert here.json("--host", "box", "study", "resume")["cells"] == told["cells"]
        assert {path.name for path in (box.home / "runs").iterdir()} == {cell["run_id"] for cell in told["cells"]}
        refused = here("study", "show", rc=2).stderr
        assert "are in box, not in the daemon of this machine" in refused and "cwtool --host box study" in refused
        assert here.json("study", "list")["studies"][0]["cells"] == {"done": 2}
    finally:
        stop_daemon(here.settings)
        stop_daemon(box.settings)
