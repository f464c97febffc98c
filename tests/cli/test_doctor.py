"""`cwtool doctor` finds what is wrong and mends it; its bundle holds no secrets."""

from __future__ import annotations

import configparser
import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from cwa_daemon import client
from cwa_daemon.admin.bundle import redact
from cwa_daemon.base.address import running_pid
from cwa_daemon.base.settings import Settings
from tests.conftest import CWTOOL, SHORT, CommandLine


def states(cwtool: CommandLine, rc: int = 0) -> dict[str, str]:
    return {check["name"]: check["state"] for check in cwtool.json("doctor", rc=rc)["checks"]}


def test_on_a_sound_machine_nothing_is_a_problem(own_cwtool: CommandLine) -> None:
    assert "problem" not in states(own_cwtool).values()
    own_cwtool("daemon", "start")
    found = {check["name"]: check for check in own_cwtool.json("doctor")["checks"]}
    assert "version 0.1.0" in found["daemon"]["found"]
    assert "torch 2" in found["torch"]["found"]
    assert "✓" in own_cwtool("doctor").stdout
    assert found["processors"]["state"] == "ok"
    own_cwtool.env["CWTOOL_CPU_LANES"] = str(4 * (os.cpu_count() or 1))
    assert states(own_cwtool)["processors"] == "warning"


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
    assert process.wait(timeout=60) == 0
    assert not cwtool.settings.socket.exists()


# what must be a sentence and never a traceback


def check(cwtool: CommandLine, name: str, **env: str) -> dict[str, str]:
    """The first check of a name that is no plain "ok", of a doctor that has come to its end."""
    done = subprocess.run(
        [CWTOOL, "doctor", "--json"], cwd=cwtool.cwd, env={**cwtool.env, **env}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode in (0, 1) and "Traceback" not in done.stderr, done.stderr
    return next(
        found for found in json.loads(done.stdout)["checks"] if found["name"] == name and found["state"] != "ok"
    )


def test_a_database_of_a_newer_version_is_named_and_a_repair_leaves_it_alone(own_cwtool: CommandLine) -> None:
    cwtool = own_cwtool
    cwtool("daemon", "start")
    cwtool("daemon", "stop")
    with contextlib.closing(sqlite3.connect(cwtool.settings.database)) as database:
        database.execute("PRAGMA user_version = 99")
    found = check(cwtool, "job database")
    assert found["state"] == "problem" and "newer version of cwtool (schema 99" in found["found"]
    assert "newer version" in cwtool("doctor", "--repair", rc=3).stderr
    assert not list(cwtool.home.glob("*.damaged-*"))


@pytest.mark.parametrize(
    ("name", "content"), [("keys.json", "{"), ("allowed.json", '["a"]'), ("hosts.json", "\x00" * 50)]
)
def test_broken_files_of_keys_are_named(own_cwtool: CommandLine, name: str, content: str) -> None:
    own_cwtool("daemon", "start")
    (own_cwtool.home / name).write_text(content)
    (own_cwtool.home / name).chmod(0o600)
    found = check(own_cwtool, "keys")
    assert found["state"] == "problem" and name in found["found"] and found["advice"]


@pytest.mark.parametrize(
    "content", ["home = = 3", "home = 5\nmax_queue = -1", "nonsense = 1", "\x00", "home = '~nobody-here/x'"]
)
def test_a_bad_config_is_a_check(own_cwtool: CommandLine, tmp_path: Path, content: str) -> None:
    config = tmp_path / "config" / "cwtool" / "config.toml"
    config.parent.mkdir(parents=True)
    config.write_text(content)
    env = {"XDG_CONFIG_HOME": str(tmp_path / "config"), "XDG_STATE_HOME": str(tmp_path / "states"), "CWTOOL_HOME": ""}
    assert check(own_cwtool, "settings", **env)["state"] == "problem"


def test_a_user_whom_the_system_does_not_know_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    for name in ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME", "CWTOOL_HOME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    found = {check["name"]: check for check in client.examine()["checks"]}
    assert "no home folder" in found["settings"]["found"] and "CWTOOL_HOME" in found["settings"]["advice"]
    assert found["state folder"]["state"] == "problem" and "job database" not in found
    assert found["torch"]["state"] == "ok"


def test_a_cache_that_cannot_be_read_and_a_full_process_table_are_checks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(*args: object, **options: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    def no_thread(*args: object, **options: object) -> None:
        raise RuntimeError("can't start new thread")

    cache = tmp_path / "hub"
    (cache / "models--secret").mkdir(parents=True)
    monkeypatch.setenv("HF_HUB_CACHE", str(cache))
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: "secret" not in str(path) and access(path, mode))
    monkeypatch.setattr(subprocess, "run", full)
    monkeypatch.setattr("cwa_daemon.client.Client.connect", no_thread)
    found = {check["name"]: check for check in client.examine(Settings(home=tmp_path / "state"))["checks"]}
    assert (
        found["Hugging Face cache"]["state"] == "problem" and "cannot be read" in found["Hugging Face cache"]["found"]
    )
    assert "no process can be started" in found["torch"]["found"] and "ulimit -u" in found["torch"]["advice"]
    assert "can't start new thread" in found["daemon"]["found"]


def test_a_stopped_daemon_is_a_check(own_cwtool: CommandLine) -> None:
    own_cwtool("daemon", "start")
    os.kill(own_cwtool.json("daemon", "status")["pid"], signal.SIGSTOP)
    found = check(own_cwtool, "daemon", CWTOOL_REQUEST_TIMEOUT_S="0.5")
    assert found["state"] == "problem" and "stopped by a signal" in found["found"]


def test_passwords_in_addresses_are_blacked_out_however_they_are_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://ann:p%40ss%2Fword9@proxy:3128")
    monkeypatch.setenv("DATABASE", "postgres://ann:another%21one@db/x")
    written = [
        "proxy http://ann:p%40ss%2Fword9@proxy:3128/ used",
        "http://ann:p@ss/word9@proxy:3128",
        "http%3A%2F%2Fann%3Ap%40ss%2Fword9%40proxy",
        "the password is p@ss/word9, or p%40ss%2Fword9",
        "'https://user:hunter2@host/path'",
        "ssh://git:hunter2@host",
        "another!one",
    ]
    for text in written:
        shown = redact(text)
        assert "word9" not in shown and "hunter2" not in shown and "another" not in shown, shown
    assert redact("https://huggingface.co/gpt2/tree/main, tcp://127.0.0.1:5571") == (
        "https://huggingface.co/gpt2/tree/main, tcp://127.0.0.1:5571"
    )
