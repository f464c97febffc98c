"""A repository's snapshot in the Hugging Face cache: what is complete there is used, what is missing is downloaded."""

from __future__ import annotations

import functools
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
from tqdm import tqdm

from cwa_engine.models.sources import WEIGHT_SUFFIXES, HubAccess

_CONFIG_PATTERNS = ["*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken"]

Read = Callable[[int, int], None]  # hears how many bytes of how many have come


def snapshot(repo: str, revision: str | None, access: HubAccess, say: Callable[[str], None], read: Read) -> Path:
    """The folder with config, tokenizer and weights. Raises what huggingface_hub raises."""
    fetch = _fetch(repo, revision, access)
    folder = _cached(fetch, access)
    if folder and (access.offline or _has_weights(folder)):
        return folder
    names = HfApi(token=access.token).list_repo_files(repo, revision=revision)
    weights = "*.safetensors" if any(name.endswith(".safetensors") for name in names) else "*.bin"
    wanted = [*_CONFIG_PATTERNS, weights]
    listed = fetch(allow_patterns=wanted, dry_run=True, tqdm_class=_telling(read, 0))
    missing = [file.file_size for file in listed if file.will_download]
    say(f"downloading {repo}: {len(missing)} files, {sum(missing) / 1e6:,.1f} MB")
    return Path(fetch(allow_patterns=wanted, tqdm_class=_telling(read, sum(missing))))


def snapshot_without_weights(repo: str, revision: str | None, access: HubAccess) -> Path:
    """The same folder, of which only config and tokenizer need be there."""
    fetch = _fetch(repo, revision, access)
    return _cached(fetch, access) or Path(fetch(allow_patterns=_CONFIG_PATTERNS))


def _fetch(repo: str, revision: str | None, access: HubAccess) -> Callable[..., Any]:
    return functools.partial(snapshot_download, repo, revision=revision, cache_dir=access.cache_dir, token=access.token)


def _cached(fetch: Callable[..., Any], access: HubAccess) -> Path | None:
    """What the cache has, which needs no network; None for nothing. Raises LocalEntryNotFoundError for that offline."""
    try:
        return Path(fetch(local_files_only=True))
    except LocalEntryNotFoundError:
        if access.offline:
            raise
        return None


def _has_weights(folder: Path) -> bool:
    """Whether the snapshot holds weights, all shards of them where an index lists several.

    A repository may have its weights in two formats. Of the one that was not downloaded only the index is there.
    """
    if any((folder / name).exists() for name in ("model.safetensors", "pytorch_model.bin")):
        return True
    indices = [json.loads(path.read_text())["weight_map"] for path in folder.glob("*.index.json")]
    if not indices:
        return any(path.suffix in WEIGHT_SUFFIXES for path in folder.iterdir())
    return any(all((folder / name).exists() for name in set(shards.values())) for shards in indices)


def _telling(read: Read, total: int) -> type[tqdm]:
    """A progress bar that draws nothing and tells `read` of the bytes, some ten times a second, from any thread.

    huggingface_hub makes several: one counts files, the others the bytes as they come from the network and to the disk.
    """
    told = 0

    class Telling(tqdm):  # type: ignore[misc]  # tqdm is untyped
        monitor_interval = 0  # no thread of tqdm's that refreshes too

        def __init__(self, *args: Any, **options: Any) -> None:
            for name in ("name", "disable", "file"):  # huggingface_hub's own; a bar without a terminal is not disabled
                options.pop(name, None)
            super().__init__(*args, file=io.StringIO(), **options)

        # Not `display`, which tqdm calls with its lock in hand: `read` raises where the user cancels.
        def refresh(self, *args: Any, **options: Any) -> None:
            nonlocal told
            if self.unit == "B" and self.n > told:
                told = min(int(self.n), total)
                read(told, total)

    return Telling
