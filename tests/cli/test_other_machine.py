"""`cwtool --host`: texts are read here and sent, files are written here, models are those of the other machine."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from cwa_daemon.client import stop_daemon
from tests.conftest import SHORT, CommandLine, free_address, reached_as_box


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory, hub: Path) -> Iterator[tuple[CommandLine, CommandLine]]:
    """(this machine, the box): each has its own state folder and working folder."""
    box = CommandLine(tmp_path_factory.mktemp("box") / "state", tmp_path_factory.mktemp("there"), hub)
    here = tmp_path_factory.mktemp("here")
    yield reached_as_box(box, CommandLine(here / "state", here, hub), free_address()), box
    stop_daemon(box.settings)


@pytest.fixture
def here(machines: tuple[CommandLine, CommandLine], tmp_path: Path) -> CommandLine:
    here = machines[0]
    here.cwd = tmp_path
    return here


@pytest.fixture
def box(machines: tuple[CommandLine, CommandLine]) -> CommandLine:
    return machines[1]


def run_folder(machine: CommandLine, run_id: str) -> Path:
    return machine.home / "runs" / run_id


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_files_of_a_run_are_written_here_and_can_be_fetched_again(here: CommandLine, box: CommandLine) -> None:
    found = here.json("--host", "box", "run", *SHORT, "--output", "out")
    folder = run_folder(box, found["run_id"])
    assert (found["host"], found["folder"], found["output"]) == ("box", str(folder), str(here.cwd / "out"))
    assert content(here.cwd / "out") == content(folder)
    assert f"box:{folder}" in here("--host", "box", "results", "show").stdout.replace("\n", "")
    fetched = here.json("--host", "box", "results", "fetch", found["run_id"][-4:])
    assert fetched == {"run_id": found["run_id"], "output": str(here.cwd / found["run_id"])}
    assert content(here.cwd / found["run_id"]) == content(folder)
    assert "wrote the files" in box("results", "fetch", "--output", str(here.cwd / "own")).stdout
    assert content(here.cwd / "own") == content(folder)
    assert not here.settings.runs.exists()


def test_a_table_that_is_not_as_the_run_wrote_it_is_not_fetched(here: CommandLine, box: CommandLine) -> None:
    run_id = here.json("--host", "box", "run", *SHORT, "--no-perturbation")["run_id"]
    table = run_folder(box, run_id) / "topk_grad_x_weight.csv"
    table.write_bytes(table.read_bytes()[:-20])
    assert "topk_grad_x_weight.csv is altered" in here("--host", "box", "results", "fetch", run_id, rc=1).stderr
    assert list((here.cwd / run_id).iterdir()) == []
    assert "there is no run" in here("--host", "box", "results", "fetch", "nothing", rc=6).stderr


def test_a_run_of_the_other_machine_is_verified_here(here: CommandLine, box: CommandLine) -> None:
    run_id = here.json("--host", "box", "run", *SHORT, "--no-perturbation")["run_id"]
    found = here.json("--host", "box", "verify", run_id)
    assert (found["agrees"], found["folder"], found["check"]["known"]) == (True, f"box:{run_id}", True)
    log = run_folder(box, run_id) / "log.txt"
    log.write_text("nothing happened")
    assert here.json("--host", "box", "verify", run_id, rc=1)["check"]["altered"] == {"log.txt": "altered"}


def test_a_folder_of_this_machine_is_not_taken_for_a_model_of_the_other(here: CommandLine) -> None:
    (here.cwd / "gpt2").mkdir()
    found = here.json("--host", "box", "run", *SHORT, "--no-perturbation")
    assert (found["model"]["name"], found["model"]["kind"]) == ("gpt2", "hub")
    assert "has no config.json" in here("--host", "box", "run", "--model", str(here.cwd / "gpt2"), rc=6).stderr
    for typed in ("./gpt2", "../gpt2", "m/model.gguf"):
        said = here("--host", "box", "run", "--model", typed, rc=2).stderr
        assert "looked for on box" in said and "whole path" in said
    assert "looked for on box" in here("--host", "box", "load", "./gpt2", rc=2).stderr


def test_a_name_is_no_path_of_the_daemons_working_folder(here: CommandLine) -> None:
    assert Path("/tmp").is_dir()
    assert "model 'tmp' is not in the cache" in here("--host", "box", "run", "--model", "tmp", rc=6).stderr


def test_a_rerun_and_its_texts_stay_on_the_other_machine(here: CommandLine, box: CommandLine) -> None:
    texts = here.cwd / "texts.txt"
    texts.write_text("\n\n".join(f"This is text number {number}." for number in range(6)))
    asked = ("run", "--model", "gpt2", "--topk", "3", "--no-perturbation", "--data-file", "texts.txt")
    first = here.json("--host", "box", *asked)
    texts.write_text("\n\n".join(f"Something else, the {number}th." for number in range(6)))
    assert "agree, byte for byte" in here("--host", "box", "rerun", first["run_id"]).stdout
    assert here.json("--host", "box", *asked)["texts"]["sha256"] != first["texts"]["sha256"]
    plan = here.json("--host", "box", "plan", "--model", "gpt2", "--data-file", "texts.txt")["command"]
    assert plan.startswith("cwtool --host box run ") and f"--data-file {texts}" in plan


def test_weights_are_read_here_and_a_dataset_folder_is_sent(here: CommandLine) -> None:
    datasets = pytest.importorskip("datasets")
    rows = {"text": [f"This is text number {number}." for number in range(6)], "label": list(range(6))}
    datasets.Dataset.from_dict(rows).save_to_disk(here.cwd / "data")
    (here.cwd / "targets.txt").write_text("transformer.h.1.mlp.c_proj.weight[3,5]\n")
    asked = ("--host", "box", "run", "--model", "gpt2", "--topk", "1", "--no-perturbation", "--detach")
    run_id = here(*asked, "--dataset", "data", "--weights", "targets.txt").stdout.strip()
    shutil.rmtree(here.cwd / "data")
    (here.cwd / "targets.txt").unlink()
    here("--host", "box", "logs", "-f", run_id)
    found = here.json("--host", "box", "results", "show", run_id)
    assert (found["texts"]["texts"], found["texts"]["source"]) == (6, str(here.cwd / "data"))
    assert found["rankings"][0]["top"][0]["target"] == "transformer.h.1.mlp.c_proj.weight[3,5]"


def test_what_cannot_be_written_here_is_said_before_anything_runs(here: CommandLine) -> None:
    before = here.json("--host", "box", "jobs")["jobs"]
    (here.cwd / "file").touch()
    said = here("--host", "box", "run", *SHORT, "--output", "out", "--detach", rc=2).stderr
    assert "results fetch RUN_ID --output" in said
    assert "cannot be written" in here("--host", "box", "run", *SHORT, "--output", "file", rc=2).stderr
    assert here.json("--host", "box", "jobs")["jobs"] == before


@pytest.mark.parametrize("command", ["daemon start", "daemon restart", "daemon logs", "doctor"])
def test_what_looks_after_a_machine_is_typed_there(here: CommandLine, command: str) -> None:
    said = here("--host", "box", *command.split(), rc=2).stderr
    assert "about the machine it is typed on" in said and "type it on box" in said
