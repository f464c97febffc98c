"""Commands that tests run in forks do what typed ones do, and nothing is left when the tests are killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.conftest import CWTOOL, CommandLine, command_server


def test_a_command_in_a_fork_says_and_returns_what_a_typed_one_does(cwtool: CommandLine) -> None:
    assert command_server().takes(cwtool.env)
    for args, code in ((("run", "--help"), 0), (("run", "--topk", "many"), 2), (("-h",), 0)):
        typed = subprocess.run(
            [CWTOOL, *args], cwd=cwtool.cwd, env=cwtool.env, capture_output=True, text=True, check=False
        )
        forked = cwtool(*args, rc=code)
        assert (forked.returncode, forked.stdout, forked.stderr) == (typed.returncode, typed.stdout, typed.stderr)


def test_a_command_whose_environment_counts_when_python_begins_is_no_fork(cwtool: CommandLine) -> None:
    assert command_server().takes({**cwtool.env, "CWTOOL_HOST": "box", "HF_TOKEN": "hf_x"})
    assert not command_server().takes({**cwtool.env, "LC_ALL": "C"})


_TESTS = """
import os, sys
from pathlib import Path
from tests.conftest import CommandLine
cwtool = CommandLine(Path(sys.argv[1]) / "state", Path(sys.argv[1]), Path(sys.argv[1]))
cwtool("daemon", "start")
print(cwtool.json("daemon", "status")["pid"], os.environ["XDG_RUNTIME_DIR"], flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_tests_that_are_killed_leave_no_daemon_and_no_folder(tmp_path: Path, how: signal.Signals) -> None:
    command = [sys.executable, "-c", _TESTS, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as tests:
        assert tests.stdout
        pid, runtime = tests.stdout.readline().split()
        daemon, server = psutil.Process(int(pid)), psutil.Process(tests.pid).children()[0]
        os.kill(tests.pid, how)
    assert psutil.wait_procs([daemon, server], timeout=60)[1] == []
    assert not Path(runtime).parent.exists()
