"""Run ids and models that commands have seen, in a small file of the state folder: a shell completes them from there.

It is a cache. Without it, or where it cannot be read or written, less is completed and nothing else is different.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cwa_engine.base.errors import InvalidInput
from cwa_engine.base.places import state_folder

MOST_RUNS, MOST_MODELS = 300, 100
_THIS_MACHINE = ""  # in place of a host's name


@dataclass(frozen=True, slots=True)
class Remembered:
    """Run id -> what there is to say of it, and names of models, both with the latest first."""

    runs: dict[str, str]
    models: tuple[str, ...]


def remembered() -> Remembered:
    """What is known of the daemon in use."""
    entry = _read().get(_host())
    entry = entry if isinstance(entry, dict) else {}
    runs, models = entry.get("runs"), entry.get("models")
    return Remembered(
        {str(run_id): str(said) for run_id, said in runs.items()} if isinstance(runs, dict) else {},
        tuple(map(str, models)) if isinstance(models, list) else (),
    )


def remember(runs: Iterable[tuple[str, str]] = (), models: Iterable[str] = ()) -> None:
    """Put (run id, what to say of it) and models, latest first, before those that are known already."""
    known = remembered()
    new_runs = dict(runs)
    all_runs = {**new_runs, **{run_id: said for run_id, said in known.runs.items() if run_id not in new_runs}}
    kept = Remembered(
        dict(list(all_runs.items())[:MOST_RUNS]), tuple(dict.fromkeys([*models, *known.models]))[:MOST_MODELS]
    )
    if kept != known:
        _write({**_read(), _host(): {"runs": kept.runs, "models": list(kept.models)}})


def _host() -> str:
    return os.environ.get("CWTOOL_HOST") or _THIS_MACHINE


def _file() -> Path | None:
    """None where there is no state folder: a command that needs no daemon makes none."""
    try:
        folder = state_folder()
    except InvalidInput:
        return None
    return folder / "completion.json" if folder.is_dir() else None


def _read() -> dict[str, object]:
    try:
        file = _file()
        found = json.loads(file.read_bytes()) if file else {}
    except (OSError, ValueError, RecursionError):  # it is made anew by the next command that has something to remember
        return {}
    return found if isinstance(found, dict) else {}


def _write(content: dict[str, object]) -> None:
    from cwa_engine.base.files import write_whole

    file = _file()
    if file is None:
        return
    try:
        write_whole(file, json.dumps(content).encode(), mode=0o600)
    except OSError:
        return  # a full disk: what the command is about matters more
