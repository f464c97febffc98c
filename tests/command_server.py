"""Runs commands of cwtool in forks of a process that has imported it already: 0.1 s of processor time each, not 0.5 s.

`main` is that process. Over the socket whose descriptor is its argument it is given a command, its folder and its
environment, files for what the command prints, and a socket over which it answers with the process id and then the exit
code. Each command has a process of its own, which ends as one that was typed does.

When the tests are gone, killed or not, it ends the daemons and workers that they have left, and removes their folder.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import random
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

_PROGRAM = "from tests.command_server import main; main()"
_MOST_BYTES = 2**20  # of a request
# What commands read when they run. Whatever else an environment has may count when the interpreter or a module begins.
_READ_LATE = ("CWTOOL_", "HF_")


class CommandServer:
    """The process as a test sees it."""

    def __init__(self, program: str, env: Mapping[str, str]) -> None:
        """`env` is what the environments of all commands have in common."""
        self._program = program
        self._env = _read_early(env)
        self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, str(theirs.fileno())],
                env=dict(env), pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                start_new_session=True,  # a signal to the tests' process group is not for who tidies up after them
            )  # fmt: skip

    def takes(self, env: Mapping[str, str]) -> bool:
        """Whether a command in this environment does here what it does in a process that has just begun."""
        return _read_early(env) == self._env

    def run(
        self, args: Sequence[str], cwd: Path, env: Mapping[str, str], timeout_s: float
    ) -> subprocess.CompletedProcess[str]:
        """As `subprocess.run` does with captured text. Raises subprocess.TimeoutExpired, and ends the command."""
        command = [self._program, *args]
        request = json.dumps({"argv": command, "cwd": str(cwd), "env": dict(env)}).encode()
        ours, theirs = socket.socketpair()
        with ours, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            with theirs:
                socket.send_fds(self._requests, [request], [out.fileno(), err.fileno(), theirs.fileno()])
            ours.settimeout(timeout_s)
            with ours.makefile() as answers:
                pid = int(answers.readline())
                try:
                    code = int(answers.readline())
                except TimeoutError:
                    os.kill(pid, signal.SIGKILL)
                    raise subprocess.TimeoutExpired(command, timeout_s) from None
            return subprocess.CompletedProcess(command, code, _text(out), _text(err))

    def close(self) -> None:
        self._requests.close()
        self._process.wait()


def _read_early(env: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in env.items() if not name.startswith(_READ_LATE)}


def _text(file: Any) -> str:
    file.seek(0)
    return str(file.read().decode().replace("\r\n", "\n"))


def _serve(requests: socket.socket) -> dict[str, Any]:
    """Begin a process for each request. Returns in that process, with the request; ends this one when no more can come."""
    with selectors.DefaultSelector() as selector:
        selector.register(requests, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.data:
                    _answer_with_its_end(*key.data)
                    selector.unregister(key.fd)
                    os.close(key.fd)
                    continue
                said, handles, _, _ = socket.recv_fds(requests, _MOST_BYTES, 3)
                if not said:
                    _tidy_up()
                    sys.exit()
                pid = os.fork()
                if not pid:
                    for number, handle in enumerate(handles[:2], start=1):
                        os.dup2(handle, number)
                    for handle in (*handles, *(open_key.fd for open_key in selector.get_map().values())):
                        os.close(handle)
                    return dict(json.loads(said))
                for handle in handles[:2]:
                    os.close(handle)
                answers = socket.socket(fileno=handles[2])
                answers.sendall(f"{pid}\n".encode())
                selector.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, answers))


def _answer_with_its_end(pid: int, answers: socket.socket) -> None:
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with answers, contextlib.suppress(BrokenPipeError):  # whoever asked was not patient enough
        answers.sendall(f"{code}\n".encode())


def _tidy_up() -> None:
    folder = Path(os.environ["XDG_RUNTIME_DIR"]).parent  # see isolation.py
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            theirs = Path(process.environ().get("XDG_RUNTIME_DIR", "/")).is_relative_to(folder)
            if theirs and process.pid not in (os.getpid(), os.getppid()):
                process.kill()
    shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    """Serve until the tests are gone. In the process of a command: run it."""
    for module in ("cwtool", "cwa_daemon.client", "cwa_tui.cli.following", "cwa_tui.cli.tables"):
        importlib.import_module(module)
    from cwa_tui.start import main as run_command

    gc.freeze()  # or the first collection in each command copies all of these pages
    request = _serve(socket.socket(fileno=int(sys.argv[1])))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which scripts' background processes ignore
    random.seed()
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    sys.argv[:] = request["argv"]
    run_command()
