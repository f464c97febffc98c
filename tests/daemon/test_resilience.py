"""What a daemon that is left running for weeks meets: hung workers, lost sockets, full disks, nonsense, slow clients."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgpack
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cwa_daemon import protocol
from cwa_daemon.client import start_daemon
from cwa_daemon.control.database import BALLAST_BYTES
from cwa_daemon.control.store import Store
from cwa_engine.base.errors import StateNotWritten
from tests.conftest import LONG, SHORT, CommandLine
from tests.daemon.test_service import Raw


def test_a_worker_that_hangs_is_killed_and_the_job_says_so(own_cwtool: CommandLine) -> None:
    cwtool = own_cwtool
    cwtool.env["CWTOOL_WORKER_SILENCE_S"] = "5"
    run_id = cwtool("run", *LONG, "--retries", "0", "--detach").stdout.strip()
    cwtool.wait_for(run_id, "damage")
    os.kill(cwtool.worker_pid(), signal.SIGSTOP)
    assert "it hung, nothing was heard of it" in cwtool("logs", "-f", run_id).stdout
    assert cwtool.json("jobs", "show", run_id)["error"]["code"] == "worker_died"
    cwtool("run", *SHORT)


def test_a_machine_that_slept_finds_its_runs_well(own_cwtool: CommandLine) -> None:
    """As a laptop or a freezer does: daemon and worker stop together, for longer than any limit, and go on."""
    cwtool = own_cwtool
    cwtool.env.update(CWTOOL_WORKER_SILENCE_S="5", CWTOOL_STAGE_IDLE_S="5")
    cwtool("run", *SHORT)
    processes = [cwtool.worker_pid(), int(cwtool.json("daemon", "status")["pid"])]
    run_id = cwtool("run", *SHORT, "--control-seeds", "150", "--detach").stdout.strip()
    cwtool.wait_for(run_id, "damage")
    for pid in processes:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(7)  # the time that passes is what this is about
    for pid in reversed(processes):  # the daemon first: it has a moment in which its worker is still silent
        os.kill(pid, signal.SIGCONT)
    assert cwtool("logs", "-f", run_id).stdout.rstrip().endswith("done")
    assert cwtool.json("jobs", "show", run_id)["deaths"] == []
    assert cwtool.worker_pid() == processes[0]


def test_a_worker_that_crashes_is_named_with_its_signal_and_the_end_of_its_log(own_cwtool: CommandLine) -> None:
    cwtool = own_cwtool
    run_id = cwtool("run", *LONG, "--retries", "0", "--detach").stdout.strip()
    cwtool.wait_for(run_id, "damage")
    os.kill(cwtool.worker_pid(), signal.SIGSEGV)
    assert "died of SIGSEGV" in cwtool("logs", "-f", run_id).stdout
    assert "worker-cpu.log" in cwtool.json("jobs", "show", run_id)["error"]["hint"]


def test_a_long_log_is_set_aside_while_its_worker_goes_on(own_cwtool: CommandLine) -> None:
    cwtool = own_cwtool
    cwtool("run", *SHORT)
    worker = cwtool.worker_pid()
    log = cwtool.settings.logs / "worker-cpu.log"
    lines = b"a warning of a library\n" * 300_000
    with log.open("ab") as file:
        file.write(lines)
    aside = log.with_suffix(".log.1")
    deadline = time.monotonic() + 60
    while not (aside.exists() and log.stat().st_size == 0):
        assert time.monotonic() < deadline, "the log was not set aside"
    assert aside.read_bytes().endswith(lines)
    cwtool("run", *SHORT)
    assert cwtool.worker_pid() == worker


def test_a_socket_that_was_removed_is_made_again(own_cwtool: CommandLine) -> None:
    cwtool = own_cwtool
    pid = _started(cwtool)
    connected = Raw(cwtool.settings)
    connected.hello()
    shutil.rmtree(cwtool.settings.runtime_dir)
    deadline = time.monotonic() + 60
    while not cwtool.settings.socket.exists():
        assert time.monotonic() < deadline, "the daemon did not bind again"
    assert connected.ask(id=1, op="status")["ok"]  # who was connected stays so
    connected.close()
    assert stat.S_IMODE(cwtool.settings.runtime_dir.stat().st_mode) == 0o700
    assert cwtool.json("daemon", "status")["pid"] == pid


def test_a_model_is_unloaded_when_it_was_not_used_for_its_keep_alive(own_cwtool: CommandLine) -> None:
    cwtool = own_cwtool
    cwtool("load", "gpt2", "--keep-alive", "0")
    assert cwtool.json("ps")["models"] == []
    cwtool("load", "gpt2", "--keep-alive", "1s")
    cwtool("load", "distilgpt2", "--pin")
    deadline = time.monotonic() + 60
    while [model["name"] for model in cwtool.json("ps")["models"]] != ["distilgpt2"]:
        assert time.monotonic() < deadline, "the model did not expire"
    assert cwtool.json("ps")["models"][0]["pinned"]
    cwtool("unload", "distilgpt2")
    assert cwtool.json("ps")["models"] == []


def test_a_model_beyond_the_budget_is_refused_with_the_numbers_or_waits_until_there_is_room(
    own_cwtool: CommandLine,
) -> None:
    cwtool = own_cwtool
    cwtool.env["CWTOOL_MEMORY_BUDGET_GB"] = "0.0003"  # one of these models of 0.2 MB, not two
    cwtool("load", "gpt2", "--pin")
    refused = cwtool("run", "--model", "distilgpt2", "--eval-limit", "4", rc=7).stderr
    assert "does not fit" in refused and "cwtool unload` could free gpt2" in " ".join(refused.split())
    waiting = cwtool(
        "run", "--model", "distilgpt2", "--eval-limit", "4", "--wait-for-memory", "--detach"
    ).stdout.strip()
    _said(cwtool, waiting, "waiting for memory")
    cwtool("run", *SHORT)  # others go on meanwhile
    assert cwtool.json("jobs", "show", waiting)["state"] in ("queued", "running")
    cwtool("unload", "gpt2")
    assert cwtool("logs", "-f", waiting).stdout.rstrip().endswith("done")


def test_a_reload_says_why(own_cwtool: CommandLine) -> None:
    own_cwtool("load", "gpt2")
    said = own_cwtool("load", "gpt2", "--dtype", "bfloat16").stderr
    assert "dtype bfloat16 asked, auto is warm" in said


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[Path, int], Path]]:
    """Makes a small file system at a folder, of so many kB."""
    mounted: list[Path] = []

    def make(folder: Path, size_kb: int) -> Path:
        folder.mkdir(parents=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={size_kb}k", "tmpfs", str(folder)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("no file system can be mounted here")
        mounted.append(folder)
        return folder

    yield make
    for folder in mounted:
        subprocess.run(["umount", "-l", folder], check=True)


Disk = Callable[[Path, int], Path]


def fill(folder: Path) -> Path:
    """Take all space that is left, to the last byte."""
    filler = folder / "filler"
    with filler.open("ab", buffering=0) as file:
        for size in (2**16, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue
    return filler


def test_on_a_full_disk_a_run_keeps_its_result_says_so_and_saves_it_when_there_is_room(
    disk: Disk, own_cwtool: CommandLine
) -> None:
    cwtool = own_cwtool
    filler = fill(disk(cwtool.settings.runs, 400))
    run_id = cwtool("run", *SHORT, "--detach").stdout.strip()
    text = _said(cwtool, run_id, "cannot save: ")
    assert "No space left on device" in text and "the result is kept" in text
    assert cwtool.json("jobs", "show", run_id)["state"] == "running"
    filler.unlink()
    cwtool("logs", "-f", run_id)
    assert cwtool.json("results", "show", run_id)["damage"]


def test_a_run_is_done_though_its_output_folder_is_full_and_is_copied_when_there_is_room(
    disk: Disk, own_cwtool: CommandLine
) -> None:
    cwtool = own_cwtool
    folder = disk(cwtool.cwd / "disk", 200)
    run_id = cwtool("run", *SHORT, "--output", str(folder / "out"), "--detach").stdout.strip()
    filler = fill(folder)
    text = _said(cwtool, run_id, "cannot copy the files: ")
    assert "No space left on device" in text
    job = cwtool.json("jobs", "show", run_id)
    assert (job["state"], job["copy_error"]["code"], job["error"]) == ("done", "copy_pending", None)
    cwtool("run", *SHORT)  # the worker is free
    cwtool.kill(cwtool.json("daemon", "status")["pid"])
    filler.unlink()
    cwtool("logs", "-f", run_id)  # the next daemon makes the copy
    files = {path.name: path.read_bytes() for path in (cwtool.settings.runs / run_id).iterdir()}
    assert {path.name: path.read_bytes() for path in (folder / "out").iterdir()} == files
    assert cwtool.json("jobs", "show", run_id)["copy_error"] is None


def test_a_copy_that_is_cancelled_leaves_the_run_done_and_its_command_says_where_the_files_are(
    disk: Disk, own_cwtool: CommandLine
) -> None:
    cwtool = own_cwtool
    folder = disk(cwtool.cwd / "disk", 200)
    (folder / "filler").touch()
    process = cwtool.start("run", *SHORT, "--output", str(folder / "out"))
    while not (folder / "out").exists():
        assert process.poll() is None
    fill(folder)
    with cwtool.client() as client:
        run_id = client.jobs()[0].run_id
    _said(cwtool, run_id, "cannot copy the files: ")
    assert "is done, but its files are not in" in " ".join(cwtool("jobs", "cancel", run_id).stdout.split())
    _, said = process.communicate(timeout=60)
    assert process.returncode == 2
    assert f"cwtool results fetch {run_id} --output" in " ".join(said.split())
    assert cwtool.json("results", "show", run_id)["damage"]


def test_a_state_folder_on_a_full_disk_loses_no_job(disk: Disk, tmp_path: Path, hub: Path) -> None:
    cwtool = CommandLine(disk(tmp_path / "disk", 16_000) / "state", tmp_path, hub)
    try:
        before = cwtool.json("run", *SHORT)
        filler = fill(tmp_path / "disk")
        run_id = cwtool("run", *SHORT, "--detach").stdout.strip()
        cwtool("logs", "-f", run_id)
        assert cwtool.json("daemon", "status")["disk_full"]
        assert "the disk is full" in cwtool("daemon", "status").stdout
        assert cwtool.json("results", "show", run_id)["damage"] == before["damage"]
        filler.unlink()
        deadline = time.monotonic() + 60
        while cwtool.json("daemon", "status")["disk_full"]:
            assert time.monotonic() < deadline
    finally:
        cwtool("daemon", "stop")


def test_what_happens_is_written_down_on_a_full_disk_in_room_that_was_laid_by(disk: Disk, tmp_path: Path) -> None:
    small_disk = disk(tmp_path / "disk", 16_000)
    store = Store(small_disk / "jobs.sqlite")
    assert (small_disk / "ballast").stat().st_size == BALLAST_BYTES
    fill(small_disk)
    note = {"kind": "note", "level": "info", "text": "x" * 2000}
    for _ in range(200):
        store.append_event("a", note)
    assert store.disk_full and not (small_disk / "ballast").exists()
    fill(small_disk)
    with pytest.raises(StateNotWritten, match="cannot be written"):
        for _ in range(5000):
            store.append_event("a", note)
    store.close()


def test_a_stopped_subscriber_delays_nobody_and_hears_all_when_it_goes_on(cwtool: CommandLine) -> None:
    run_id = cwtool("run", *SHORT, "--control-seeds", "30", "--detach").stdout.strip()
    slow = cwtool.start("logs", "-f", run_id, "--json")
    cwtool.wait_for(run_id, "baseline")
    os.kill(slow.pid, signal.SIGSTOP)
    cwtool("logs", "-f", run_id)
    os.kill(slow.pid, signal.SIGCONT)
    said, _ = slow.communicate(timeout=60)
    assert said == cwtool("logs", run_id, "--json").stdout


def test_status_is_answered_at_once_while_a_run_goes_on(cwtool: CommandLine) -> None:
    run_id = cwtool("run", *LONG, "--detach").stdout.strip()
    cwtool.wait_for(run_id, "damage")
    waits = []
    with cwtool.client() as client:
        for _ in range(40):
            began = time.perf_counter()
            client.status()
            waits.append(time.perf_counter() - began)
    assert sorted(waits)[len(waits) // 2] < 1  # 5 ms on a machine that does nothing else
    cwtool("jobs", "cancel", run_id)


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=20)
    | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)
OPS = [request.model_fields["op"].default for request in protocol.Request.__subclasses__()]
nearly = st.fixed_dictionaries(
    {"op": st.sampled_from([op for op in OPS if op != "shutdown"]), "id": values},
    optional=dict.fromkeys(
        ("run_id", "spec", "limit", "client_key", "access", "model", "options", "after_seq"), values
    ),
)
frames = st.binary(max_size=200) | values.map(msgpack.packb) | nearly.map(msgpack.packb)


def test_ten_thousand_frames_of_nonsense_neither_stop_the_daemon_nor_make_it_grow(own_cwtool: CommandLine) -> None:
    pid = _started(own_cwtool)
    raw = Raw(own_cwtool.settings)
    raw.hello()
    sent = 0

    @settings(max_examples=400, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(frames, min_size=5, max_size=5))
    def send(batch: list[bytes]) -> None:
        nonlocal sent
        for frame in batch * 5:  # most of the time goes into making them
            raw.send_frames(frame)
        sent += len(batch) * 5
        raw.send(id=2**40 + sent, op="status")
        while raw.receive().get("id") != 2**40 + sent:  # replies to nonsense come before it
            pass

    raw.send(id=1, op="status")
    raw.receive()
    before = psutil.Process(pid).memory_info().rss
    send()
    assert sent >= 10_000
    assert psutil.Process(pid).memory_info().rss - before < 20_000_000
    raw.send_frames(bytes(protocol.MAX_MESSAGE_BYTES + 1))  # ZeroMQ hangs up on that one
    raw.close()
    assert own_cwtool.json("daemon", "status")["pid"] == pid


@pytest.mark.parametrize("run_id", ["../../etc", "/etc/passwd", "..", "a/../../b", "%", "."])
def test_a_run_id_cannot_lead_out_of_the_folder_of_runs(cwtool: CommandLine, run_id: str) -> None:
    cwtool("results", "show", run_id, rc=6)
    cwtool("jobs", "show", run_id, rc=6)


def test_another_users_connection_is_refused(own_cwtool: CommandLine) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can be somebody else")
    _started(own_cwtool)
    own_cwtool.settings.runtime_dir.chmod(0o711)
    own_cwtool.settings.runtime_dir.parent.chmod(0o711)
    own_cwtool.settings.socket.chmod(0o777)
    script = (
        "import os, socket, sys; os.setuid(65534); s = socket.socket(socket.AF_UNIX); s.settimeout(10); s.connect(sys.argv[1]);"
        "s.sendall(bytes.fromhex('ff00000000000000017f')); print(s.recv(100).hex())"
    )
    command = [sys.executable, "-c", script, str(own_cwtool.settings.socket)]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    cut_off = (
        "Connection reset" in answer.stderr or "Broken pipe" in answer.stderr
    )  # the latter before it sent anything
    assert (answer.stdout.strip() == "" and cut_off) or answer.stdout == "\n"
    assert "another user (uid 65534) was refused" in own_cwtool.settings.daemon_log.read_text()
    own_cwtool("daemon", "status")


def _started(cwtool: CommandLine) -> int:
    start_daemon(cwtool.settings)
    return int(cwtool.json("daemon", "status")["pid"])


def _said(cwtool: CommandLine, run_id: str, part: str) -> str:
    """The first note of a run that contains this."""
    with cwtool.client() as client:
        for event in client.follow(run_id):
            if event["kind"] == "note" and part in event["text"]:
                return str(event["text"])
    raise AssertionError(f"{run_id} never said '{part}'")
