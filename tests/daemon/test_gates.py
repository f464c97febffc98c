"""Whoever connects, and however many they are: what runs goes on, and requests are answered meanwhile."""

from __future__ import annotations

import json
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest

from cwa_daemon.client import stop_daemon
from cwa_daemon.control import gates
from tests.conftest import LONG, CommandLine, free_address, reached_as_box

SIGNATURE = bytes.fromhex("ff00000000000000017f")  # that ZMTP begins with


def limited(files: int) -> Callable[[], None]:
    """What a shell does that has typed `ulimit -n`."""
    return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))


@pytest.fixture
def started(own_cwtool: CommandLine) -> Callable[..., int]:
    """Starts a daemon that may have so many files open; gives its process."""

    def start(files: int, *args: str) -> int:
        command = [str(Path(sys.executable).with_name("cwtool")), "daemon", "start", *args]
        subprocess.run(command, env=own_cwtool.env, check=True, preexec_fn=limited(files), capture_output=True)
        return int(own_cwtool.json("daemon", "status")["pid"])

    return start


@contextmanager
def silent(count: int, connect: Callable[[], socket.socket]) -> Iterator[list[socket.socket]]:
    """So many connections on which nothing is said."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(before[1], count + 500), before[1]))
    with ExitStack() as stack:
        yield [stack.enter_context(connect()) for _ in range(count)]
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def local(cwtool: CommandLine) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(json.loads(cwtool.settings.address_file.read_text())["socket"])
    return connection


def remote(address: str) -> socket.socket:
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    return socket.create_connection((host, int(port)))


def ended(connection: socket.socket, patience_s: float) -> bool:
    """Whether the other side has closed a connection within the time."""
    connection.settimeout(patience_s)
    try:
        while connection.recv(4096):
            pass
    except TimeoutError:
        return False
    except OSError:
        return True
    return True


def test_silent_connections_of_this_user_neither_stop_the_daemon_nor_its_job(
    own_cwtool: CommandLine, started: Callable[..., int]
) -> None:
    pid = started(64)
    run_id = own_cwtool("run", *LONG, "--detach").stdout.strip()
    own_cwtool.wait_for(run_id, "damage")
    with silent(1000, lambda: local(own_cwtool)):
        own_cwtool.json("ps")
        assert len(psutil.Process(pid).net_connections("unix")) < 60
    assert own_cwtool.json("daemon", "status")["pid"] == pid
    assert own_cwtool.json("jobs", "show", run_id)["state"] == "running"
    own_cwtool("jobs", "cancel", run_id)


@pytest.mark.parametrize(("files", "count"), [(64, 2000), (1024, 400)])  # places for 4 of them, and for 164
def test_thousands_of_silent_strangers_neither_stop_the_daemon_nor_keep_others_out(
    own_cwtool: CommandLine, tmp_path: Path, files: int, count: int
) -> None:
    address = free_address()
    away = CommandLine(tmp_path / "elsewhere", tmp_path, Path(own_cwtool.env["HF_HOME"]))
    reached_as_box(own_cwtool, away, address)
    own_cwtool("daemon", "stop")
    command = [str(Path(sys.executable).with_name("cwtool")), "daemon", "start", "--listen", address]
    subprocess.run(command, env=own_cwtool.env, check=True, preexec_fn=limited(files), capture_output=True)
    run_id = own_cwtool("run", *LONG, "--detach").stdout.strip()
    own_cwtool.wait_for(run_id, "damage")
    with silent(count, lambda: remote(address)) as strangers:
        own_cwtool.json("ps")
        assert away.json("--host", "box", "jobs", "show", run_id)["state"] == "running"
        assert all(ended(stranger, 15) for stranger in strangers)  # nobody stays who says nothing
    own_cwtool("jobs", "cancel", run_id)


def test_who_says_a_byte_a_second_or_no_word_of_zmtp_is_shown_out(own_cwtool: CommandLine) -> None:
    address = free_address()
    own_cwtool("daemon", "keys", "new")
    own_cwtool("daemon", "start", "--listen", address)
    with remote(address) as dribbling, remote(address) as browser, local(own_cwtool) as half:
        browser.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert ended(browser, gates.SILENCE_S - 1)
        half.sendall(SIGNATURE + bytes(10))  # a handshake that never ends
        deadline = time.monotonic() + 3 * gates.SILENCE_S
        with pytest.raises(OSError, match=r"reset|[Bb]roken"):
            for byte in SIGNATURE * 100:
                dribbling.sendall(bytes([byte]))
                assert time.monotonic() < deadline, "it may stay"
                ended(dribbling, 1)
        assert ended(half, 3 * gates.SILENCE_S)
    own_cwtool("daemon", "status")


def test_connections_that_come_and_go_leave_nothing_open(own_cwtool: CommandLine, started: Callable[..., int]) -> None:
    pid = started(64)
    before = psutil.Process(pid).num_fds()
    for _ in range(500):
        with local(own_cwtool) as guest:
            guest.sendall(SIGNATURE)
    deadline = time.monotonic() + 60
    while psutil.Process(pid).num_fds() > before:
        assert time.monotonic() < deadline, "connections stay open"
    own_cwtool("daemon", "status")


def test_the_limit_of_open_files_is_raised_as_far_as_the_system_lets_it(own_cwtool: CommandLine) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    command = [str(Path(sys.executable).with_name("cwtool")), "daemon", "start"]
    soft_only = lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))  # noqa: E731
    subprocess.run(command, env=own_cwtool.env, check=True, preexec_fn=soft_only, capture_output=True)
    pid = own_cwtool.json("daemon", "status")["pid"]
    assert resource.prlimit(pid, resource.RLIMIT_NOFILE)[0] >= min(hard, 65536)


@pytest.mark.parametrize(
    ("most_open", "doors", "expected"), [(64, 1, 8), (64, 2, 4), (1024, 2, 164), (20_000, 2, 1024), (16, 2, 2)]
)
def test_there_are_as_many_places_as_descriptors_allow(most_open: int, doors: int, expected: int) -> None:
    assert gates.places(most_open, doors) == expected


def test_a_client_that_never_reads_is_cut_off_and_costs_bounded_memory(own_cwtool: CommandLine) -> None:
    import msgpack

    run_id = own_cwtool.json("run", "--model", "gpt2", "--topk", "3", "--no-perturbation", "--eval-limit", "4")[
        "run_id"
    ]
    (own_cwtool.settings.runs / run_id / "large.bin").write_bytes(os.urandom(2**20))
    pid = own_cwtool.json("daemon", "status")["pid"]
    before = psutil.Process(pid).memory_info().rss

    def frame(**message: object) -> bytes:
        body = msgpack.packb(message)
        return b"\x00" + bytes([len(body)]) + body

    with local(own_cwtool) as greedy:
        greedy.sendall(SIGNATURE + b"\x03\x00NULL" + bytes(16 + 1 + 31))
        ready = b"\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER"
        greedy.sendall(b"\x04" + bytes([len(ready)]) + ready)
        greedy.sendall(frame(op="hello", id=0, major=1, minor=3, version="x"))
        asked = 0
        greedy.settimeout(20)
        try:
            while asked < 20_000:
                greedy.sendall(b"".join(frame(op="file", id=1, run_id=run_id, name="large.bin") for _ in range(100)))
                asked += 100
        except OSError:  # cut off, or nothing more is read of it
            pass
        most = psutil.Process(pid).memory_info().rss - before
        own_cwtool.json("ps")
    assert asked < 20_000
    assert most < 8 * gates.MOST_UNREAD_BYTES  # ZeroMQ has a queue of its own behind the gate
    stop_daemon(own_cwtool.settings)
