"""A real daemon and its clients over real sockets."""

from __future__ import annotations

import asyncio
import os
import stat
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import zmq
import zmq.asyncio

from cwa_daemon import protocol
from cwa_daemon.base.address import running_pid
from cwa_daemon.base.folder_lock import hold_lock
from cwa_daemon.base.security import private_folder
from cwa_daemon.base.settings import Settings
from cwa_daemon.client import AsyncClient, Client, start_daemon
from cwa_engine.base.errors import (
    DaemonNotStartable,
    DaemonUnreachable,
    InvalidInput,
    VersionMismatch,
    error_from_dict,
)
from cwa_engine.spec import RunSpec
from tests.conftest import LONG, SHORT, CommandLine

SPEC = RunSpec(model="gpt2", topk=(5,), eval_limit=4)


class Raw:
    """A socket that says exactly what it is told to."""

    def __init__(self, settings: Settings) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.RCVTIMEO, 60_000)
        self._socket.connect(f"ipc://{settings.socket}")

    def send(self, **message: Any) -> None:
        self._socket.send(protocol.encode(message))

    def send_frames(self, *frames: bytes) -> None:
        self._socket.send_multipart(frames)

    def receive(self) -> dict[str, Any]:
        return protocol.decode(self._socket.recv())

    def ask(self, **message: Any) -> dict[str, Any]:
        self.send(**message)
        return self.receive()

    def hello(self, minor: int = 0) -> None:
        assert self.ask(id=0, op="hello", major=1, minor=minor, version="x")["ok"]

    def close(self) -> None:
        self._socket.close()
        self._context.term()


@pytest.fixture
def raw(cwtool: CommandLine) -> Any:
    start_daemon(cwtool.settings)
    connection = Raw(cwtool.settings)
    yield connection
    connection.close()


def test_a_connection_begins_with_hello(raw: Raw) -> None:
    assert raw.ask(id=1, op="status")["error"]["message"] == "a connection begins with hello"


def test_another_major_version_is_refused_with_the_command_that_mends_it(raw: Raw) -> None:
    error = error_from_dict(
        raw.ask(id=1, op="hello", major=99, minor=0, version="99.0", a_field_of_the_future=1)["error"]
    )
    assert isinstance(error, VersionMismatch)
    assert "cwtool daemon restart" in error.hint


def test_nonsense_is_answered_and_the_daemon_lives(raw: Raw) -> None:
    raw.send_frames(b"\xc1")
    assert raw.receive()["error"]["code"] == "not_greeted"
    raw.send_frames(b"", b"two", b"frames too many")
    raw.hello()
    raw.send_frames(b"\xc1")
    assert raw.receive()["error"]["code"] == "invalid_input"
    assert raw.ask(id=2, op="submit", spec={"model": ""})["error"]["code"] == "invalid_input"
    assert raw.ask(id=3, op="status")["ok"]


def test_the_same_client_key_gives_the_same_run(raw: Raw, cwtool: CommandLine) -> None:
    raw.hello()
    request = {"op": "submit", "spec": SPEC.model_dump(mode="json"), "client_key": "once-and-only-once"}
    access = {"cache_dir": str(Path(cwtool.env["HF_HOME"]) / "hub"), "offline": True}
    replies = [raw.ask(id=number, access=access, **request) for number in (1, 2)]
    assert replies[0]["run_id"] == replies[1]["run_id"]
    cwtool("logs", "-f", replies[0]["run_id"])


def test_a_follower_that_was_away_misses_nothing_and_hears_nothing_twice(cwtool: CommandLine) -> None:
    run_id = cwtool("run", *SHORT, "--detach").stdout.strip()
    with cwtool.client() as client:
        seen = []
        for event in client.follow(run_id):
            seen.append(event["seq"])
            if event["kind"] == "baseline":
                break
        seen += [event["seq"] for event in client.follow(run_id, after_seq=seen[-1])]
        assert seen == list(range(1, len(seen) + 1))
        assert seen == [event["seq"] for event in client.follow(run_id)]


