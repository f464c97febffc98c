"""`cwtool doctor` finds what is wrong and mends it; its bundle holds no secrets."""

from __future__ import annotations

import configparser
import contextlib
import os
import sqlite3
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from cwa_daemon.lifecycle import running_pid
from tests.conftest import SHORT, CommandLine


def states(cwtool: CommandLine, rc: int = 0) -> dict[str, str]:
    return {check["name"]: check["state"] for check in cwtool.json("doctor", rc=rc)["checks"]}


def test_on_a_sound_machine_nothing_is_a_problem(own_cwtool: CommandLine) -> None:
    assert "problem" not in states(own_cwtool).values()
    own_cwtool("daemon", "start")
    found = {check["name"]: check for check in own_cwtool.json("doctor")["checks"]}
    assert "version 0.1.0" in found["daemon"]["found"]
    assert "torch 2" in found["torch"]["found"]
    assert "✓" in own_cwtool("doctor").stdout


@pytest.mark.parametrize("damage", ["garbage", "truncated"])
def test_a_damaged_database_is_named_set_aside_and_the_runs_are_found_again(
    own_cwtool: CommandLine, damage: str
) -> None:
    cwtool = own_cwtool
    run = cwtool.json("run", *SHORT)
    cwtool("daemon", "stop")
    database = cwtool.settings.database
    content = database.read_bytes()
    spoilt = b"garbage" * 1000 if damage == "garbage" else content[: len(content) // 3]
    database.write_bytes(spoilt)
    if damage == "garbage":
        said = cwtool("jobs", rc=3).stderr
        assert "is damaged" in said and "cwtool doctor --repair" in said
    assert states(cwtool, rc=1)["job database"] == "problem"

    said = cwtool("doctor", "--repair").stderr
    assert "was set aside" in said and "found 1 finished runs again" in said
    aside = [path.read_bytes() for path in cwtool.home.glob("jobs.sqlite.damaged-*")]  # with its journal, if it had one
    assert spoilt in aside
    assert [row["run_id"] for row in cwtool.json("results")["results"]] == [run["run_id"]]
    assert cwtool.json("results", "show")["damage"] == run["damage"]
    assert cwtool.json("jobs", "show", run["run_id"])["spec"]["topk"] == [5]
    cwtool("daemon", "stop")
    assert "found" not in cwtool("doctor", "--repair").stderr  # nothing is listed twice


def test_a_run_found_again_is_not_taken_for_the_latest(own_cwtool: CommandLine) -> None:
    cwtool = own_cwtool
    first, second = (cwtool.json("run", *SHORT)["run_id"] for _ in range(2))
    cwtool("daemon", "stop")
    with contextlib.closing(sqlite3.connect(cwtool.settings.database)) as database, database:
        database.execute("DELETE FROM jobs WHERE run_id = ?", [first])
    assert "found 1 finished runs again" in cwtool("doctor", "--repair").stderr
    assert [job["run_id"] for job in cwtool.json("jobs", "list")["jobs"]] == [second, first]
    assert cwtool.json("results", "show")["run_id"] == second


def test_files_of_a_run_that_are_not_what_it_wrote_are_found(own_cwtool: CommandLine) -> None:
    cwtool = own_cwtool
    run_id = cwtool.json("run", *SHORT, "--no-perturbation")["run_id"]
    assert "the files of 1 runs are as they were written" in " ".join(cwtool("doctor").stdout.split())
    (cwtool.settings.runs / run_id / "topk_grad_x_weight.csv").write_text("rank\n")
    said = " ".join(cwtool("doctor", rc=1).stdout.split())
    assert "is not as it was written" in said and "cwtool verify" in said


def test_nothing_is_repaired_under_a_daemon_that_runs(own_cwtool: CommandLine) -> None:
    own_cwtool("daemon", "start")
    assert "cwtool daemon stop" in own_cwtool("doctor", "--repair", rc=2).stderr


def test_the_bundle_holds_no_token_no_secret_and_no_name(own_cwtool: CommandLine) -> None:
    cwtool = own_cwtool
    cwtool("run", *SHORT)
    with cwtool.settings.daemon_log.open("a") as log:
        log.write(f"asked with hf_abcdefgh12345678 and {Path.home()}/secret, Authorization: Bearer abc.def\n")
        log.write("my-very-secret-value\n")
    cwtool("doctor", "--bundle", "bundle.zip", MY_API_KEY="my-very-secret-value")
    with zipfile.ZipFile(cwtool.cwd / "bundle.zip") as bundle:
        assert set(bundle.namelist()) >= {"report.json", "daemon.log", "worker-cpu.log"}
        everything = "".join(bundle.read(name).decode() for name in bundle.namelist())
    for secret in ("hf_abcdefgh12345678", "my-very-secret-value", str(Path.home()), "Bearer abc.def"):
        assert secret not in everything
    assert "cwtool 0.1.0 serves" in everything


def test_the_service_unit_starts_the_daemon_of_this_state_folder(own_cwtool: CommandLine, tmp_path: Path) -> None:
    cwtool = own_cwtool
    cwtool.env["XDG_CONFIG_HOME"] = str(tmp_path / "config")
    assert "enable-linger" in cwtool("daemon", "install-service").stderr
    file = tmp_path / "config" / "systemd" / "user" / "cwtool.service"
    assert file.read_text().rstrip() == cwtool("daemon", "install-service", "--print").stdout.rstrip()
    file.write_text("somebody's own")
    assert "--force" in cwtool("daemon", "install-service", rc=2).stderr
    cwtool("daemon", "install-service", "--force")
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(file)
    assert (
        unit["Service"]["NoNewPrivileges"] == "yes" and "PrivateTmp" not in unit["Service"]
    )  # --output may lie in /tmp
    assert ("ProtectSystem" in unit["Service"]) == (os.getuid() == 0)
    command = [word.strip('"') for word in unit["Service"]["ExecStart"].split(" ")]
    name, _, value = unit["Service"]["Environment"].strip('"').partition("=")
    assert (command[0], name, value) == (sys.executable, "CWTOOL_HOME", str(cwtool.home))
    process = subprocess.Popen(command, env={**os.environ, name: value})
    while running_pid(cwtool.settings) != process.pid or not cwtool.settings.socket.exists():
        assert process.poll() is None
    assert cwtool.json("daemon", "status")["pid"] == process.pid
    process.terminate()  # as systemd does
    assert process.wait(timeout=10) == 0
    assert not cwtool.settings.socket.exists()
