"""A daemon that is stopped, robbed of its lock or of its database is named, and nothing is lost unseen."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from cwa_daemon.base.address import running_pid
from cwa_daemon.base.folder_lock import hold_lock
from cwa_daemon.base.settings import Settings
from cwa_daemon.control import leftovers
from cwa_daemon.control.store import Store
from cwa_engine.base.errors import DaemonNotStartable, StateDamaged
from cwa_engine.base.files import scratch_path
from tests import isolation
from tests.conftest import LONG, SHORT, CommandLine
from tests.engine.test_hostile_models import HOSTILE
from tests.models import edit_json, save_tiny


def gone_pid() -> int:
    """The number of a process that has ended."""
    with subprocess.Popen(["true"]) as process:
        process.wait()
    return process.pid


# a daemon that does not answer


@pytest.fixture
def stopped(own_cwtool: CommandLine) -> CommandLine:
    own_cwtool("daemon", "start")
    own_cwtool.env["CWTOOL_REQUEST_TIMEOUT_S"] = "0.5"
    os.kill(own_cwtool.json("daemon", "status")["pid"], signal.SIGSTOP)
    return own_cwtool


@pytest.mark.parametrize("command", [("daemon", "stop"), ("daemon", "restart"), ("daemon", "status"), ("ps",)])
def test_a_stopped_daemon_is_named_with_its_state_and_never_killed_unasked(
    stopped: CommandLine, command: tuple[str, ...]
) -> None:
    pid = running_pid(stopped.settings)
    said = " ".join(stopped(*command, rc=3).stderr.split())
    assert f"pid {pid}" in said and "it is stopped by a signal (SIGSTOP)" in said
    assert f"kill -CONT {pid}" in said and "cwtool daemon stop --force" in said
    assert pid
    os.kill(pid, signal.SIGCONT)
    del stopped.env["CWTOOL_REQUEST_TIMEOUT_S"]
    assert stopped.json("daemon", "status")["pid"] == pid


def test_force_kills_a_stopped_daemon_and_another_one_takes_its_place(stopped: CommandLine) -> None:
    pid = running_pid(stopped.settings)
    said = stopped("daemon", "restart", "--force", CWTOOL_REQUEST_TIMEOUT_S="10")
    assert "by force" in said.stderr
    assert running_pid(stopped.settings) not in (pid, None)


def test_force_is_polite_to_a_daemon_that_answers(own_cwtool: CommandLine) -> None:
    own_cwtool("daemon", "start")
    assert "by force" not in own_cwtool("daemon", "stop", "--force").stderr
    assert running_pid(own_cwtool.settings) is None
    assert not own_cwtool.settings.socket.exists()  # it had time to tidy up


# the lock


def spoil_lock(settings: Settings, how: str) -> None:
    settings.lock_file.unlink()
    if how == "replaced":
        settings.lock_file.write_text("1")


@pytest.mark.parametrize("how", ["deleted", "replaced"])
def test_a_lock_file_that_is_deleted_or_replaced_lets_no_second_daemon_in(tmp_path: Path, how: str) -> None:
    settings = Settings(home=tmp_path)
    with hold_lock(settings) as lock:
        spoil_lock(settings, how)
        with pytest.raises(DaemonNotStartable, match="another daemon"), hold_lock(settings):
            pass
        lock.look_after()
        assert running_pid(settings) == os.getpid()
    assert running_pid(settings) is None
    with hold_lock(settings):
        pass


@pytest.mark.parametrize("how", ["deleted", "replaced"])
def test_a_daemon_whose_lock_file_is_gone_is_the_only_one_and_is_found(own_cwtool: CommandLine, how: str) -> None:
    cwtool = own_cwtool
    cwtool("daemon", "start")
    pid = running_pid(cwtool.settings)
    spoil_lock(cwtool.settings, how)
    assert running_pid(cwtool.settings) == pid  # in the very moment, by its address
    cwtool("daemon", "start")
    assert cwtool.json("daemon", "status")["pid"] == pid
    deadline = time.monotonic() + 60
    while not (cwtool.settings.lock_file.exists() and cwtool.settings.lock_file.read_text() == str(pid)):
        assert time.monotonic() < deadline, "the lock file was not made anew"


def test_a_state_folder_that_is_moved_away_is_not_taken_for_the_new_one(tmp_path: Path) -> None:
    home = tmp_path / "state"
    home.mkdir()
    settings = Settings(home=home)
    with hold_lock(settings) as lock:
        home.rename(tmp_path / "moved")
        home.mkdir()
        with pytest.raises(DaemonNotStartable, match="was moved or replaced"):
            lock.look_after()
        with hold_lock(settings):  # a daemon of the new folder is none of its business
            pass


# the database


def overwrite_pages(database: Path) -> None:
    """Everything but the first page, which holds the schema."""
    with database.open("r+b") as file:
        size = database.stat().st_size
        for page in range(4096, size, 4096):
            file.seek(page)
            file.write(os.urandom(min(4096, size - page)))


def test_a_damaged_database_is_a_named_error_for_every_read_and_write(tmp_path: Path) -> None:
    first = Store(tmp_path / "jobs.sqlite")
    for number in range(200):
        first.append_event("a", {"kind": "note", "text": "x" * 200, "number": number})
    first.close()
    overwrite_pages(tmp_path / "jobs.sqlite")
    store = Store(tmp_path / "jobs.sqlite")
    asked: list[Callable[[], object]] = [
        lambda: store.job("a"),
        store.jobs,
        lambda: store.count("queued"),
        lambda: store.events("a", 0, 10),
        lambda: store.runnable("cpu"),
        lambda: store.append_event("a", {"kind": "note"}),
        lambda: store.update_job("a", state="done"),
    ]
    for ask in asked:
        with pytest.raises(StateDamaged, match="is damaged") as caught:
            ask()
        assert "cwtool doctor --repair" in caught.value.hint
    assert "is damaged" in store.trouble
    store.close()


def told_of(cwtool: CommandLine) -> list[str]:
    """The troubles that status tells, as soon as there are any."""
    deadline = time.monotonic() + 60
    while not (troubles := cwtool.json("daemon", "status")["troubles"]):
        assert time.monotonic() < deadline, "no trouble was told"
    return list(troubles)


def test_a_database_that_is_overwritten_while_the_daemon_runs_is_shown_and_repaired(own_cwtool: CommandLine) -> None:
    cwtool = own_cwtool
    done = cwtool.json("run", *SHORT)["run_id"]
    cwtool("daemon", "restart")  # so that nothing of it is in memory
    overwrite_pages(cwtool.settings.database)
    said = cwtool("run", *SHORT, rc=1).stderr
    assert "is damaged" in said and "cwtool doctor --repair" in " ".join(said.split())
    assert any("the job database" in trouble for trouble in told_of(cwtool))
    assert "trouble: the job database" in cwtool("daemon", "status").stdout
    found = [check for check in cwtool.json("doctor", rc=1)["checks"] if check["name"] == "daemon"]
    assert any(check["state"] == "problem" and "the job database" in check["found"] for check in found)
    cwtool("daemon", "stop")
    said = cwtool("daemon", "start", rc=3).stderr
    assert "is damaged" in said and "cwtool doctor --repair" in " ".join(said.split())
    cwtool("doctor", "--repair")
    assert [row["run_id"] for row in cwtool.json("results")["results"]] == [done]
    cwtool("run", *SHORT)
    assert cwtool.json("daemon", "status")["troubles"] == []


def test_a_database_that_is_deleted_while_the_daemon_runs_is_written_anew(own_cwtool: CommandLine) -> None:
    cwtool = own_cwtool
    done = cwtool.json("run", *SHORT)["run_id"]
    for ending in ("", "-wal", "-shm"):
        Path(f"{cwtool.settings.database}{ending}").unlink()
    deadline = time.monotonic() + 60
    while not cwtool.settings.database.exists():
        assert time.monotonic() < deadline, "it was not written anew"
    assert cwtool.settings.database.stat().st_mode & 0o077 == 0
    second = cwtool.json("run", *SHORT)["run_id"]
    assert cwtool.json("daemon", "status")["troubles"] == []
    cwtool("daemon", "restart", "--force")
    assert [job["run_id"] for job in cwtool.json("jobs", "list")["jobs"]] == [second, done]
    assert cwtool("logs", done).stdout.rstrip().endswith("done")


def test_a_database_that_is_replaced_while_the_daemon_runs_is_told(own_cwtool: CommandLine) -> None:
    cwtool = own_cwtool
    cwtool("daemon", "start")
    other = cwtool.home / "other"
    other.write_bytes(cwtool.settings.database.read_bytes())
    other.replace(cwtool.settings.database)
    assert "was replaced while it was in use" in told_of(cwtool)[0]


def test_jobs_that_wait_are_found_again_in_what_is_left_of_a_damaged_database(own_cwtool: CommandLine) -> None:
    cwtool = own_cwtool
    cwtool("daemon", "start")
    cwtool("run", *SHORT)
    running = cwtool("run", *LONG, "--detach").stdout.strip()
    waiting = cwtool("run", *SHORT, "--detach").stdout.strip()
    cwtool("jobs", "pause", waiting)
    cwtool("jobs", "cancel", running)
    cwtool("daemon", "stop")
    database = cwtool.settings.database
    with contextlib.closing(sqlite3.connect(database)) as connection:
        (page,) = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'events'").fetchone()
    with database.open("r+b") as file:
        file.seek(4096 * (page - 1))
        file.write(os.urandom(4096))
    said = cwtool("doctor", "--repair").stderr
    assert "was set aside" in said and "found 3 jobs" in said
    assert cwtool.json("jobs", "show", waiting)["state"] == "paused"
    assert cwtool.json("jobs", "show", running)["state"] == "cancelled"
    cwtool("jobs", "resume", waiting)
    assert cwtool("logs", "-f", waiting).stdout.rstrip().endswith("done")


# what is left behind


def found_in(settings: Settings, *folders: Path) -> list[Path]:
    """What is found of this test; daemons of other tests are killed meanwhile, too."""
    return [path for path in leftovers.found(settings) if any(path.is_relative_to(folder) for folder in folders)]


def test_what_killed_processes_left_is_removed_and_what_live_ones_write_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)
    runtime = Path(tempfile.mkdtemp(dir=isolation.FOLDER))  # short enough for a socket
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    settings, gone = Settings(home=tmp_path / "state"), gone_pid()
    for folder in (settings.home, settings.runs, settings.cache, tmp_path / "tmp", settings.runtime_dir):
        folder.mkdir(parents=True)

    def of_process(path: Path, pid: int) -> Path:
        scratch = scratch_path(path)
        return scratch.with_name(scratch.name.replace(f".{os.getpid()}-", f".{pid}-"))

    left = [
        of_process(settings.runs / "a-run", gone),
        settings.runs / ".b-run.0123abcd",  # of an earlier version
        settings.runs / ".c-run.pruned",
        tmp_path / "tmp" / f"cwtool-fetch-{gone}-xyz",
    ]
    kept = [
        of_process(settings.runs / "d-run", os.getpid()),
        tmp_path / "tmp" / f"cwtool-fetch-{os.getpid()}-xyz",
        settings.runs / "whole-run",
    ]
    for folder in (*left, *kept):
        folder.mkdir()
        (folder / "file").touch()
    half = [of_process(settings.home / "daemon.json", gone), of_process(settings.cache / "abc.json", gone)]
    whole = [settings.home / ".hidden", settings.cache / "abc.json", scratch_path(settings.home / "keys.json")]
    for file in (*half, *whole):
        file.write_text("{")
    dead, alive, empty = (settings.runtime_dir.with_name(name) for name in ("dead", "alive", "empty"))
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as closed:
        for folder in (dead, alive, empty):
            folder.mkdir()
        closed.bind(str(dead / "daemon.sock"))
        closed.close()
        listener.bind(str(alive / "daemon.sock"))
        listener.listen()
        assert sorted(found_in(settings, tmp_path, runtime)) == sorted([*left, *half, dead])
        leftovers.remove(settings)
    assert not any(path.exists() for path in (*left, *half, dead))
    assert all(path.exists() for path in (*kept, *whole, alive, empty))


def test_half_a_score_that_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "state")
    settings.cache.mkdir(parents=True)
    write = "import sys; from pathlib import Path; from cwa_engine.base.files import write_whole\n"
    write += "import os; fsync = os.fsync; os.fsync = lambda handle: (print(flush=True), fsync(handle), input())\n"
    write += "write_whole(Path(sys.argv[1]), bytes(10**6))"
    command = [sys.executable, "-c", write, str(settings.cache / "abc.json")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        assert found_in(settings, tmp_path) == []  # it lives
        process.kill()
    assert len(leftovers.remove(settings)) == 1
    assert list(settings.cache.iterdir()) == []


def test_status_shows_what_a_job_may_take(own_cwtool: CommandLine) -> None:
    own_cwtool.env.update(CWTOOL_LOAD_MEMORY_GB="2", CWTOOL_STAGE_IDLE_S="77")
    own_cwtool("daemon", "start")
    limits = own_cwtool.json("daemon", "status")["limits"]
    assert (limits["load_bytes"], limits["stage_idle_s"]) == (2e9, 77)
    assert "limits: a load 2.0 GB of memory" in own_cwtool("daemon", "status").stdout


def test_a_tokenizer_that_panics_at_a_users_texts_fails_that_job_alone(own_cwtool: CommandLine) -> None:
    cwtool = own_cwtool
    folder = save_tiny("llama", cwtool.cwd / "m")
    pattern = {"type": "Split", "pattern": {"Regex": "(?:x+x+)+y"}, "behavior": "Isolated", "invert": False}
    edit_json(folder / "tokenizer.json", pre_tokenizer=pattern)
    texts = cwtool.cwd / "texts.txt"
    texts.write_text(f"a word\n\n{'x' * 200}\n\nanother\n\nand another\n")
    cwtool("load", "gpt2")
    worker = cwtool.worker_pid()
    said = cwtool("run", "--model", str(folder), "--topk", "2", "--data-file", str(texts), rc=1).stderr
    assert "panicked" in said and "retry-limit-in-match over" in said
    cwtool("run", *SHORT)
    assert cwtool.worker_pid() == worker


def test_hostile_models_are_refused_and_the_next_job_is_done_by_the_same_worker(own_cwtool: CommandLine) -> None:
    cwtool = own_cwtool
    cwtool("load", "gpt2")
    worker = cwtool.worker_pid()
    before = psutil.Process(worker).memory_info().rss
    for number, kind in enumerate(("config of 500 MB", "weights are a pipe", "header of 4 GB", "a tokenizer of 4 GB")):
        folder = save_tiny("llama", cwtool.cwd / f"m{number}")
        HOSTILE[kind][0](folder)
        said = cwtool.json("run", "--model", str(folder), "--topk", "2", rc=1)["error"]
        assert said["code"] == "model_broken"
    assert psutil.Process(worker).memory_info().rss - before < 200_000_000
    cwtool("run", *SHORT)
    assert cwtool.worker_pid() == worker


def test_a_load_that_needs_more_than_a_load_may_take_does_not_fit(own_cwtool: CommandLine) -> None:
    """The limit is met by the weights: what is smaller a library takes in its own ways, some of which end the process."""
    folder = save_tiny("llama", own_cwtool.cwd / "wide")
    config = AutoConfig.from_pretrained(folder, vocab_size=500_000)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    own_cwtool.env["CWTOOL_LOAD_MEMORY_GB"] = "0.02"
    said = own_cwtool("load", str(folder), rc=7).stderr
    assert "a load may take 0.02" in said and "CWTOOL_LOAD_MEMORY_GB" in said
