"""Texts as users give them on the command line: files, pipes, and other machines."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import CWTOOL, CommandLine

ASKED = "run --model gpt2 --topk 3 --no-perturbation --json"


@pytest.fixture
def texts(cwtool: CommandLine) -> list[str]:
    """Eight texts, in `texts.jsonl` and `texts.jsonl.gz` of the working folder."""
    found = [f"This is text number {number}, and it is not long." for number in range(8)]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in found).encode()
    (cwtool.cwd / "texts.jsonl").write_bytes(lines)
    (cwtool.cwd / "texts.jsonl.gz").write_bytes(gzip.compress(lines))
    return found


def shell(cwtool: CommandLine, line: str, rc: int = 0) -> subprocess.CompletedProcess[str]:
    """A line as a user types it, CWTOOL standing for the command."""
    asked = ["bash", "-c", line.replace("CWTOOL", f"{CWTOOL} {ASKED}")]
    done = subprocess.run(
        asked, cwd=cwtool.cwd, env=cwtool.env, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == rc, done.stdout + done.stderr
    return done


def summary(cwtool: CommandLine, line: str) -> dict[str, Any]:
    return dict(json.loads(shell(cwtool, line).stdout))


@pytest.mark.usefixtures("texts")
def test_the_same_texts_are_the_same_run_however_they_are_given(cwtool: CommandLine) -> None:
    plain = summary(cwtool, "CWTOOL --data-file texts.jsonl")
    assert plain["texts"]["source"] == str(cwtool.cwd / "texts.jsonl")
    for line, source in {
        "cat texts.jsonl | CWTOOL --data-file -": "standard input",
        "zcat texts.jsonl.gz | CWTOOL --data-file=-": "standard input",
        "CWTOOL --data-file - < texts.jsonl.gz": "standard input",
        "CWTOOL --data-file /dev/stdin < texts.jsonl": "standard input",
        "CWTOOL --data-file <(zcat texts.jsonl.gz)": "pipe /dev/fd/63",
        "CWTOOL --data-file texts.jsonl.gz": str(cwtool.cwd / "texts.jsonl.gz"),
        "HOME=$PWD; CWTOOL --data-file='~/texts.jsonl'": str(cwtool.cwd / "texts.jsonl"),
    }.items():
        again = summary(cwtool, line)
        assert again["texts"]["source"] == source
        assert {**again["texts"], "source": ""} == {**plain["texts"], "source": ""}
        assert (again["baseline"], again["rankings"]) == (plain["baseline"], plain["rankings"])


@pytest.mark.usefixtures("texts")
def test_weights_too_may_come_out_of_a_pipe(cwtool: CommandLine) -> None:
    target = "transformer.h.1.mlp.c_proj.weight[3,5]"
    found = summary(cwtool, f"echo '{target}' | CWTOOL --weights - --data-file texts.jsonl")
    assert found["rankings"][0]["top"][0]["target"] == target
    both = shell(cwtool, "CWTOOL --weights - --data-file - < texts.jsonl", rc=2)
    assert "standard input is either" in both.stdout


def test_a_column_of_a_table_is_asked_for_by_name_in_every_command(cwtool: CommandLine, texts: list[str]) -> None:
    rows = "\n".join(f'{number},"{text}"' for number, text in enumerate(texts))
    (cwtool.cwd / "a.csv").write_text(f"id,abstract\n{rows}\n")
    refused = json.loads(shell(cwtool, "CWTOOL --data-file a.csv", rc=2).stdout)["error"]
    assert "but: id, abstract" in refused["message"] and "--text-column" in refused["hint"]
    found = summary(cwtool, "CWTOOL --data-file a.csv --text-column abstract")
    assert found["texts"]["sha256"] == summary(cwtool, "CWTOOL --data-file texts.jsonl")["texts"]["sha256"]
    planned = cwtool.json("plan", "--model", "gpt2", "--data-file", "a.csv", "--text-column", "abstract")
    assert "--text-column abstract" in planned["command"]
    few = ["--candidates", "5", "--topk", "2", "--critical-set", "0"]
    ablated = cwtool.json("ablate", "--model", "gpt2", "--data-file", "a.csv", "--text-column", "abstract", *few)
    assert ablated["texts"]["texts"] == 8


def test_what_was_not_plain_about_the_texts_is_in_the_log_of_the_run(cwtool: CommandLine) -> None:
    line = 'printf \'{"text": "first text"}\\n{"text": null}\\n{"text": "second text"}\\n\' | CWTOOL --data-file -'
    log = Path(summary(cwtool, line)["folder"], "log.txt").read_text()
    assert "standard input is read as JSON lines, by its content" in log
    assert "warning: 1 of 3 rows of standard input have no text and were left out" in log


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--data-file", ""], "--data-file is empty"),
        (["--output", ""], "--output is empty"),
        (["--dataset", " "], "--dataset is empty"),
        (["--revision", ""], "the revision is empty"),
        (["--data-file", "."], "is a folder"),
        (["--text-column", "text"], "the built-in texts have no columns"),
        (["--dataset", "./nowhere:train"], "there is no dataset folder"),
    ],
)
def test_an_option_that_means_nothing_is_refused(cwtool: CommandLine, options: list[str], said: str) -> None:
    assert said in cwtool("run", "--model", "gpt2", *options, rc=2).stderr


def test_an_empty_model_is_not_the_working_folder(cwtool: CommandLine) -> None:
    for command in (["run", "--model", ""], ["load", ""], ["unload", " "]):
        assert "no model is given" in cwtool(*command, rc=2).stderr
    assert "--host is empty" in cwtool("--host", "", "ps", rc=2).stderr


def test_a_model_is_found_by_its_page_on_the_hub_and_unloaded_by_it(cwtool: CommandLine) -> None:
    page = "https://huggingface.co/EleutherAI/pythia-70m"
    if any(model["name"] == "EleutherAI/pythia-70m" for model in cwtool.json("ps")["models"]):
        cwtool("unload", page)  # it is one of another test's cache
    cwtool("load", f"{page}/tree/main")
    (warm,) = [model for model in cwtool.json("ps")["models"] if model["name"] == "EleutherAI/pythia-70m"]
    found = cwtool.json("run", "--model", "EleutherAI/pythia-70m@main", "--topk", "2", "--no-perturbation")
    assert (found["model"]["name"], found["model"]["revision"]) == ("EleutherAI/pythia-70m", warm["revision"])
    assert "with all its revisions" in cwtool("unload", "EleutherAI/pythia-70m@main", rc=2).stderr
    assert cwtool.json("unload", page) == {"unloaded": ["EleutherAI/pythia-70m"]}
    twice = cwtool("run", "--model", "gpt2@main", "--revision", "other", rc=2)
    assert "names the revision main, and --revision is other" in twice.stderr


def test_an_output_folder_after_an_equals_sign_may_begin_with_a_tilde(cwtool: CommandLine) -> None:
    cwtool("run", "--model", "gpt2", "--topk", "2", "--no-perturbation", "--output=~/found", HOME=str(cwtool.cwd))
    assert (cwtool.cwd / "found" / "summary.json").is_file()
    assert not (cwtool.cwd / "~").exists()


def test_a_dataset_folder_is_looked_up_where_the_user_is(cwtool: CommandLine, texts: list[str]) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.DatasetDict({"train": datasets.Dataset.from_dict({"text": texts})}).save_to_disk(cwtool.cwd / "a:b")
    found = cwtool.json("run", "--model", "gpt2", "--topk", "2", "--no-perturbation", "--dataset", "a:b:train")
    assert (found["texts"]["texts"], found["texts"]["source"]) == (8, f"{cwtool.cwd}/a:b::train")


def test_a_pipe_that_never_comes_can_be_left_by_ctrl_c(cwtool: CommandLine) -> None:
    os.mkfifo(cwtool.cwd / "fifo")
    process = cwtool.start("run", "--model", "gpt2", "--data-file", "fifo")
    cwtool("daemon", "start")
    writer = os.open(cwtool.cwd / "fifo", os.O_WRONLY)  # which waits until the command reads
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    os.close(writer)
    assert process.returncode != 0
    assert "Traceback" not in said
