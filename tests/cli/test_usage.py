"""Command lines that make no sense: each is told apart, named and answered with what works, on stdout as JSON if asked."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
import typer

from cwa_tui.cli.synonyms import ELSEWHERE, SYNONYMS
from cwtool import app
from tests.conftest import CommandLine


@pytest.mark.parametrize(
    ("typed", "hint"),
    [
        ("run --model-id gpt2", "here it is --model:"),
        ("run --model_name_or_path gpt2", "here it is --model:"),
        ("plan --pretrained gpt2", "here it is --model:"),
        ("run gpt2 --k 3", "here it is --topk:"),
        ("run gpt2 --top-k 3", "here it is --topk:"),
        ("run gpt2 --n-samples 3", "here it is --eval-limit:"),
        ("run gpt2 --samples 3", "here it is --eval-limit:"),
        ("run gpt2 --device_map auto", "here it is --device:"),
        ("run gpt2 --precision bf16", "here it is --dtype:"),
        ("run gpt2 --max-length 3", "here it is --seq-len:"),
        ("run gpt2 --eval_limit 3", "here it is --eval-limit:"),
        ("run gpt2 --per_device_eval_batch_size 3", "here it is --batch-size:"),
        ("run gpt2 --output_dir out", "here it is --output:"),
        ("ablate gpt2 --overwrite", "here it is --force:"),
        ("jobs --status failed", "here it is --state:"),
        ("jobs --query gpt2", "here it is --search:"),
        ("results topk --format csv", "here it is --json:"),
        ("run gpt2 --trust_remote_code", "CWTOOL_TRUST_REMOTE_CODE"),
        ("run gpt2 --token x", "HF_TOKEN"),
        ("run gpt2 --sede 3", "did you mean --seed"),
        ("jobs --host box", "write it before the command: cwtool --host NAME jobs ..."),
        ("run gpt2 --version", "write it before the command: cwtool --version"),
        ("unload --model gpt2", "the model stands alone: `cwtool unload"),
        ("jobs list k7q2", "`cwtool jobs show k7q2` shows one"),
        ("results k7q2", "`cwtool results show k7q2` shows one"),
        ("gpt2", "`cwtool run gpt2` analyses the model"),
        ("jobs -n x", "give a whole number"),
        ("jobs -n 0", "give at least 1"),
        ("run gpt2 --noise-scale x", "give a number"),
        ("jobs cancel", "`cwtool jobs cancel --help`"),
        ("jobs shwo", "did you mean 'show'"),  # codespell:ignore shwo
        ("run", "cwtool run gpt2"),
        ("run --metric obd gpt2", "cwtool run gpt2"),
        ("ablate -k 3", "cwtool ablate gpt2"),
        ("run gpt2 --model gpt2-medium", "give one of them"),
        ("jobs --since tomorrow", "2026-11-20"),
        ("jobs --all --kind plan", "give one of them"),
    ],
)
def test_what_is_called_otherwise_elsewhere_is_named_as_it_is_called_here(
    cwtool: CommandLine, typed: str, hint: str
) -> None:
    said = cwtool(*typed.split(), rc=2)
    assert hint in " ".join(said.stderr.split())
    assert said.stdout == "" and "Traceback" not in said.stderr
    as_json = cwtool(*typed.split(), "--json", rc=2)
    error = json.loads(as_json.stdout)["error"]
    assert error["code"] == "invalid_input" and error["message"]
    assert hint in " ".join(error["hint"].split())


def test_an_option_without_its_value_is_told_so(cwtool: CommandLine) -> None:
    assert "--topk has no value" in cwtool("run", "gpt2", "--json", "--topk", rc=2).stdout
    assert "--output has no value" in cwtool("run", "gpt2", "--output", "--json", rc=2).stdout
    assert not list(cwtool.cwd.iterdir())
    assert "-n has no value" in cwtool("jobs", "-n", rc=2).stderr


def test_every_name_that_is_translated_is_an_option_of_some_command() -> None:
    known = {name for one in _commands(typer.main.get_command(app)) for option in one.params for name in option.opts}
    known |= {
        name
        for one in _commands(typer.main.get_command(app))
        for option in one.params
        for name in option.secondary_opts
    }
    assert {f"--{ours}" for ours in SYNONYMS} <= known
    assert not {f"--{theirs}" for theirs in ELSEWHERE} & known


@pytest.mark.parametrize("typed", ["jobs", "results", "daemon hosts"])
def test_options_without_a_command_are_those_of_the_list(cwtool: CommandLine, typed: str) -> None:
    assert cwtool(*typed.split(), "--json").stdout == cwtool(*typed.split(), "list", "--json").stdout
    assert "Commands" in cwtool(*typed.split(), "--help").stdout


def test_the_help_is_what_cwtool_alone_prints(cwtool: CommandLine) -> None:
    alone: subprocess.CompletedProcess[str] = cwtool(rc=2)
    assert "Usage: cwtool" in alone.stdout + alone.stderr
    assert "Error" not in alone.stderr


def _commands(command: Any) -> Iterator[Any]:
    yield command
    for name in getattr(command, "commands", {}):
        yield from _commands(command.commands[name])
