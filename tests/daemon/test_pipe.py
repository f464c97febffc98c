"""What control process and workers say to each other arrives as it was said."""

from __future__ import annotations

import logging
import socket
import subprocess
import sys
from pathlib import Path
from typing import get_args

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cwa_daemon.pipe.messages import (
    Command,
    Heartbeat,
    Hello,
    Limits,
    Report,
    RunJob,
    Unloaded,
    command_reader,
    encode,
    report_reader,
)
from cwa_daemon.pipe.place import Place

numbers = st.integers(-(2**63), 2**63 - 1)
floats = st.floats(allow_nan=False)
json_values = st.recursive(
    st.none() | st.booleans() | numbers | floats | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
st.register_type_strategy(int, numbers)
st.register_type_strategy(float, floats)
st.register_type_strategy(dict, lambda _: st.dictionaries(st.text(max_size=5), json_values, max_size=3))


COMMANDS = st.one_of(*map(st.from_type, get_args(Command)))
REPORTS = st.one_of(*map(st.from_type, get_args(Report)))


@given(st.lists(COMMANDS, max_size=4), st.integers(1, 50))
def test_commands_arrive_as_they_were_sent_however_the_bytes_are_cut(sent: list[Command], piece: int) -> None:
    stream, reader = b"".join(map(encode, sent)), command_reader()
    pieces = [stream[start : start + piece] for start in range(0, len(stream), piece)]
    assert [command for part in pieces for command in reader.feed(part)] == sent


@given(st.lists(REPORTS, max_size=4))
def test_reports_arrive_as_they_were_sent(sent: list[Report]) -> None:
    assert list(report_reader().feed(b"".join(map(encode, sent)))) == sent


def test_a_worker_whose_next_job_came_before_the_last_was_put_away_tells_another_daemon_of_the_next(
    tmp_path: Path,
) -> None:
    program = """
import socket, sys, threading
from pathlib import Path
from cwa_daemon.pipe.place import Place
from cwa_daemon.worker.inbox import Inbox
from cwa_daemon.worker.outbox import Outbox
connection = socket.socket(fileno=int(sys.argv[1]))
outbox = Outbox(connection)
inbox = Inbox(connection, outbox, Place(Path(sys.argv[2]), "cpu"))
inbox.next(), inbox.next()
inbox.job_done()
print("ready", flush=True)
threading.Event().wait()
"""
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-c", program, str(theirs.fileno()), str(tmp_path)]
    with subprocess.Popen(command, pass_fds=[theirs.fileno()], stdout=subprocess.PIPE, text=True) as worker:
        theirs.close()
        limits = Limits(keep_alive="0", cache_folder="", cache_bytes=0, trust_remote_code=False)
        for run_id in ("first", "second"):
            job = RunJob(
                kind="run", run_id=run_id, spec={}, command="", options={}, access={}, folder="", limits=limits, device="cpu"
            )  # fmt: skip
            ours.sendall(encode(job))
        assert worker.stdout and worker.stdout.readline() == "ready\n"
        ours.close()
        with Place(tmp_path, "cpu").connect() as another:
            another.setblocking(True)
            hello = next(report_reader().feed(another.recv(2**16)))
        worker.kill()
    assert hello == Hello(run_id="second", stage="start")


def test_a_message_that_is_none_is_logged_and_the_next_ones_are_read(caplog: pytest.LogCaptureFixture) -> None:
    stream = msgpack.packb({"type": "song"}) + msgpack.packb({"type": "unloaded"}) + encode(Heartbeat(processor_s=1.0))
    with caplog.at_level(logging.ERROR):
        assert list(report_reader().feed(stream)) == [Heartbeat(processor_s=1.0)]
    assert caplog.text.count("a message is not understood") == 2


def test_fields_that_another_version_added_are_ignored_and_tags_are_what_they_always_were() -> None:
    packed = msgpack.packb({"type": "unloaded", "request": 3, "names": ["gpt2"], "since": 7})
    assert list(report_reader().feed(packed)) == [Unloaded(request=3, names=("gpt2",))]
    assert msgpack.unpackb(encode(Heartbeat(processor_s=1.0))) == {
        "type": "heartbeat",
        "processor_s": 1.0,
        "memory": None,
    }
