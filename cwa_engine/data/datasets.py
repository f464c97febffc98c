"""Texts of a dataset of the Hub, or of a local dataset folder, through the package `datasets`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cwa_engine.base.errors import CwaError, DataError, did_you_mean
from cwa_engine.base.events import Emit, Note, ignore
from cwa_engine.base.files import near_files, user_path
from cwa_engine.data.columns import Tally, cell_texts, choose_column
from cwa_engine.hub.access import current_access, datasets_access
from cwa_engine.hub.names import is_address, read_hub_name

_USUAL_SPLITS = ("test", "validation", "train")
_FORM = "write NAME, NAME:CONFIG or NAME:CONFIG:SPLIT"
_SPLIT_NAME = re.compile(r"(train|test|valid|validation|dev|eval)\b")


@dataclass(frozen=True, slots=True)
class DatasetName:
    """A dataset that a user named; None means the default. A `path` that begins with / is a folder, any other a Hub id."""

    path: str
    config: str | None = None
    split: str | None = None
    revision: str | None = None

    def __str__(self) -> str:
        path = f"{self.path}@{self.revision}" if self.revision else self.path
        if self.config is None and self.split is None:
            return path
        return f"{path}:{self.config or ''}:{self.split or ''}"


def parse_dataset(name: str) -> DatasetName:
    """Parse `NAME[:CONFIG][:SPLIT]`, where NAME is a folder, a Hub id, `ID@REVISION` or an address of the Hub.

    Of two parts the second is a split if it has the form of a split name or if the first is a folder, else a config. The
    name of a folder may contain colons. Raises DataError, also for a missing folder, and InvalidInput for other addresses.
    """
    folder, parts = _local_folder(name)
    if folder:
        return _named(name, str(folder), parts)
    _refuse_path(name)
    scheme, colon, rest = name.rpartition("://")
    path, *parts = rest.split(":")
    found = read_hub_name(scheme + colon + path, "dataset")
    if found is None:
        raise DataError(f"'{name}' names no dataset", hint=_FORM)
    if found.page[:1] == ("viewer",) and not parts:
        parts = list(found.page[1:3])
    return _named(name, found.repo, parts, found.revision)


def _named(name: str, path: str, parts: list[str], revision: str | None = None) -> DatasetName:
    if len(parts) > 2:
        raise DataError(f"'{name}' names no dataset", hint=_FORM)
    if len(parts) == 1 and (path.startswith("/") or _SPLIT_NAME.match(parts[0])):
        parts = ["", *parts]
    config, split = (*parts, "", "")[:2]
    return DatasetName(path, config or None, split or None, revision)


def absolute_dataset(name: str) -> str:
    """The same name with its folder made absolute, because a daemon has another working folder."""
    if not name.strip():
        raise DataError("--dataset is empty", hint=f"{_FORM}, or leave it out")
    return str(parse_dataset(name.strip()))


def dataset_texts(
    name: str, column: str | None = None, emit: Emit = ignore, tally: Tally | None = None
) -> Iterator[str]:
    """The texts of the split that was asked for, else of test, validation or train. Blank texts are left out.

    They are in `column` if given, else in the column with the first usual name, else in the only column of strings.
    Raises DataError.
    """
    found, chosen = _column_of(name, column, emit)
    cells = ((f"'{chosen}' in row {number}", row[chosen]) for number, row in enumerate(found, start=1))
    return cell_texts(f"dataset {name}", cells, tally or Tally())


def joined_rows(name: str, separator: str = "\n\n", column: str | None = None) -> str:
    """All rows of the split as one text, blank rows among them: how perplexities of WikiText are usually measured.

    Raises DataError as `dataset_texts` does.
    """
    found, chosen = _column_of(name, column, ignore)
    return separator.join(row[chosen] or "" for row in found)


def _column_of(name: str, column: str | None, emit: Emit) -> tuple[Any, str]:
    """The split with its column of texts alone, and the name of that column."""
    try:
        import datasets
    except ImportError as error:
        raise DataError("--dataset needs the package datasets", hint="pip install 'cwtool[eval]'") from error
    wanted, access = parse_dataset(name), current_access()
    try:
        with datasets_access(datasets, access):
            found = _load(datasets, wanted, access.sent_token)
    except CwaError:
        raise
    except Exception as error:  # the package and its builders raise errors of any type
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(
            f"dataset {name} cannot be loaded: {reason}",
            hint="write NAME[:CONFIG][:SPLIT]; a local folder works offline; HF_HUB_OFFLINE=1 uses the cache alone",
        ) from error
    strings = [
        name for name, kind in found.features.items() if getattr(kind, "dtype", "") in ("string", "large_string")
    ]
    chosen = choose_column(f"dataset {name}", list(found.features), strings, column, lambda text: emit(Note(text)))
    return found.select_columns(chosen), chosen


def _load(datasets: Any, wanted: DatasetName, token: str | bool) -> Any:
    """One split. A folder holds what `save_to_disk` wrote, or files of texts."""
    if any((Path(wanted.path) / name).is_file() for name in ("dataset_info.json", "dataset_dict.json")):
        found = datasets.load_from_disk(wanted.path)
    else:
        found = datasets.load_dataset(wanted.path, wanted.config, revision=wanted.revision, token=token)
    if not hasattr(found, "keys"):  # a single split was saved
        if wanted.split and wanted.split != str(found.split):
            raise DataError(
                f"dataset {wanted.path} has no split '{wanted.split}'",
                hint="it was saved as a single split: leave out the split",
            )
        return found
    chosen = wanted.split or next((usual for usual in _USUAL_SPLITS if usual in found), next(iter(found)))
    if chosen not in found:
        near = did_you_mean(chosen, found)
        raise DataError(f"dataset {wanted.path} has no split '{chosen}', but: {', '.join(found)}", hint=near)
    return found[chosen]


def _local_folder(name: str) -> tuple[Path | None, list[str]]:
    """The longest existing folder that the name begins with, and the parts after it."""
    parts = name.split(":")
    for count in range(len(parts), max(0, len(parts) - 3), -1):
        start = ":".join(parts[:count])
        if start.strip() and not is_address(start) and (path := user_path(start, "--dataset")).exists():
            if not path.is_dir():
                raise DataError(f"{path} is a file, not a dataset", hint=f"give it by --data-file {path}")
            return path, parts[count:]
    return None, []


def _refuse_path(name: str) -> None:
    """Raises DataError for a name that can only be a path, because that folder does not exist."""
    if name.startswith(("/", ".", "~")):
        missing = user_path(name.partition(":")[0], "--dataset")
        raise DataError(f"there is no dataset folder {missing}", hint=near_files(missing))
