"""Texts that clients hand over: kept whole, for their owner alone, as long as a job uses them."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cwa_daemon.base.settings import Settings
from cwa_daemon.base.threads import in_thread
from cwa_daemon.client import AsyncClient, Client, handover
from cwa_daemon.client.submitting import submit_job
from cwa_daemon.control import texts
from cwa_daemon.control.texts import KeptTexts
from cwa_daemon.protocol import KeepTexts, parse_request
from cwa_engine.base.errors import DataError, InvalidInput, StateNotWritten
from cwa_engine.spec import RunSpec
from tests.conftest import CommandLine

CONTENT = b"one text\n\nanother text\n" * 1000


def piece(offset: int, data: bytes, content: bytes = CONTENT, **changes: Any) -> KeepTexts:
    sha256 = hashlib.sha256(content).hexdigest()
    fields = {"id": 1, "name": "a.txt", "sha256": sha256, "size_bytes": len(content), "offset": offset, "data": data}
    return KeepTexts(**{**fields, **changes})


@pytest.fixture
def used() -> list[str]:
    return []


@pytest.fixture
def kept(tmp_path: Path, used: list[str]) -> KeptTexts:
    return KeptTexts(tmp_path / "texts", 10**6, lambda: used)


async def test_a_file_comes_in_pieces_and_is_there_when_it_is_whole(kept: KeptTexts, tmp_path: Path) -> None:
    assert await kept.keep(piece(0, b"")) == (0, None)
    assert await kept.keep(piece(0, CONTENT[:5000])) == (5000, None)
    assert [path.is_file() for path in (tmp_path / "texts").iterdir()] == [True]
    here, path = await kept.keep(piece(5000, CONTENT[5000:]))
    assert (here, path) == (len(CONTENT), tmp_path / "texts" / hashlib.sha256(CONTENT).hexdigest() / "a.txt")
    assert path and path.read_bytes() == CONTENT
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert {stat.S_IMODE(folder.stat().st_mode) for folder in path.parents[:2]} == {0o700}
    assert await kept.keep(piece(0, b"")) == (len(CONTENT), path)  # the next client need not send it


async def test_after_a_break_and_with_two_clients_at_once_only_the_next_piece_is_taken(kept: KeptTexts) -> None:
    assert await kept.keep(piece(0, CONTENT[:100])) == (100, None)
    assert await kept.keep(piece(0, CONTENT[:50])) == (100, None)
    assert await kept.keep(piece(200, CONTENT[200:])) == (100, None)
    ends = await asyncio.gather(kept.keep(piece(100, CONTENT[100:])), kept.keep(piece(100, CONTENT[100:])))
    assert ends[0] == ends[1]
    assert ends[0][1] and ends[0][1].read_bytes() == CONTENT


async def test_what_is_not_what_it_was_said_to_be_is_refused_and_forgotten(kept: KeptTexts, tmp_path: Path) -> None:
    wrong = CONTENT[:-1] + b"?"
    with pytest.raises(InvalidInput, match=r"a\.txt did not arrive as it was sent"):
        await kept.keep(piece(0, wrong))
    assert list((tmp_path / "texts").iterdir()) == []
    with pytest.raises(InvalidInput, match="the daemon takes"):
        await kept.keep(piece(0, b"", size_bytes=2 * 10**6))
    await kept.keep(piece(0, CONTENT))


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/etc/passwd", "a\0b", "x" * 300])
def test_a_name_that_leads_elsewhere_is_no_name(name: str) -> None:
    with pytest.raises(InvalidInput, match="name"):
        parse_request({**piece(0, b"").model_dump(), "name": name})


async def test_a_disk_that_takes_no_more_is_named(
    kept: KeptTexts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(texts, "_finish", full)
    with pytest.raises(StateNotWritten, match="No space left"):
        await kept.keep(piece(0, CONTENT))
    assert list((tmp_path / "texts").iterdir()) == []


async def test_a_file_goes_when_no_job_uses_it_any_more(kept: KeptTexts, used: list[str], tmp_path: Path) -> None:
    paths = []
    for name in ("used.txt", "unused.txt", "new.txt"):
        _, path = await kept.keep(piece(0, name.encode(), name.encode(), name=name))
        assert path
        paths.append(path)
    await kept.keep(piece(0, b"broken off"))
    long_ago = time.time() - texts.UNUSED_S - 1
    for path in (tmp_path / "texts").rglob("*"):
        if path.is_file() and path.name != "new.txt":
            os.utime(path, (long_ago, long_ago))
    used.append(f"/where/the/state/was/before/texts/{paths[0].parent.name}/used.txt")
    await kept.sweep()
    assert {path.name for path in (tmp_path / "texts").rglob("*") if path.is_file()} == {"used.txt", "new.txt"}
    await kept.keep(piece(0, b"", b"used.txt", name="used.txt"))
    used.clear()
    await kept.sweep()  # it was asked for a moment ago
    assert paths[0].is_file()


# the client's side


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "fifo.jsonl")
    return tmp_path / "fifo.jsonl"


def written_to(fifo: Path, content: bytes) -> threading.Thread:
    def write() -> None:
        # its reader may have what it needs, as `head` would
        with contextlib.suppress(BrokenPipeError), fifo.open("wb") as file:
            file.write(content)

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    return thread


def test_a_file_of_this_machine_is_checked_and_not_copied(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(CONTENT)
    assert handover.prepare(RunSpec(model="m", data_file=tmp_path / "a.txt"), False, 10**9) is None
    assert handover.prepare(RunSpec(model="m"), True, 10**9) is None
    with pytest.raises(DataError, match="does not exist"):
        handover.prepare(RunSpec(model="m", data_file=tmp_path / "b.txt"), False, 10**9)
    with pytest.raises(DataError, match="is a folder"):
        handover.prepare(RunSpec(model="m", data_file=tmp_path), True, 10**9)


def test_a_pipe_is_copied_to_its_end_and_called_what_it_is(fifo: Path) -> None:
    lines = b"".join(b'{"text": "number %d"}\n' % number for number in range(20_000))
    writer = written_to(fifo, lines)
    found = handover.prepare(RunSpec(model="m", data_file=fifo), False, 10**9)
    assert found
    with found.file as file:
        file.seek(0)
        assert file.read() == lines
    assert (found.sha256, found.size_bytes) == (hashlib.sha256(lines).hexdigest(), len(lines))
    assert (found.name, found.shown) == ("fifo.jsonl", f"pipe {fifo}")
    writer.join()


def test_of_a_pipe_without_end_only_the_texts_that_are_used_are_read(fifo: Path) -> None:
    written_to(fifo, b'"one text"\n' * 10**7)
    found = handover.prepare(RunSpec(model="m", data_file=fifo, eval_limit=3), False, 10**6)
    assert found and found.size_bytes < 10**6
    found.file.close()


def test_a_pipe_with_more_than_may_be_handed_over_is_refused(fifo: Path) -> None:
    written_to(fifo, b'"one text"\n' * 10**6)
    with pytest.raises(DataError, match=r"has more than 0\.001 GB") as raised:
        handover.prepare(RunSpec(model="m", data_file=fifo), False, 10**6)
    assert "--eval-limit" in raised.value.hint and "CWTOOL_TEXTS_GB" in raised.value.hint


@pytest.mark.parametrize(
    ("content", "why"),
    [(b"", "holds no text"), (b'"x"\n{"txt": "y", "a": "z"}', "no column"), (b'"x"\n"\xff"', "UTF-8")],
)
def test_what_comes_out_of_a_pipe_is_checked_before_anything_is_queued(fifo: Path, content: bytes, why: str) -> None:
    writer = written_to(fifo, content)
    with pytest.raises(DataError, match=why):
        handover.prepare(RunSpec(model="m", data_file=fifo), False, 10**9)
    writer.join()


async def test_a_pipe_to_which_nobody_writes_holds_nobody_up(fifo: Path) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await in_thread(lambda: handover.prepare(RunSpec(model="m", data_file=fifo), False, 10**9))


# both together


@pytest.fixture
def client(cwtool: CommandLine) -> Iterator[Client]:
    with cwtool.client() as client:
        yield client


def test_texts_of_a_pipe_outlive_the_run_and_the_pipe(
    cwtool: CommandLine, client: Client, fifo: Path, hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(hub))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    writer = written_to(fifo, b"".join(b'{"text": "this is text number %d"}\n' % number for number in range(6)))
    run_id = client.submit(RunSpec(model="gpt2", topk=(3,), data_file=fifo, perturbations=()))
    writer.join()
    assert list(client.follow(run_id))[-1]["state"] == "done"
    found = client.result(run_id).summary["texts"]
    assert (found["source"], found["texts"]) == (f"pipe {fifo}", 6)
    fifo.unlink()
    assert "agree, byte for byte" in cwtool("rerun", run_id).stdout
    kept = Path(client.job(run_id).spec["data_file"])
    assert kept.is_relative_to(cwtool.home / "texts") and kept.name == "fifo.jsonl"


async def test_a_large_file_goes_in_many_messages_and_others_are_answered_in_between(
    cwtool: CommandLine, tmp_path: Path
) -> None:
    cwtool("daemon", "start")
    path = tmp_path / "large.txt"
    path.write_bytes(b"a passage of a large file\n\n" * 200_000)
    connected = await AsyncClient.connect(cwtool.settings)
    found = handover.prepare(RunSpec(model="m", data_file=path), True, 10**9)
    assert found
    sent = []

    async def ask(op: str, **fields: Any) -> dict[str, Any]:
        sent.append(len(fields["data"]))
        return await connected._request(op, **fields)

    kept = await handover.send(found, ask)
    assert kept.read_bytes() == path.read_bytes()
    assert len(sent) == 7 and max(sent) <= 2**20
    await connected.close()


def test_a_spec_with_a_pipe_from_another_client_fails_by_name_and_the_worker_goes_on(
    cwtool: CommandLine, client: Client, fifo: Path, hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(hub))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    spec = RunSpec(model="gpt2", topk=(3,), data_file=fifo)
    run_id = client._run(
        submit_job(client._client._connection, "run", spec, "")
    )  # as a client of an earlier version would
    ended = list(client.follow(run_id))[-1]
    assert (ended["state"], ended["error"]["code"]) == ("failed", "data")
    assert "is a pipe, not a file" in ended["error"]["message"]
    assert client.status().workers[0].state == "idle"


@pytest.mark.parametrize(("given", "home"), [("~/state", "/home/ann/state"), ("", None)])
def test_the_state_folder_may_begin_with_a_tilde_and_an_empty_setting_is_none(
    monkeypatch: pytest.MonkeyPatch, given: str, home: str | None
) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    monkeypatch.setenv("CWTOOL_HOST", "")
    monkeypatch.delenv("CWTOOL_HOME", raising=False)
    usual = Settings().home
    monkeypatch.setenv("CWTOOL_HOME", given)
    assert Settings().home == (Path(home) if home else usual)
    assert Settings().host is None
