"""What every test may use: a Hub cache of stand-in models, and the real command line with a daemon of its own."""

from __future__ import annotations

from tests import isolation  # before anything reads the environment

# isort: split

import atexit
import functools
import gc
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from cwa_daemon.base.address import running_pid
from cwa_daemon.base.settings import Settings
from cwa_daemon.client import Client, stop_daemon
from tests.command_server import CommandServer
from tests.ladder.models import ladder_cache
from tests.models import hub_cache

COLUMNS = "100"
CWTOOL = str(Path(sys.executable).with_name("cwtool"))

# A script's background processes ignore SIGINT, and hand that down.
HEAR_INTERRUPTS = (
    "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
)

# The same examples each time, so that a commit passes or not whatever is drawn, and however busy the machine is.
# CWTOOL_EXPLORE=1 draws others each time.
hypothesis.settings.register_profile("same each time", derandomize=True, deadline=None)
hypothesis.settings.load_profile("default" if os.environ.get("CWTOOL_EXPLORE") else "same each time")

gc.disable()  # a quarter of the time of importing torch and transformers is spent on looking for garbage


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def pytest_unconfigure() -> None:
    isolation.remove()


STAND_INS = {
    "gpt2": "gpt2",
    "gpt2-medium": "gpt2",
    "distilgpt2": "gpt2",
    "EleutherAI/pythia-70m": "neox",
    "EleutherAI/pythia-160m": "neox",
    "EleutherAI/pythia-410m": "neox",
    "EleutherAI/pythia-1.4b": "neox",
    "EleutherAI/pythia-2.8b": "neox",
    "facebook/opt-350m": "opt",
    "meta-llama/Llama-2-7b-hf": "llama",
    "MODEL": "llama",
    "LARGE_MODEL": "llama",
}


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face home whose cache holds small models under the names of real ones."""
    home = tmp_path_factory.mktemp("huggingface")
    hub_cache(home / "hub", STAND_INS)
    return home


@pytest.fixture(scope="session")
def ladder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face home whose cache holds small trained models under the names of real ones."""
    home = tmp_path_factory.mktemp("ladder")
    ladder_cache(home / "hub")
    return home


@functools.cache
def command_server() -> CommandServer:
    """Of this test process; started with the first command line."""
    server = CommandServer(CWTOOL, {**isolation.ENVIRONMENT, "COLUMNS": COLUMNS})
    atexit.register(server.close)
    return server


class CommandLine:
    """Types commands as a user does, in a folder and with a state folder of its own."""

    def __init__(self, home: Path, cwd: Path, hub: Path) -> None:
        self.home = home
        self.cwd = cwd
        self.env = {
            **isolation.ENVIRONMENT,
            "CWTOOL_HOME": str(home),
            "HF_HOME": str(hub),
            "HF_HUB_OFFLINE": "1",
            "COLUMNS": COLUMNS,
        }
        self.settings = Settings(home=home)
        command_server()  # which ends the daemon if the tests are killed

    def __call__(self, *args: str, rc: int = 0, **env: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end and check its exit code."""
        where: dict[str, Any] = {"cwd": self.cwd, "env": {**self.env, **env}}
        if (server := command_server()).takes(where["env"]):
            done = server.run(args, **where, timeout_s=240)
        else:
            done = subprocess.run(
                [CWTOOL, *args], **where, capture_output=True, text=True, timeout=240, check=False
            )  # fmt: skip
        assert done.returncode == rc, f"cwtool {' '.join(args)}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def json(self, *args: str, rc: int = 0) -> Any:
        return json.loads(self(*args, "--json", rc=rc).stdout)

    def start(self, *args: str) -> subprocess.Popen[str]:
        """Start a command and go on. It hears Ctrl-C even where the tests run in the background of a script."""
        pipe, command = subprocess.PIPE, [sys.executable, "-c", HEAR_INTERRUPTS, CWTOOL, *args]
        return subprocess.Popen(command, cwd=self.cwd, env=self.env, stdout=pipe, stderr=pipe, text=True)

    def client(self) -> Client:
        return Client.connect(self.settings)

    def wait_for(self, run_id: str, kind: str, **fields: Any) -> dict[str, Any]:
        """The first event of a kind with these fields; waits for it on the daemon's own event stream."""
        with self.client() as client:
            for event in client.follow(run_id):
                if event["kind"] == kind and all(event[name] == value for name, value in fields.items()):
                    return event
            job = client.job(run_id)
        raise AssertionError(f"{run_id} ended without {kind} {fields}: {job.state}, {job.error}")

    def worker_pid(self) -> int:
        return next(worker["pid"] for worker in self.json("daemon", "status")["workers"] if worker["pid"])

    def kill(self, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="session")
def shared_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    home = tmp_path_factory.mktemp("state")
    yield home
    stop_daemon(Settings(home=home), force=True)


@pytest.fixture(scope="module")
def module_cwtool(hub: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandLine]:
    """The command line with a daemon of the test module alone."""
    home = tmp_path_factory.mktemp("state")
    yield CommandLine(home, tmp_path_factory.mktemp("work"), hub)
    stop_daemon(Settings(home=home), force=True)


@pytest.fixture
def cwtool(shared_home: Path, tmp_path: Path, hub: Path) -> Iterator[CommandLine]:
    """The command line with a daemon that tests share, so that its worker is warm. A test leaves no job running."""
    command_line = CommandLine(shared_home, tmp_path, hub)
    yield command_line
    if not running_pid(command_line.settings):
        return
    with command_line.client() as client:
        for job in client.jobs():
            if not job.ended:
                client.cancel(job.run_id)
                list(client.follow(job.run_id))


@pytest.fixture
def own_cwtool(tmp_path: Path, hub: Path) -> Iterator[CommandLine]:
    """The command line with a daemon that this test may hurt."""
    command_line = CommandLine(tmp_path / "state", tmp_path, hub)
    yield command_line
    stop_daemon(command_line.settings, force=True)


def free_address() -> str:
    """A TCP address at which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{probe.getsockname()[1]}"


def reached_as_box(box: CommandLine, away: CommandLine, address: str) -> CommandLine:
    """Start the daemon of `box` so that `away`, the command line of another machine, may come in, and knows it as "box"."""
    public = box("daemon", "keys", "new").stdout.strip()
    box("daemon", "start", "--listen", address)
    away("daemon", "hosts", "add", "box", address, public)
    box("daemon", "keys", "allow", "ann", away("daemon", "keys", "new").stdout.strip())
    return away


# A run that is long enough to be caught in the middle, whatever the machine: it is always cancelled or killed.
LONG = ("--model", "gpt2", "--topk", "5", "--control-seeds", "2000")
SHORT = ("--model", "gpt2", "--topk", "5", "--eval-limit", "4", "--control-seeds", "1")