def test_a_subscriber_that_does_not_acknowledge_gets_its_credit_and_then_waits(raw: Raw, cwtool: CommandLine) -> None:
    run_id = cwtool("run", *LONG, "--detach").stdout.strip()
    with cwtool.client() as client:
        for event in client.follow(run_id):  # more events than the credit are stored
            if event["seq"] > protocol.CREDIT + 10:
                break
    raw.hello()
    number = raw.ask(id=1, op="subscribe", run_id=run_id)["subscription"]
    received = [raw.receive()["event"]["seq"] for _ in range(protocol.CREDIT)]
    assert raw.ask(id=2, op="status")["id"] == 2  # the next thing heard is this reply, not another event
    raw.send(id=3, op="acknowledge", subscription=number, seq=received[-1])
    assert raw.receive()["event"]["seq"] == protocol.CREDIT + 1
    cwtool("jobs", "cancel", run_id)


@pytest.mark.parametrize("minor", [2, 3])
def test_events_come_one_by_one_only_to_a_client_that_knows_no_other_way(
    raw: Raw, cwtool: CommandLine, minor: int
) -> None:
    run_id = cwtool("run", *SHORT, "--detach").stdout.strip()
    with cwtool.client() as client:
        stored = list(client.follow(run_id))
    raw.hello(minor)
    raw.ask(id=1, op="subscribe", run_id=run_id)
    received: list[Any] = []
    while len(received) < len(stored):
        message = raw.receive()
        received += message["events"] if minor == 3 else [message["event"]]
    assert received == stored


def test_status_is_answered_while_a_run_computes(cwtool: CommandLine) -> None:
    run_id = cwtool("run", *LONG, "--detach").stdout.strip()
    cwtool.wait_for(run_id, "damage")
    with cwtool.client() as client:
        status = client.status()
    assert run_id in [worker.run_id for worker in status.workers]
    assert status.running == 1
    assert [model.name for model in status.models if model.in_use] == ["gpt2"]
    cwtool("jobs", "cancel", run_id)


def test_of_two_copies_of_a_model_the_one_that_the_run_uses_is_in_use(cwtool: CommandLine) -> None:
    cwtool("run", "--model", "gpt2", "--topk", "1", "--no-perturbation", "--dtype", "bfloat16")
    run_id = cwtool("run", *LONG, "--detach").stdout.strip()
    cwtool.wait_for(run_id, "damage")
    with cwtool.client() as client:
        models = client.status().models
    cwtool("jobs", "cancel", run_id)
    assert [model.dtype for model in models if model.in_use] == ["float32"]
    assert "bfloat16" in [model.dtype for model in models]


def test_a_model_in_use_is_not_unloaded(cwtool: CommandLine) -> None:
    run_id = cwtool("run", *LONG, "--detach").stdout.strip()
    cwtool.wait_for(run_id, "damage")
    assert f"busy with {run_id}" in cwtool("unload", "gpt2", rc=2).stderr
    cwtool("jobs", "cancel", run_id)


def test_texts_that_cannot_be_used_are_refused_before_anything_is_queued(cwtool: CommandLine) -> None:
    with cwtool.client() as client:
        before = len(client.jobs(limit=1000))
        with pytest.raises(InvalidInput):
            client.submit(SPEC.model_copy(update={"data_file": Path("/nowhere/texts.txt")}))
        assert len(client.jobs(limit=1000)) == before


async def test_many_clients_may_ask_at_once(cwtool: CommandLine) -> None:
    clients = [await AsyncClient.connect(cwtool.settings) for _ in range(20)]
    statuses = await asyncio.gather(*(client.status() for client in clients for _ in range(5)))
    assert {status.pid for status in statuses} == {statuses[0].pid}
    for client in clients:
        await client.close()


