"""Texts of a dataset of the Hub, or of a local dataset folder, through the package `datasets`."""

from __future__ import annotations

import re
from itertools import islice
from pathlib import Path
from typing import Any

from cwa_engine.errors import DataError

_USUAL_COLUMNS = ("text", "content", "sentence", "document", "article", "code", "story")
_USUAL_SPLITS = ("test", "validation", "train")
_SPLIT_NAME = re.compile(r"(train|test|valid|validation|dev|eval)\b")


def parse_dataset(name: str) -> tuple[str, str | None, str | None]:
    """(path or Hub id, config, split) of `NAME[:CONFIG][:SPLIT]`; None stands for the usual one.

    Of two parts the second is a split where it is called like one, or where the first is a folder.
    """
    parts = [name] if Path(name).exists() else name.split(":")
    if len(parts) == 2 and (_SPLIT_NAME.match(parts[1]) or Path(parts[0]).is_dir()):
        parts.insert(1, "")
    if len(parts) > 3 or not parts[0]:
        raise DataError(f"'{name}' names no dataset", hint="write NAME, NAME:CONFIG or NAME:CONFIG:SPLIT")
    path, config, split = (*parts, "", "")[:3]
    return path, config or None, split or None


def dataset_texts(name: str, limit: int | None) -> list[str]:
    """The first `limit` texts that are not blank, of the split asked for, else of test, validation or train.

    The texts are in the column `text`, or the first usual name for one, or the only column of strings. Raises DataError.
    """
    try:
        import datasets
    except ImportError as error:
        raise DataError("--dataset needs the package datasets", hint="pip install 'cwtool[eval]'") from error
    path, config, split = parse_dataset(name)
    try:
        found = _load(datasets, path, config, split)
    except Exception as error:  # the package raises of every kind, also its builders' own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(
            f"dataset {name} cannot be loaded: {reason}",
            hint="write NAME[:CONFIG][:SPLIT]; a local folder works offline; HF_HUB_OFFLINE=1 uses the cache alone",
        ) from error
    column = _text_column(name, found)
    texts = (row[column] for row in found)
    return list(islice((text for text in texts if isinstance(text, str) and text.strip()), limit))


def _load(datasets: Any, path: str, config: str | None, split: str | None) -> Any:
    """One split. A folder may hold what `save_to_disk` wrote, or files of texts."""
    if any((Path(path) / name).is_file() for name in ("dataset_info.json", "dataset_dict.json")):
        found = datasets.load_from_disk(path)
    else:
        found = datasets.load_dataset(path, config)
    if not hasattr(found, "keys"):  # a single split was saved
        return found
    chosen = split or next((usual for usual in _USUAL_SPLITS if usual in found), next(iter(found)))
    if chosen not in found:
        raise ValueError(f"it has no split '{chosen}', but {', '.join(found)}")
    return found[chosen]


def _text_column(name: str, found: Any) -> str:
    strings = [
        column for column, kind in found.features.items() if getattr(kind, "dtype", "") in ("string", "large_string")
    ]
    chosen = next((usual for usual in _USUAL_COLUMNS if usual in strings), strings[0] if len(strings) == 1 else None)
    if chosen is None:
        raise DataError(
            f"dataset {name} has no column of texts: {', '.join(found.features)}",
            hint=f"its texts belong into a column called {', '.join(_USUAL_COLUMNS[:3])} or the like",
        )
    return str(chosen)
