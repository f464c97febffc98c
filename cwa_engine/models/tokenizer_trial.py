"""A trial of a tokenizer.json in a separate process, before this process reads it.

The package tokenizers runs what the file describes, such as regular expressions that never end or make it panic, and
replacements that double a text forty times. If memory runs out there, the process dies; so a separate process reads the
file first.

That process runs this module as a script, `python -P tokenizer_trial.py FILE`, so the module imports the standard library
only.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

_MOST_S = 120.0  # limit of a trial; generous, because the machine may be busy
_LOOK_S = 0.1  # between two checks for cancelling
_fine: set[tuple[str, int, int]] = (
    set()
)  # (path, size, mtime) of files that passed; a trial takes as long as reading the file


def tokenizer_problem(path: Path, texts: Sequence[str], check: Callable[[], None]) -> str:
    """The problem of reading a tokenizer and splitting these texts; empty if there is none.

    `check` is called ten times a second; it raises to cancel the trial. A file that passed is not tried again.
    """
    found = path.stat()
    key = str(path), found.st_size, found.st_mtime_ns
    if key in _fine:
        return ""
    with subprocess.Popen(
        [sys.executable, "-P", __file__, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env={**os.environ, "TOKENIZERS_PARALLELISM": "false", "RUST_BACKTRACE": "0", "PYTHONIOENCODING": "utf-8"},
    ) as process:
        try:
            said = _wait(process, json.dumps(list(texts)), check)
        except BaseException:
            process.kill()
            raise
    if process.returncode == 0:
        _fine.add(key)
        return ""
    if process.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        return f"it does not finish within {_most_cpu_s(found.st_size)} s"
    lines = [line.strip() for line in said.splitlines() if line.strip() and not line.startswith("note: ")]
    if process.returncode == -signal.SIGABRT or any("MemoryError" in line for line in lines):
        return f"it takes more than {_most_bytes(found.st_size) / 1e9:.1f} GB of memory"
    return lines[-1] if lines else f"reading it ends with exit code {process.returncode}"


def _wait(process: subprocess.Popen[str], texts: str, check: Callable[[], None]) -> str:
    """The output of the process at its end. The process is killed after _MOST_S."""
    waited, given = 0.0, texts
    while True:
        try:
            _, said = process.communicate(given or None, timeout=_LOOK_S)
            return said
        except subprocess.TimeoutExpired:
            waited, given = waited + _LOOK_S, ""  # the input has been sent
            check()
            if waited > _MOST_S:
                process.kill()


def _most_bytes(size: int) -> int:
    """Address space allowed for a file of this size; the file of Gemma 3, 33 MB, takes 390 MB."""
    return 512 * 2**20 + 24 * size


def _most_cpu_s(size: int) -> int:
    """Processor time allowed for a file of this size; the file of Gemma 3 takes 2 s."""
    return 5 + size // 2_000_000


def _main() -> None:
    size = Path(sys.argv[1]).stat().st_size
    limits = {
        resource.RLIMIT_AS: _most_bytes(size), resource.RLIMIT_CPU: _most_cpu_s(size), resource.RLIMIT_CORE: 0
    }  # fmt: skip
    for limit, most in limits.items():
        _, hard = resource.getrlimit(limit)
        resource.setrlimit(limit, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(sys.argv[1])
        for text in json.load(sys.stdin):
            tokenizer.encode(text)
    except BaseException as error:  # a panic of the package is a BaseException
        sys.exit(str(error).strip() or type(error).__name__)


if __name__ == "__main__":
    _main()
