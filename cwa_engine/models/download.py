"""The snapshot of a repository in the Hugging Face cache. Missing files are downloaded."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
from tqdm import tqdm

from cwa_engine.base.errors import ModelBroken
from cwa_engine.hub.sources import HubAccess
from cwa_engine.models.checkpoint import Read, files_to_read, weight_files
from cwa_engine.models.completeness import refuse_adapter
from cwa_engine.models.model_files import read_json

_CONFIG_PATTERNS = ["*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken"]


def snapshot(repo: str, revision: str | None, access: HubAccess, say: Callable[[str], None], read: Read) -> Path:
    """The folder with config, tokenizer and the weights files to read.

    Raises ModelBroken for an adapter, for a repository without weights, and offline for an incomplete copy; also raises
    what huggingface_hub raises.
    """
    fetch = _fetch(repo, revision, access)
    folder = _cached(fetch, access)
    if folder:
        lacking = [path.name for path in weight_files(folder) if not path.exists()] or _none_at_all(folder)
        if not lacking:
            return folder
        if access.offline:
            raise ModelBroken(
                f"the cached copy of {repo} is not complete: it lacks {lacking[0]}", hint="load it once online"
            )
    names = HfApi(token=access.sent_token).list_repo_files(repo, revision=revision)
    refuse_adapter(names, repo)
    listing = Path(fetch(allow_patterns=["config.json", "*.index.json"], tqdm_class=_telling(_nobody, 0)))
    weights = files_to_read(names, lambda name: read_json(listing / name))
    if not weights:
        raise ModelBroken(f"{repo} has no weights that transformers reads", hint=_other_weights(names))
    wanted = [*_CONFIG_PATTERNS, *weights]
    listed = fetch(allow_patterns=wanted, dry_run=True, tqdm_class=_telling(_nobody, 0))
    missing = [file.file_size for file in listed if file.will_download]
    say(f"downloading {repo}: {len(missing)} files, {sum(missing) / 1e6:,.1f} MB")
    return Path(fetch(allow_patterns=wanted, tqdm_class=_telling(read, sum(missing))))


def _none_at_all(folder: Path) -> list[str]:
    return [] if weight_files(folder) else ["its weights"]


def _other_weights(names: Sequence[str]) -> str:
    gguf = [name for name in names if name.endswith(".gguf")]
    if gguf:
        return f"download one of its GGUF files ({gguf[0]}) and give that file's path"
    return "its files should be named model.safetensors or pytorch_model.bin, or be listed in an index"


def snapshot_without_weights(repo: str, revision: str | None, access: HubAccess) -> Path:
    """The same folder, with config and tokenizer only."""
    fetch = _fetch(repo, revision, access)
    return _cached(fetch, access) or Path(fetch(allow_patterns=_CONFIG_PATTERNS))


def _fetch(repo: str, revision: str | None, access: HubAccess) -> Callable[..., Any]:
    known = {"cache_dir": access.cache_dir, "token": access.sent_token}
    return functools.partial(snapshot_download, repo, revision=revision, **known)


def _cached(fetch: Callable[..., Any], access: HubAccess) -> Path | None:
    """The folder in the cache, without network; None if there is none. Offline this raises LocalEntryNotFoundError."""
    wanted = ["config.json"] if access.offline else _CONFIG_PATTERNS  # offline, the files in the cache must suffice
    try:
        return Path(fetch(local_files_only=True, allow_patterns=wanted))
    except LocalEntryNotFoundError:
        if access.offline:
            raise
        return None


def _nobody(done_bytes: int, total_bytes: int) -> None:
    """A progress callback that does nothing, for small files."""


def _telling(read: Read, total: int) -> type[tqdm]:
    """A tqdm class that draws nothing and calls `read(bytes done, total)` about ten times a second, from any thread.

    huggingface_hub makes several bars: one counts files, others count the bytes from the network and to the disk.
    """
    told = 0

    class Telling(tqdm):  # type: ignore[misc]  # tqdm is untyped
        monitor_interval = 0  # no refreshing thread of tqdm

        def __init__(self, *args: Any, **options: Any) -> None:
            for name in (
                "name",
                "disable",
                "file",
            ):  # options of huggingface_hub; a bar without a terminal must not be disabled
                options.pop(name, None)
            super().__init__(*args, file=io.StringIO(), **options)

        # Not in `display`: tqdm calls it while it holds its lock, and `read` raises if the user cancels.
        def refresh(self, *args: Any, **options: Any) -> None:
            nonlocal told
            if self.unit == "B" and self.n > told:
                told = min(int(self.n), total)
                read(told, total)

    return Telling
