"""Files that the full-screen interface writes what is seen to. No Textual in it.

write_export(export_folder(), "topk-k7q2.csv", text)
"""

from __future__ import annotations

import itertools
import os
import re
from pathlib import Path

from cwa_engine.base.errors import OutputError
from cwa_engine.base.files import write_synced
from cwa_engine.base.places import state_folder

_UNSAFE = re.compile(r"[^\w.+=@-]+")


def export_folder() -> Path:
    """Where an export goes: the folder the program was started in, as a shell's `>` would have it.

    Where files cannot be written there, it is `exports` in the state folder, which is made.
    """
    here = Path.cwd()
    if os.access(here, os.W_OK | os.X_OK):
        return here
    folder = state_folder() / "exports"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(folder, error) from error
    return folder


def write_export(folder: Path, name: str, text: str | bytes) -> Path:
    """Write a new file and give its path: `topk.csv`, or `topk-2.csv` where that is taken. Nothing is overwritten.

    Characters that do not belong into a file's name become `_`. Raises OutputError where the folder cannot be written.
    """
    safe = Path(_UNSAFE.sub("_", name).lstrip(".") or "export")
    content = text if isinstance(text, bytes) else text.encode("utf-8", "backslashreplace")
    for number in itertools.count(1):
        path = folder / (safe.name if number == 1 else f"{safe.stem}-{number}{safe.suffix}")
        try:
            write_synced(path, content)
        except FileExistsError:
            continue
        except OSError as error:
            path.unlink(missing_ok=True)  # of a full disk: half a table is none
            raise _unwritable(path, error) from error
        return path
    raise AssertionError("unreachable")


def _unwritable(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"{path} cannot be written: {error.strerror}", hint="start cwtool in a folder that you may write, or make room"
    )
