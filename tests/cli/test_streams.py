"""Standard streams as shells have them: other encodings, closed, full, left by their reader; and Ctrl-C at any moment."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import CWTOOL, HEAR_INTERRUPTS, SHORT, CommandLine

COMMANDS = [["--help"], ["run", "--help"], ["models"], ["jobs"], ["results", "show"], ["results", "topk"]]


@pytest.fixture(scope="module")
def run_id(shared_home: Path, hub: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A finished run on texts whose file has a name that no encoding but Unicode holds."""
    cwtool = CommandLine(shared_home, tmp_path_factory.mktemp("cwd"), hub)
    texts = [f"the story of text number {number}" for number in range(8)]
    (cwtool.cwd / "文 é.txt").write_text("\n\n".join(texts), "utf-8")
    return str(cwtool.json("run", *SHORT, "--data-file", "文 é.txt")["run_id"])


def typed(cwtool: CommandLine, command: str, **env: str) -> tuple[int, str, str]:
    """Exit code, output and errors of a command line of bash."""
    done = subprocess.run(
        ["bash", "-c", f"cwtool() {{ {CWTOOL} \"$@\"; }}; {command}"],
        env={**cwtool.env, **env}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "cp437", "utf-8"])
def test_every_encoding_takes_what_a_run_found(cwtool: CommandLine, run_id: str, encoding: str) -> None:
    environment = {**cwtool.env, "PYTHONIOENCODING": encoding}
    shown = [
        subprocess.run([CWTOOL, *args], env=environment, capture_output=True, check=True).stdout.decode(encoding)
        for args in (["results", "show", run_id], ["models"], ["run", "--help"], ["doctor", "--help"])
    ]
    # what an encoding lacks is spelled as in Python, so the file can still be told from every other
    name = "文 é.txt" if encoding == "utf-8" else "\\u6587 \\xe9.txt" if encoding == "ascii" else "\\u6587 é.txt"
    assert name in shown[0] and "nats/token" in shown[0]
    assert ("delta nats/token" in shown[0]) == (encoding in ("ascii", "latin-1", "cp1252", "cp437"))
    assert ("─" in shown[0]) == (encoding == "utf-8")
    assert "smollm2-135m" in shown[1]


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_json_is_ascii_in_every_encoding(cwtool: CommandLine, run_id: str, encoding: str) -> None:
    code, shown, _ = typed(cwtool, f"cwtool results show {run_id} --json", PYTHONIOENCODING=encoding)
    assert code == 0 and shown.isascii()
    assert json.loads(shown)["texts"]["source"].endswith("文 é.txt")


@pytest.mark.parametrize("args", COMMANDS, ids=" ".join)
def test_a_full_disk_behind_standard_output_is_said_in_one_line(
    cwtool: CommandLine, run_id: str, args: list[str]
) -> None:
    code, _, said = typed(cwtool, f"cwtool {' '.join(args)} > /dev/full")
    assert (code, said) == (1, "Error: standard output cannot be written: No space left on device\n")


def test_a_closed_standard_output_is_said_and_the_other_streams_may_be_closed_too(
    cwtool: CommandLine, run_id: str
) -> None:
    code, _, said = typed(cwtool, f"cwtool results show {run_id} >&-")
    assert (code, said) == (1, "Error: standard output cannot be written: Bad file descriptor\n")
    assert typed(cwtool, "cwtool version >&- 2>&- <&-") == (1, "", "")
    assert typed(cwtool, "cwtool version 2>&- <&-")[0] == 0
    assert typed(cwtool, "cwtool nosuch 2>/dev/full")[0] == 1


@pytest.mark.parametrize("args", [*COMMANDS, ["logs", "-f"], ["models", "--json"], ["version"]], ids=" ".join)
def test_a_reader_that_has_left_ends_a_command_quietly(cwtool: CommandLine, run_id: str, args: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([CWTOOL, *args], env=cwtool.env, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


def test_head_gets_its_line_and_nobody_complains(cwtool: CommandLine, run_id: str) -> None:
    code, shown, said = typed(cwtool, f"cwtool logs -f {run_id} | head -1; exit ${{PIPESTATUS[1]}}")
    assert (code, shown.count("\n"), said) == (0, 1, "")


def test_a_daemon_that_an_ascii_shell_started_logs_every_name(own_cwtool: CommandLine, hub: Path) -> None:
    shutil.copytree(next((hub / "hub" / "models--gpt2" / "snapshots").iterdir()), own_cwtool.cwd / "文 é")
    own_cwtool.env["PYTHONIOENCODING"] = "ascii"
    own_cwtool("load", "./文 é", "--keep-alive", "0")
    pid = own_cwtool.worker_pid()
    own_cwtool("load", "gpt2")
    assert own_cwtool.worker_pid() == pid  # it has said what it unloaded, and lives
    assert "unloaded " in own_cwtool("daemon", "logs").stdout
    assert f"unloaded {own_cwtool.cwd}/文 é" in (own_cwtool.settings.logs / "worker-cpu.log").read_text("utf-8")


def test_ctrl_c_while_modules_are_imported_ends_the_program_without_a_traceback(
    cwtool: CommandLine, tmp_path: Path
) -> None:
    (tmp_path / "typer.py").write_text("import signal\nprint('importing', flush=True)\nsignal.pause()\n")
    start = "from cwa_tui.start import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", HEAR_INTERRUPTS, sys.executable, "-c", start],
        env={**cwtool.env, "PYTHONPATH": f"{tmp_path}:{cwtool.env.get('PYTHONPATH', '')}"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout and process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (-signal.SIGINT, "")  # a shell shows 130
