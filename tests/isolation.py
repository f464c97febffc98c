"""An environment of the tests' own: what a shell has set, and what its user's folders hold, changes no test.

Imported by `conftest.py` before anything that reads the environment. Only what runs the interpreter itself is kept.
"""

from __future__ import annotations

import locale
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

_KEPT = ("PATH", "LD_LIBRARY_PATH", "VIRTUAL_ENV")
_KEPT_KINDS = (
    "CWTOOL_CHAOS", "CWTOOL_EXPLORE", "CWTOOL_TEST_DEVICE",  # what a tester asks for
    "PYTHONPATH", "PYTHONHASHSEED", "PYTEST_", "TEXTUAL_SNAPSHOT_", "COV_", "OMP_", "GOMP_",
    "CUDA_", "NVIDIA_",
)  # fmt: skip

# The sockets lie below it: short, for a path of one has 107 bytes, and open to who tests that another user is refused.
FOLDER = Path(tempfile.mkdtemp(prefix="cwtool-tests-", dir="/tmp"))


def remove() -> None:
    shutil.rmtree(FOLDER, ignore_errors=True)


def _isolate() -> None:
    for name in list(os.environ):
        if name not in _KEPT and not name.startswith(_KEPT_KINDS):
            del os.environ[name]
    sys.dont_write_bytecode = False  # or every process compiles all modules anew
    os.umask(0o022)
    FOLDER.chmod(0o711)
    for name, folder in (("HOME", "home"), ("XDG_RUNTIME_DIR", "run")):
        (FOLDER / folder).mkdir(mode=0o711)
        os.environ[name] = str(FOLDER / folder)
    os.environ.setdefault("PATH", os.defpath)
    os.environ |= {"TMPDIR": "/tmp", "LC_ALL": "C.UTF-8", "TERM": "xterm-256color", "HF_HUB_OFFLINE": "1"}
    locale.setlocale(locale.LC_ALL, "C.UTF-8")
    time.tzset()
    tempfile.tempdir = None  # chosen anew
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which shells have programs in the background ignore


_isolate()
ENVIRONMENT = dict(os.environ)  # of every test, unless it changes it
