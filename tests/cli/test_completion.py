"""What a shell completes: values from registries, caches and what commands have seen, fast and without a daemon."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import CWTOOL, SHORT, CommandLine

SHELLS = {"complete_bash", "complete_zsh", "complete_fish"}


def completed(cwtool: CommandLine, typed: str, shell: str = "bash", **env: str) -> list[str]:
    """The values that a shell offers at the end of `typed`."""
    words = typed.split(" ")
    asked = {
        "_CWTOOL_COMPLETE": f"complete_{shell}", "COMP_WORDS": typed, "COMP_CWORD": str(len(words) - 1),
        "_TYPER_COMPLETE_ARGS": typed, "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }  # fmt: skip
    done = subprocess.run(
        [CWTOOL], capture_output=True, text=True, check=False, cwd=cwtool.cwd, env={**cwtool.env, **asked, **env}
    )
    assert done.stderr == ""
    return done.stdout.split("\n") if shell != "bash" else done.stdout.split()


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        ("cwtool run gpt2-m", ["gpt2-medium"]),
        ("cwtool run --model smollm2-13", ["smollm2-135m"]),
        ("cwtool load EleutherAI/pythia-1.4", ["EleutherAI/pythia-1.4b", "EleutherAI/pythia-1.4b-deduped"]),
        ("cwtool run gpt2 --dtype b", ["bfloat16", "bf16"]),
        ("cwtool run gpt2 --metric obd,gr", ["obd,grad_x_weight", "obd,grad_squared"]),
        ("cwtool run gpt2 --control b", ["bottom"]),
        ("cwtool run gpt2 --perturb sc", ["scale"]),
        ("cwtool run gpt2 --structure ", ["weight", "row", "column", "head"]),
        ("cwtool run gpt2 --scope per_l", ["per_layer"]),
        ("cwtool jobs --state fa", ["failed"]),
        ("cwtool jobs --sort ra", ["ratio"]),
        ("cwtool jobs --se", ["--search"]),
        ("cwtool study run sca", ["scaling"]),
        ("cwtool study run --models gpt2-m", ["gpt2-medium"]),
        ("cwtool study run --grid dty", ["dtype="]),
        ("cwtool study ex", ["export"]),
        ("cwtool jobs re", ["resume", "retry"]),
        ("cwtool results topk --metric tay", ["taylor"]),
        ("cwtool results export --format m", ["markdown"]),
        ("cwtool run gpt2 --data-file ", []),  # a shell completes files
    ],
)
def test_values_come_from_registries(own_cwtool: CommandLine, typed: str, found: list[str]) -> None:
    assert completed(own_cwtool, typed) == found
    assert not own_cwtool.home.exists()  # nothing was started or written


def test_models_on_disk_that_the_guide_does_not_know_are_completed(own_cwtool: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "cache/models--acme--rocket-7b").mkdir(parents=True)
    assert completed(own_cwtool, "cwtool run acme/", HF_HUB_CACHE=str(tmp_path / "cache")) == ["acme/rocket-7b"]


def test_run_ids_and_models_that_commands_have_seen_are_completed_after_the_daemon_has_stopped(
    own_cwtool: CommandLine,
) -> None:
    run_id = own_cwtool.json("run", "gpt2", *SHORT[2:], "--no-perturbation")["run_id"]
    failed = own_cwtool.json("run", "MODEL", "-k", "99999999", "--eval-limit", "2", rc=2)["error"]["message"]
    own_cwtool("jobs")
    own_cwtool("daemon", "stop")
    assert completed(own_cwtool, f"cwtool results show {run_id[:8]}") == [run_id]
    assert completed(own_cwtool, f"cwtool logs {run_id[-4:-1]}") == [run_id[-4:]]  # as every command takes it
    assert len(completed(own_cwtool, "cwtool jobs show 2")) == 2, failed
    assert completed(own_cwtool, "cwtool run --model MOD") == ["MODEL"]
    assert f'"{run_id}"' in completed(own_cwtool, "cwtool verify 2", "zsh")[0]
    assert completed(own_cwtool, "cwtool verify 2", "fish")[0].startswith(run_id)
    assert oct((own_cwtool.home / "completion.json").stat().st_mode)[-3:] == "600"
    (own_cwtool.home / "completion.json").write_text("{")  # damage costs no more than what it says
    assert completed(own_cwtool, f"cwtool results show {run_id[:8]}") == [run_id]
    own_cwtool("jobs")
    assert len(completed(own_cwtool, "cwtool jobs show 2")) == 2


def test_hosts_are_completed(own_cwtool: CommandLine) -> None:
    own_cwtool("daemon", "hosts", "add", "box", "tcp://192.0.2.1:7411", "x" * 40)
    assert completed(own_cwtool, "cwtool --host b") == ["box"]
    assert completed(own_cwtool, "cwtool daemon hosts remove ") == ["box"]


@pytest.mark.parametrize(
    "typed", ["cwtool run gp", "cwtool jobs show 2", "cwtool run gpt2 --metric g", "cwtool --host "]
)
def test_completion_imports_nothing_that_computes_or_connects_and_takes_little_time(
    own_cwtool: CommandLine, typed: str
) -> None:
    environment = {
        **own_cwtool.env, "_CWTOOL_COMPLETE": "complete_bash", "COMP_WORDS": typed,
        "COMP_CWORD": str(len(typed.split(" ")) - 1),
    }  # fmt: skip
    program = f"{sys.executable} -X importtime {CWTOOL}"
    done = subprocess.run(program.split(), capture_output=True, text=True, check=False, env=environment)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert not imported & {"torch", "transformers", "numpy", "textual", "huggingface_hub"}
    beside = _least_s([CWTOOL, "--version"], own_cwtool.env)
    assert _least_s([CWTOOL], environment) < 6 * beside  # 0.1 s and 0.3 s; torch would be 3 s


def _least_s(command: list[str], environment: dict[str, str]) -> float:
    """Processor time of a command, the least of three."""

    def spent() -> float:
        before = os.times()
        subprocess.run(command, capture_output=True, check=False, env=environment)
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    return min(spent() for _ in range(3))
