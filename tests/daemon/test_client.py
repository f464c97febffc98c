"""The clients in programs that have an event loop of their own, as notebooks do."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import threading
from pathlib import Path

import pytest
import zmq

from cwa_daemon.admin.lifecycle import wait_until_gone
from cwa_daemon.base.settings import Settings
from cwa_daemon.client import AsyncClient, Client
from cwa_engine import __version__
from cwa_engine.base.errors import DaemonUnreachable, NotGreeted
from tests.conftest import LONG, CommandLine

README = Path(__file__).parents[2] / "README.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


@pytest.fixture
def shell(cwtool: CommandLine, monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    """This process has the variables of the command line's shell."""
    for name in ("CWTOOL_HOME", "HF_HOME", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, cwtool.env[name])
    return cwtool


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
@pytest.mark.usefixtures("shell")
async def test_the_examples_of_the_readme_run_where_a_loop_runs_already(
    example: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert asyncio.get_running_loop().is_running()
    exec(compile(example, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert {"baseline", "damage"} <= set(printed.split()) if "events" in example else "weight" in printed


async def test_both_clients_may_be_used_side_by_side(shell: CommandLine) -> None:
    awaiting = await AsyncClient.connect()
    with Client.connect() as waiting:
        assert waiting.status().pid == (await awaiting.status()).pid
    await awaiting.close()


def test_an_interrupted_wait_leaves_the_client_usable_and_closing_it_leaves_no_thread(cwtool: CommandLine) -> None:
    run_id = cwtool("run", *LONG, "--detach").stdout.strip()
    before = set(threading.enumerate())
    client = cwtool.client()
    with pytest.raises(KeyboardInterrupt):
        client._run(interrupt_and_wait())
    client.cancel(run_id)
    assert list(client.follow(run_id))[-1]["state"] == "cancelled"
    client.close()
    client.close()
    assert set(threading.enumerate()) == before


async def interrupt_and_wait() -> None:
    os.kill(os.getpid(), signal.SIGINT)
    await asyncio.Event().wait()


def test_a_connection_that_fails_leaves_no_thread(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    with pytest.raises(DaemonUnreachable):
        Client.connect(Settings(home=tmp_path), start=False)
    assert set(threading.enumerate()) == before


async def test_a_daemon_that_ends_between_its_greeting_and_the_question_is_followed_by_the_next(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    client = AsyncClient(Settings(home=tmp_path))
    refusals, asked = 2, []

    async def ask(op: str, timeout_s: float | None = None, **fields: object) -> dict[str, object]:
        asked.append(op)
        if op != "hello" and asked.count(op) <= refusals:
            raise NotGreeted("a connection begins with hello")
        return {"version": __version__, "names": ["gpt2"]}

    monkeypatch.setattr(client._connection, "_ask", ask)
    assert await client.unload("gpt2") == ["gpt2"]
    assert asked == ["unload", "hello", "unload", "hello", "unload"]
    await client.close()


async def test_a_reply_that_came_before_the_daemon_hung_up_is_heard_by_a_client_that_looks_only_later(
    own_cwtool: CommandLine,
) -> None:
    own_cwtool("daemon", "start")
    client = await AsyncClient.connect(own_cwtool.settings)
    pid = (await client.status()).pid
    stopping = asyncio.create_task(client.shutdown())
    await asyncio.sleep(0)  # the request is sent
    assert wait_until_gone(pid, 60)  # which keeps this loop from reading: reply and end are there together
    client._connection._socket.get(zmq.EVENTS)  # as after a send: now the loop hears of the end first
    assert (await stopping).pid == pid
    await client.close()
