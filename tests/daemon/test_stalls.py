"""Messages built to cost much cost little, and what is too large or cannot be sent is said."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import psutil
import pytest

from cwa_daemon import protocol
from cwa_daemon.client import AsyncClient, Client, stop_daemon
from cwa_engine.base.errors import InvalidInput, RunFailed
from tests.conftest import SHORT, CommandLine
from tests.daemon.test_service import Raw

LISTS = b"\x82\xa2op\xa6status\xa1x\xdd%b" + b"\x90" * (protocol.MAX_REQUEST_BYTES - 100)
EMPTY_LISTS = LISTS.replace(b"%b", (protocol.MAX_REQUEST_BYTES - 100).to_bytes(4, "big"))
CLAIMED = (
    b"\x82\xa2op\xa6status\xa1x" + b"\xdd\x00\x01\x86\x00" * 1000 + b"\x90" * 200_000
)  # each list says it has 99,840
MAPS = b"\x82\xa2op\xa6status\xa1x\xdd\x00\x0f\x42\x40" + b"\x80" * 1_000_000
NUMBERS = b"\x82\xa2op\xa6status\xa1x\xdd\x00\x0f\x42\x40" + b"\x01" * 1_000_000
DEEP = b"\x82\xa2op\xa6status\xa1x" + b"\x91" * 100_000


@pytest.fixture
def raw(own_cwtool: CommandLine) -> Any:
    own_cwtool("daemon", "start")
    connection = Raw(own_cwtool.settings)
    yield connection
    connection.close()


@pytest.mark.parametrize(
    "frame", [EMPTY_LISTS, CLAIMED, MAPS, NUMBERS, DEEP], ids=["lists", "claims", "maps", "1s", "deep"]
)
def test_a_frame_with_too_much_in_it_is_refused_in_a_moment_and_little_memory(frame: bytes) -> None:
    script = (
        "import resource, sys, time; from cwa_daemon import protocol; from cwa_engine.base.errors import InvalidInput\n"
        "frame = sys.stdin.buffer.read(); "
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; began = time.process_time()\n"
        "try: protocol.decode(frame, protocol.MAX_REQUEST_BYTES)\n"
        "except InvalidInput as error: print(error.message[:40], file=sys.stderr)\n"
        "else: raise SystemExit('it was read')\n"
        "print(time.process_time() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run([sys.executable, "-c", script], input=frame, capture_output=True, check=True)
    seconds, kilobytes = (float(number) for number in done.stdout.split())
    assert seconds < 2 and kilobytes < 60_000


def test_frames_built_to_cost_do_not_keep_others_waiting(raw: Raw, own_cwtool: CommandLine) -> None:
    raw.hello()
    pid = own_cwtool.json("daemon", "status")["pid"]
    before = psutil.Process(pid).memory_info().rss
    with own_cwtool.client() as client:
        for _ in range(40):
            raw.send_frames(EMPTY_LISTS)
        waits = []
        for _ in range(20):
            began = time.perf_counter()
            client.status()
            waits.append(time.perf_counter() - began)
    assert sorted(waits)[10] < 5
    for _ in range(40):
        assert raw.receive()["error"]["code"] in ("invalid_input", "queue_full")
    assert psutil.Process(pid).memory_info().rss - before < 300_000_000


def test_who_has_not_said_hello_is_told_so_before_anything_is_read(raw: Raw) -> None:
    raw.send_frames(b"\x83\xa2id\x07\xa2op\xa6status\xa1x\xc1 nonsense")
    assert raw.receive() == {
        "id": 7,
        "ok": False,
        "error": {"code": "not_greeted", "message": "a connection begins with hello", "hint": "", "retryable": True},
    }
    raw.send_frames(msgpack.packb({"op": "hello", "id": 8, "major": 1, "minor": 4, "version": "x" * 5000}))
    assert "exceeds 4,096" in raw.receive()["error"]["message"]


def test_a_connection_has_so_many_unanswered_requests_and_subscriptions_and_no_more(
    raw: Raw, own_cwtool: CommandLine
) -> None:
    run_id = own_cwtool("run", *SHORT, "--detach").stdout.strip()
    own_cwtool("logs", "-f", run_id)
    raw.hello(minor=4)
    codes = []
    for _ in range(20):
        for number in range(100):
            raw.send(id=number, op="subscribe", run_id=run_id, after_seq=10**6)
        codes += [raw.receive().get("error", {}).get("code") for _ in range(100)]
    assert codes.count(None) == protocol.MOST_SUBSCRIPTIONS and set(codes) == {None, "queue_full"}
    assert raw.ask(id=1, op="status")["ok"]


async def test_replies_are_found_by_everyone_who_asks_at_once(cwtool: CommandLine) -> None:
    client = await AsyncClient.connect(cwtool.settings)
    found = await asyncio.gather(*(client.status() for _ in range(protocol.MOST_UNANSWERED)))
    assert len({status.pid for status in found}) == 1
    await client.close()


@pytest.fixture(scope="module")
def large_jobs(tmp_path_factory: pytest.TempPathFactory, hub: Path) -> Iterator[CommandLine]:
    """The command line with a daemon for the large jobs of all tests here."""
    folder = tmp_path_factory.mktemp("large")
    command_line = CommandLine(folder / "state", folder, hub)
    yield command_line
    stop_daemon(command_line.settings, force=True)


@pytest.fixture
def large_job(large_jobs: CommandLine) -> str:
    """A job whose error is as large as a test makes it."""
    return str(large_jobs("run", *SHORT, "--no-perturbation", "--detach").stdout.strip())


def pad(cwtool: CommandLine, run_id: str, padding: Any) -> None:
    cwtool("logs", "-f", run_id)
    with contextlib.closing(sqlite3.connect(cwtool.settings.database)) as database, database:
        error = json.dumps({"code": "run_failed", "message": "", "hint": "", "padding": padding})
        database.execute("UPDATE jobs SET error = ? WHERE run_id = ?", [error, run_id])


def test_a_reply_larger_than_a_message_arrives_whole(large_jobs: CommandLine, large_job: str) -> None:
    text = "".join(chr(97 + number % 26) for number in range(40 * 2**20))
    pad(large_jobs, large_job, text)
    with large_jobs.client() as client:
        error = client.job(large_job).error
        assert error and error["padding"] == text
        assert client.status().pid


def test_an_older_client_hears_that_a_reply_is_too_large_for_it(large_jobs: CommandLine, large_job: str) -> None:
    pad(large_jobs, large_job, "x" * (20 * 2**20))
    raw = Raw(large_jobs.settings)
    raw.hello(minor=3)
    error = raw.ask(id=1, op="job", run_id=large_job)["error"]
    assert error["code"] == "run_failed" and "exceeds 16,777,216" in error["message"] and "--limit" in error["hint"]
    raw.close()


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("x" * (protocol.MAX_REPLY_BYTES + 1), "exceeds"),
        (2**70, "cannot be sent"),
        ("\udcff", "cannot be sent"),
        (math.nan, "finite"),
    ],
    ids=["too large", "too large a number", "a surrogate", "not a number"],
)
def test_a_reply_that_cannot_be_sent_or_read_is_an_error_and_not_silence(
    large_jobs: CommandLine, large_job: str, value: object, why: str
) -> None:
    pad(large_jobs, large_job, value)
    with large_jobs.client() as client:
        with pytest.raises(RunFailed, match=why):
            client.job(large_job)
        assert client.status().pid


@pytest.mark.parametrize("text", ["x" * protocol.MAX_REQUEST_BYTES, "\udcff"], ids=["too large", "a surrogate"])
def test_a_request_that_cannot_be_sent_is_refused_where_it_is_made(cwtool: CommandLine, text: str) -> None:
    with cwtool.client() as client, pytest.raises(InvalidInput, match="a message"):
        client.job(text)


def test_parts_of_a_reply_nobody_waits_for_are_not_kept(large_jobs: CommandLine, large_job: str) -> None:
    pad(large_jobs, large_job, "x" * (20 * 2**20))
    with Client.connect(large_jobs.settings) as client:
        connection = client._client._connection
        with pytest.raises(Exception, match="did not answer"):
            client._run(connection.request("job", timeout_s=0.001, run_id=large_job))
        client.job(large_job)
        assert not connection._parts and not connection._replies