async def test_fifty_followers_and_ten_submitters_at_once_all_hear_the_same(cwtool: CommandLine) -> None:
    run_id = (await asyncio.to_thread(cwtool, "run", *SHORT, "--control-seeds", "20", "--detach")).stdout.strip()
    clients = await asyncio.gather(*(AsyncClient.connect(cwtool.settings) for _ in range(60)))

    async def follow(client: AsyncClient) -> list[int]:
        return [event["seq"] async for event in client.follow(run_id)]

    async def submit(client: AsyncClient, number: int) -> str:
        return await client.submit(SPEC, client_key=f"submitter-{number}")

    heard, submitted = await asyncio.gather(
        asyncio.gather(*(follow(client) for client in clients[:50])),
        asyncio.gather(*(submit(client, number) for number, client in enumerate(clients[50:]))),
    )
    assert all(seqs == list(range(1, len(heard[0]) + 1)) for seqs in heard)
    assert len(set(submitted)) == 10
    for run in submitted:
        await clients[0].cancel(run)
    for client in clients:
        await client.close()


def test_a_second_daemon_on_the_same_folder_refuses_and_the_first_goes_on(cwtool: CommandLine) -> None:
    start_daemon(cwtool.settings)
    inode = cwtool.settings.socket.stat().st_ino
    second = subprocess.run(
        [sys.executable, "-m", "cwa_daemon.control.server"],
        env=cwtool.env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert second.returncode == 1
    assert "another daemon" in second.stderr
    assert cwtool.settings.socket.stat().st_ino == inode
    cwtool("daemon", "status")


def test_clients_that_start_a_daemon_in_the_same_moment_share_one(own_cwtool: CommandLine) -> None:
    processes = [own_cwtool.start("jobs") for _ in range(4)]
    for process in processes:
        _, said = process.communicate(timeout=60)
        assert process.returncode == 0, said
    daemons = [p for p in psutil.process_iter(["cmdline", "environ"]) if _is_daemon_of(p, own_cwtool.home)]
    assert len(daemons) == 1


def test_asking_whether_a_daemon_runs_never_keeps_one_from_starting(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    asked, stop = threading.Event(), threading.Event()

    def ask() -> None:
        while not stop.is_set():
            running_pid(settings)
            asked.set()

    with ThreadPoolExecutor() as threads:
        asking = threads.submit(ask)
        try:
            asked.wait()
            for _ in range(2_000):
                with hold_lock(settings):
                    assert running_pid(settings) == os.getpid()
                assert running_pid(settings) is None
        finally:
            stop.set()
        asking.result()


def test_socket_and_folders_are_for_their_owner_alone(cwtool: CommandLine) -> None:
    start_daemon(cwtool.settings)
    assert stat.S_IMODE(cwtool.settings.socket.stat().st_mode) & 0o077 == 0
    assert stat.S_IMODE(cwtool.settings.runtime_dir.stat().st_mode) == 0o700
    assert stat.S_IMODE(cwtool.home.stat().st_mode) == 0o700


def test_a_folder_that_is_a_link_is_no_private_folder(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DaemonNotStartable, match="not a folder of its own"):
        private_folder(tmp_path / "link")


def test_a_folder_open_to_others_is_closed(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir(mode=0o755)
    assert stat.S_IMODE(private_folder(tmp_path / "open").stat().st_mode) == 0o700


def test_a_daemon_that_goes_away_is_noticed_by_its_followers(own_cwtool: CommandLine) -> None:
    run_id = own_cwtool("run", *LONG, "--detach").stdout.strip()
    own_cwtool.wait_for(run_id, "damage")
    settings = own_cwtool.settings.model_copy(update={"request_timeout_s": 1.0})
    with Client.connect(settings) as client:
        events = client.follow(run_id)
        next(events)
        own_cwtool.kill(client.status().pid)
        with pytest.raises(DaemonUnreachable):
            list(events)


def test_a_daemon_of_another_version_is_named_with_the_command_that_mends_it(own_cwtool: CommandLine) -> None:
    settings = own_cwtool.settings
    private_folder(settings.home)
    private_folder(settings.runtime_dir.parent)
    private_folder(settings.runtime_dir)
    old = "import sys, zmq, msgpack; from cwa_daemon.base.folder_lock import hold_lock\n"
    old += "from cwa_daemon.base.address import write_address; from cwa_daemon.base.settings import Settings\n"
    old += "s = zmq.Context().socket(zmq.ROUTER); s.bind(f'ipc://{Settings().socket}')\n"
    old += "with hold_lock(Settings()):\n  write_address(Settings(), Settings().socket)\n"
    old += "  print('ready', flush=True)\n  while True:\n"
    old += "    who, frame = s.recv_multipart(); ask = msgpack.unpackb(frame)\n"
    old += "    s.send_multipart([who, msgpack.packb({'id': ask['id'], 'ok': True, 'version': '0.0.9', 'jobs': []})])\n"
    command = [sys.executable, "-c", old]
    with subprocess.Popen(command, env=own_cwtool.env, stdout=subprocess.PIPE, text=True) as daemon:
        assert daemon.stdout and daemon.stdout.readline() == "ready\n"
        said = own_cwtool("jobs").stderr
        daemon.kill()
    assert "the daemon is cwtool 0.0.9" in said and "cwtool daemon restart --when-idle" in said
    settings.socket.unlink()


def test_a_restart_when_idle_lets_what_runs_end_and_keeps_what_waits(own_cwtool: CommandLine) -> None:
    cwtool = own_cwtool
    first = cwtool("run", *SHORT, "--control-seeds", "40", "--detach").stdout.strip()
    cwtool.wait_for(first, "baseline")
    second = cwtool("run", *SHORT, "--detach").stdout.strip()
    before = cwtool.json("daemon", "status")["pid"]
    cwtool("daemon", "restart", "--when-idle")
    assert cwtool.json("jobs", "show", first)["state"] == "done"
    assert cwtool.json("daemon", "status")["pid"] != before
    assert cwtool("logs", "-f", second).stdout.rstrip().endswith("done")


def test_a_follower_goes_on_with_the_daemon_that_was_started_anew_without_a_gap_or_a_repeat(
    own_cwtool: CommandLine,
) -> None:
    cwtool = own_cwtool
    running = cwtool("run", *LONG, "--detach").stdout.strip()
    waiting = cwtool("run", *SHORT, "--detach").stdout.strip()
    cwtool.wait_for(running, "damage")
    with cwtool.client() as client:
        events = client.follow(waiting)
        seen = [next(events)["seq"]]
        cwtool.kill(client.status().pid)
        cwtool("daemon", "start")
        cwtool("jobs", "cancel", running)  # which has gone on meanwhile
        seen += [event["seq"] for event in events]
    assert seen == list(range(1, len(seen) + 1))
    assert cwtool.json("jobs", "show", waiting)["state"] == "done"


@pytest.mark.parametrize(("source", "expected"), [("flag", 1), ("environment", 2), ("file", 3), ("default", 1000)])
def test_flags_beat_the_environment_which_beats_the_file_which_beats_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, expected: int
) -> None:
    sources = ["flag", "environment", "file", "default"]
    given = sources[sources.index(source) :]
    config = tmp_path / "config.toml"
    config.write_text("max_queue = 3\n" if "file" in given else "")
    monkeypatch.setattr("cwa_engine.base.places.CONFIG_FILE", config)
    if "environment" in given:
        monkeypatch.setenv("CWTOOL_MAX_QUEUE", "2")
    flags = {"max_queue": 1} if "flag" in given else {}
    assert Settings(**flags).max_queue == expected


def test_a_setting_that_cannot_be_is_named_with_where_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CWTOOL_MAX_QUEUE", "many")
    with pytest.raises(InvalidInput, match="setting max_queue is 'many'") as caught:
        Settings()
    assert "CWTOOL_MAX_QUEUE" in caught.value.hint


def test_a_config_file_that_is_no_toml_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "config.toml"
    config.write_text("max_queue = = 3\n")
    monkeypatch.setattr("cwa_engine.base.places.CONFIG_FILE", config)
    with pytest.raises(InvalidInput, match=r"config\.toml"):
        Settings()


def test_a_long_state_folder_still_has_a_short_socket(tmp_path: Path) -> None:
    assert len(str(Settings(home=tmp_path / ("x" * 200)).socket)) < zmq.IPC_PATH_MAX_LEN


def _is_daemon_of(process: psutil.Process, home: Path) -> bool:
    if "cwa_daemon.control.server" not in (process.info["cmdline"] or []):
        return False
    return bool((process.info["environ"] or {}).get("CWTOOL_HOME") == str(home))
