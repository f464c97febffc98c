"""Another user of the machine, who puts traps where a client may look, hears nothing from it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cwa_daemon.admin.lifecycle import wait_until_gone
from cwa_daemon.base import address, keys
from cwa_daemon.base.folder_lock import hold_lock
from cwa_daemon.base.security import check_socket, read_own_file
from cwa_daemon.base.settings import Settings
from cwa_daemon.client import Client
from cwa_engine.base.errors import CwaError, InvalidInput, UnsafePlace
from tests import isolation
from tests.conftest import CommandLine

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")

NOBODY = 65534
SECRET = "hf_secret_0123456789"

# A stranger's daemon: it binds, says so, and writes down all it is sent.
_TRAP = """
import os, socket, sys
os.setgid(65534); os.setuid(65534); os.umask(0)
door = socket.socket(socket.AF_UNIX); door.bind(sys.argv[1]); door.listen()
print("ready", flush=True)
while True:
    guest, _ = door.accept()
    guest.sendall(bytes.fromhex("ff00000000000000017f"))
    while heard := guest.recv(65536):
        print(heard.hex(), flush=True)
"""


@contextmanager
def trap(path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process of another user that listens at a path."""
    command = [sys.executable, "-c", _TRAP, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stdout.readline() == "ready\n"
        try:
            yield process
        finally:
            process.kill()


def heard(process: subprocess.Popen[str]) -> str:
    process.kill()
    assert process.stdout
    return process.stdout.read()


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder in which everybody may make files, of a path short enough for a socket."""
    folder = Path(tempfile.mkdtemp(dir=isolation.FOLDER))
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


def run(cwtool: CommandLine, *args: str) -> str:
    """What a command says that carries the user's token, and is to be refused before it sends anything."""
    return " ".join(cwtool(*args, rc=4, HF_TOKEN=SECRET).stderr.split())


RUN = ("run", "--model", "gpt2", "--detach")


def test_a_socket_where_this_shell_would_have_one_is_not_asked(own_cwtool: CommandLine, open_folder: Path) -> None:
    own_cwtool("daemon", "start")
    own = own_cwtool.settings.socket
    trapped = open_folder / own.relative_to(os.environ["XDG_RUNTIME_DIR"])
    for folder in (trapped.parent.parent, trapped.parent):
        folder.mkdir()
        os.chown(folder, NOBODY, NOBODY)
    with trap(trapped) as stranger:
        own_cwtool(*RUN, HF_TOKEN=SECRET, XDG_RUNTIME_DIR=str(open_folder))
        assert heard(stranger) == ""
    own_cwtool("daemon", "stop", XDG_RUNTIME_DIR=str(open_folder))


def test_an_address_that_another_user_wrote_is_not_followed(own_cwtool: CommandLine, open_folder: Path) -> None:
    own_cwtool("daemon", "start")
    written = json.loads(own_cwtool.settings.address_file.read_text())
    own_cwtool.env["COLUMNS"] = "300"
    with trap(open_folder / "s") as stranger:
        own_cwtool.settings.address_file.write_text(json.dumps({**written, "socket": str(open_folder / "s")}))
        assert f"others may write to {open_folder}" in run(own_cwtool, *RUN)
        os.chown(own_cwtool.settings.address_file, NOBODY, NOBODY)
        assert "daemon.json belongs to another user (uid 65534)" in run(own_cwtool, *RUN)
        assert heard(stranger) == ""
    os.chown(own_cwtool.settings.address_file, 0, 0)
    own_cwtool.settings.address_file.write_text(json.dumps(written))


def _owned_folder(folder: Path) -> None:
    os.chown(folder, NOBODY, NOBODY)


def _open_to_all(folder: Path) -> None:
    folder.chmod(0o777)


def _swapped_for_a_link(folder: Path) -> None:
    moved = folder.with_name("moved")
    folder.rename(moved)
    folder.symlink_to(moved)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_owned_folder, "belongs to another user (uid 65534)"),
        (_open_to_all, "others may write to"),
        (_swapped_for_a_link, "is no folder of its own"),
    ],
)
@pytest.mark.parametrize("level", [0, 1, 2])
def test_a_folder_on_the_way_that_others_could_have_made_is_named(
    tmp_path: Path, spoil: Callable[[Path], None], said: str, level: int
) -> None:
    folders = [tmp_path / "a", tmp_path / "a" / "b", tmp_path / "a" / "b" / "c"]
    folders[-1].mkdir(parents=True)
    for folder in folders:
        folder.chmod(0o700)
    spoil(folders[level])
    with pytest.raises(UnsafePlace) as raised:
        check_socket(folders[-1] / "s")
    assert said in raised.value.message and str(folders[level]) in raised.value.message
    assert "nothing was sent" in raised.value.hint


