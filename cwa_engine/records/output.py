"""Output folders of users: files of two runs never stand side by side there, and nobody's own files are overwritten unasked."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

from cwa_engine.base.errors import InvalidInput, OutputError, OutputTaken
from cwa_engine.base.files import check_output, sync_folder, write_whole
from cwa_engine.records.checksums import ALWAYS, MANIFEST, is_of_a_run
from cwa_engine.spec import RunSpec, parse_spec

_UNFINISHED = ".manifest.json"  # the manifest of a copy whose last step, its renaming, is yet to come
_NOT_ASKED = {"output", "data_name"}  # fields of a spec that do not change what is found
MOST_NAMED = 5


def claim_output(folder: Path, spec: RunSpec, force: bool, unknown: Collection[str] = ()) -> None:
    """Create an output folder, prove that it can be written, and that a run of this spec may write there.

    It may where the folder is empty but for hidden files, or holds a run of the same spec, whose files it replaces; by
    force anywhere. Fields that are `unknown` yet are not compared. Raises OutputError, and OutputTaken, naming what is
    there.
    """
    check_output(folder)
    there = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    if force or not there:
        return
    hint = "give --output another folder, or --force to replace the files of a run that are there"
    found = _manifest(folder)
    if found is None:
        raise OutputTaken(f"output folder {folder} holds {_some(there)}, and no run", hint)
    earlier, tables = found
    if differences := [name for name in _differences(earlier, spec) if name not in unknown]:
        raise OutputTaken(f"output folder {folder} holds a run with other {_some(differences)}", hint)
    others = [name for name in there if is_of_a_run(name) and name not in {*ALWAYS, *tables}]
    if others:
        raise OutputTaken(f"output folder {folder} holds {_some(others)}, which the run there has not written", hint)


def copy_run(folder: Path, output: Path, force: bool = False) -> None:
    """Copy a run's files into the user's output folder, each whole or not at all, and remove those of an earlier run.

    The manifest comes last: a folder with one is complete. Raises OutputError.
    """
    found = _manifest(folder)
    if found is None:
        raise OutputError(f"{folder} holds no run")
    files = sorted(path for path in folder.iterdir() if path.name != MANIFEST)
    hint = f"all files of the run are in {folder}"
    try:
        claim_output(output, found[0], force)
    except OutputTaken as error:
        raise OutputTaken(error.message, hint) from error
    target = output / MANIFEST
    try:
        write_whole(output / _UNFINISHED, (folder / MANIFEST).read_bytes())
        target.unlink(missing_ok=True)
        for stale in output.iterdir():
            if is_of_a_run(stale.name) and not (folder / stale.name).exists():
                stale.unlink()
        for path in files:
            target = output / path.name
            write_whole(target, path.read_bytes())
        target = output / MANIFEST
        (output / _UNFINISHED).replace(target)
    except OSError as error:
        raise OutputError(f"{target} cannot be written: {error.strerror}", hint) from error
    sync_folder(output)


def _manifest(folder: Path) -> tuple[RunSpec, set[str]] | None:
    """(spec, names of tables) of the run in a folder, or of one that was half copied there; None where there is none."""
    for name in (MANIFEST, _UNFINISHED):
        try:
            manifest = json.loads((folder / name).read_text("utf-8"))
            return parse_spec(manifest["spec"]), set(manifest["tables"])
        except (OSError, ValueError, KeyError, TypeError, InvalidInput):  # another program's file of that name
            continue
    return None


def _differences(one: RunSpec, other: RunSpec) -> list[str]:
    """Fields of two specs that are not the same, but for those that do not change what is found."""
    fields = (name for name in RunSpec.model_fields if name not in _NOT_ASKED)
    return [name for name in fields if getattr(one, name) != getattr(other, name)]


def _some(names: list[str]) -> str:
    more = len(names) - MOST_NAMED
    return ", ".join(names[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
