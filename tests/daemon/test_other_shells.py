"""One user, several shells: each finds the daemon that runs, whatever its own variables say."""

from __future__ import annotations

import json
import os
import signal
import stat
import tempfile
from pathlib import Path

import pytest

from cwa_daemon.admin import lifecycle
from cwa_daemon.base import address
from cwa_daemon.base.folder_lock import hold_lock
from cwa_daemon.base.settings import MOST_SOCKET_BYTES, Settings
from cwa_daemon.client import Client
from cwa_engine.base.errors import DaemonUnreachable, NoDaemon
from tests import isolation
from tests.conftest import CommandLine


@pytest.fixture
def runtime() -> Path:
    """A folder whose path is short enough for that of a socket."""
    return Path(tempfile.mkdtemp(dir=isolation.FOLDER))


@pytest.fixture
def started(own_cwtool: CommandLine, runtime: Path) -> CommandLine:
    """A daemon that was started in a shell with a runtime folder of its own."""
    own_cwtool("daemon", "start", XDG_RUNTIME_DIR=str(runtime))
    return own_cwtool


def test_a_shell_without_the_daemons_variables_reaches_it_and_says_which_it_is(
    started: CommandLine, runtime: Path, tmp_path: Path
) -> None:
    kept = {name: value for name, value in started.env.items() if name in ("PATH", "CWTOOL_HOME", "PYTHONPATH")}
    socket = next(runtime.rglob("daemon.sock"))
    assert stat.S_IMODE(started.settings.address_file.stat().st_mode) == 0o600
    started.env = kept  # as cron has it
    status = started.json("daemon", "status")
    assert status["reached"] == f"pid {status['pid']} at {socket}"
    assert str(socket) in started("daemon", "status").stdout
    started.env["XDG_RUNTIME_DIR"] = str(tmp_path)
    assert started.json("ps")["devices"]
    found = {check["name"]: check for check in started.json("doctor")["checks"]}
    assert (found["daemon"]["state"], found["socket"]["state"]) == ("ok", "ok")
    assert f"{socket}" in found["socket"]["found"]
    started("daemon", "stop")
    assert not started.settings.address_file.exists() and not socket.exists()
    assert "no daemon is running" in started("ps").stderr


def test_a_shell_with_other_settings_is_told_that_the_daemon_goes_on_with_its_own(started: CommandLine) -> None:
    again = started("daemon", "start")
    assert (again.stdout, again.stderr) == ("the daemon was running already\n", "")
    started.env |= {"CWTOOL_CPU_LANES": "2", "CUDA_VISIBLE_DEVICES": "7"}
    said = started("daemon", "start", "--listen", "tcp://127.0.0.1:9").stderr
    assert "CWTOOL_CPU_LANES is 2 here and 1 in the daemon\n" in said
    assert "CWTOOL_LISTEN is tcp://127.0.0.1:9 here and not set in the daemon\n" in said
    assert "CUDA_VISIBLE_DEVICES is 7 here and not set in the daemon\n" in said
    assert "it goes on as it is; `cwtool daemon restart --when-idle` takes what this shell has\n" in said
    found = {check["name"]: check for check in started.json("doctor")["checks"]}
    assert found["settings of the daemon"]["state"] == "warning"
    started("daemon", "restart", "--when-idle")
    assert started("daemon", "start").stderr == ""
    assert "settings of the daemon" not in {check["name"] for check in started.json("doctor")["checks"]}


def test_a_daemon_that_does_not_answer_is_named_and_a_restart_ends_it(started: CommandLine) -> None:
    pid = started.json("daemon", "status")["pid"]
    os.kill(pid, signal.SIGSTOP)
    started.env["CWTOOL_REQUEST_TIMEOUT_S"] = "0.3"
    said = started("ps", rc=3).stderr
    assert (
        f"the daemon (pid {pid} at " in said
        and "did not answer 'hello'" in said
        and "cwtool daemon restart --force" in said
    )
    assert "did not answer" in started("version", rc=3).stderr  # nor is it taken for none
    assert "ended by force" in started("daemon", "stop", "--force").stderr
    del started.env["CWTOOL_REQUEST_TIMEOUT_S"]
    assert started.json("daemon", "status", rc=3)["error"]["code"] == "no_daemon"


def test_a_socket_that_is_not_to_be_seen_from_here_is_named_with_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cwa_daemon.client.reach.PRESENT_S", 0.1)
    settings = Settings(home=tmp_path)
    with hold_lock(settings):
        address.write_address(settings, tmp_path / "elsewhere.sock")
        with pytest.raises(DaemonUnreachable, match=rf"nobody answers at .*elsewhere.sock.*pid {os.getpid()} on"):
            Client.connect(settings)


def test_what_a_killed_daemon_wrote_down_is_not_taken_for_the_one_that_runs(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    address.write_address(settings, tmp_path / "old.sock")
    with pytest.raises(NoDaemon):
        address.find(settings)
    written = json.loads(settings.address_file.read_text())
    with hold_lock(settings):
        for content in (json.dumps({**written, "pid": 1}), "{", "[]", '{"socket": 1}'):
            settings.address_file.write_text(content)
            with pytest.raises(DaemonUnreachable, match="has not written down where it is to be reached"):
                address.find(settings)


def test_a_process_that_took_the_number_of_the_daemon_is_not_ended(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    with hold_lock(settings):
        address.write_address(settings, settings.socket)
        written = json.loads(settings.address_file.read_text())
        settings.address_file.write_text(json.dumps({**written, "started": written["started"] - 100}))
        with pytest.raises(DaemonUnreachable, match="no process that this one can tell"):
            lifecycle.kill(settings)


@pytest.mark.parametrize("name", ["x" * 120, "ü" * 40], ids=["long", "of many bytes"])
def test_a_runtime_folder_with_a_long_name_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    folder = tmp_path / name
    folder.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    socket = Settings(home=tmp_path).socket
    assert len(os.fsencode(socket)) <= MOST_SOCKET_BYTES
    assert socket.is_relative_to(f"/tmp/cwtool-{os.getuid()}")


def test_a_runtime_folder_of_another_user_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    settings = Settings(home=tmp_path)
    monkeypatch.setattr(os, "getuid", lambda: tmp_path.stat().st_uid + 1)  # as after `su`, which hands it down
    assert not settings.socket.is_relative_to(tmp_path)