def test_a_socket_of_another_user_in_a_folder_of_ours_is_refused(own_cwtool: CommandLine) -> None:
    own_cwtool("daemon", "start")
    own_cwtool.env["COLUMNS"] = "300"
    socket = own_cwtool.settings.socket
    for folder in (socket.parent, socket.parent.parent):
        folder.chmod(0o777)
    socket.unlink()
    with trap(socket) as stranger:
        for folder in (socket.parent, socket.parent.parent):
            folder.chmod(0o700)
        pid = json.loads(own_cwtool.settings.address_file.read_text())["pid"]
        os.kill(pid, signal.SIGSTOP)  # or it would make its socket anew
        try:
            assert f"the socket {socket} belongs to another user (uid 65534)" in run(own_cwtool, *RUN)
            os.chown(socket, 0, 0)
            assert f"another user (uid 65534) answers at {socket}" in run(own_cwtool, *RUN)
            said = heard(stranger)
        finally:
            os.kill(pid, signal.SIGCONT)
    assert SECRET.encode().hex() not in said and len(said) <= 2 * 64  # at most what every connection begins with


def test_a_connection_that_is_made_anew_is_checked_anew(own_cwtool: CommandLine, open_folder: Path) -> None:
    settings = own_cwtool.settings
    own_cwtool("daemon", "start")
    with Client.connect(settings) as client:
        pid = client.status().pid
        with trap(open_folder / "s") as stranger:
            own_cwtool.kill(pid)
            assert wait_until_gone(pid, 30)
            with hold_lock(settings):
                address.write_address(settings, open_folder / "s")
                with pytest.raises(UnsafePlace, match="others may write to"):
                    client.status()
                assert heard(stranger) == ""
        own_cwtool("daemon", "start")
        assert client.status().pid != pid


@pytest.mark.parametrize(
    "make", [Path.mkdir, Path.touch, lambda path: path.symlink_to("/tmp")], ids=["folder", "file", "link"]
)
def test_a_name_below_tmp_that_somebody_else_took_keeps_no_daemon_from_starting(
    make: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken, user = Path("/tmp/cwtool-61234"), 61234
    home = Path(tempfile.mkdtemp(dir=isolation.FOLDER))
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    monkeypatch.setattr(os, "getuid", lambda: user)
    assert Settings(home=home).socket.is_relative_to(taken)
    make(taken)
    try:
        assert Settings(home=home).socket == home / "run" / "daemon.sock"
    finally:
        taken.rmdir() if taken.is_dir() and not taken.is_symlink() else taken.unlink()


def test_files_of_another_user_are_not_read_as_ours(tmp_path: Path) -> None:
    home = tmp_path / "state"
    settings = Settings(home=home)
    pair = keys.make_pair(settings, force=False)
    keys.add_host(settings, "box", "tcp://box:5571", pair.public)
    (home / "keys.json").chmod(0o644)
    with pytest.raises(UnsafePlace, match=r"others may read .*keys.json \(mode 644\)"):
        keys.own_pair(settings)
    os.chown(home / "hosts.json", NOBODY, NOBODY)
    with pytest.raises(UnsafePlace, match=r"hosts.json belongs to another user \(uid 65534\)"):
        keys.hosts(settings)
    (home / "hosts.json").rename(tmp_path / "moved")
    (home / "hosts.json").symlink_to(tmp_path / "moved")
    with pytest.raises(UnsafePlace, match="a link leads to it"):
        keys.hosts(settings)
    home.chmod(0o777)
    with pytest.raises(UnsafePlace, match="others may write to"):
        read_own_file(home / "keys.json")
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(UnsafePlace, match="no regular file"):
        read_own_file(tmp_path / "pipe")


def test_a_config_file_that_others_could_have_written_sets_nothing(own_cwtool: CommandLine, tmp_path: Path) -> None:
    config = tmp_path / "cwtool" / "config.toml"
    config.parent.mkdir()
    config.write_text("trust_remote_code = true\n")
    os.chown(config, NOBODY, NOBODY)
    own_cwtool.env["XDG_CONFIG_HOME"] = str(tmp_path)
    said = " ".join(own_cwtool("ps", rc=2).stderr.split())
    assert "is not yours alone: it belongs to uid 65534" in said
    found = own_cwtool.json("doctor", rc=1)["checks"][0]
    assert (found["name"], found["state"]) == ("settings", "problem")
    config.unlink()


@pytest.mark.parametrize("name", ["allowed.json", "keys.json", "hosts.json"])
@pytest.mark.parametrize("content", ["{", "[1]", "\x00", '"text"', "7"])
def test_a_broken_file_of_keys_is_named_with_what_to_do(tmp_path: Path, name: str, content: str) -> None:
    settings = Settings(home=tmp_path)
    (tmp_path / name).write_text(content)
    (tmp_path / name).chmod(0o600)
    read = {"allowed.json": keys.allowed, "keys.json": keys.own_pair, "hosts.json": keys.hosts}[name]
    with pytest.raises(InvalidInput, match=name) as raised:
        read(settings)
    assert "mend it, or remove it" in raised.value.hint
    assert isinstance(raised.value, CwaError)
