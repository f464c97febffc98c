"""What a cell's run depends on, as hashes: two cells of one identity are one run. torch-free.

The model is known by the hashes of its files, or by the commit that the Hub's cache has of its revision; the texts by their
content; the code by the hash of its source and the versions of what it computes with.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path

from cwa_engine.base.errors import CwaError
from cwa_engine.base.plain import JsonMap
from cwa_engine.base.source_code import code_sha256
from cwa_engine.base.version import __version__
from cwa_engine.data.datasets import parse_dataset
from cwa_engine.hub.sources import HubAccess, SourceKind, gguf_shards, known_hash, resolve
from cwa_engine.records.export import library_versions
from cwa_engine.spec import RunSpec

# Files of a model's folder that change what is loaded: not what it says of itself, and not the state of its training.
_OF_A_MODEL = (".json", ".safetensors", ".bin", ".model", ".txt", ".tiktoken", ".jinja", ".py")
_IN_WORDS = {
    "spec": "its options have changed",
    "model": "the model's files have changed",
    "texts": "the texts have changed",
    "code": "cwtool or a library that it computes with has changed",
}


@dataclass(frozen=True, slots=True)
class Identity:
    """Hashes of what a run depends on; empty for what is not known, as of a model that is not downloaded yet."""

    spec: str
    model: str
    texts: str
    code: str

    def key(self, attempt: int, study_id: str) -> str:
        """Names the submission: an attempt at a run of this identity. 64 hexadecimal digits.

        What is not known about the model is not known to be the same in another study, so the study takes part then.
        """
        parts = [asdict(self), attempt, "" if self.model else study_id]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def changes_since(self, earlier: Identity) -> list[str]:
        """In words, what is known to differ from an earlier identity of the same cell."""
        pairs = {name: (value, getattr(earlier, name)) for name, value in asdict(self).items()}
        return [_IN_WORDS[name] for name, (now, then) in pairs.items() if now and then and now != then]


def identity_from_plain(plain: JsonMap) -> Identity:
    """The reverse of `asdict`. Raises ValueError."""
    try:
        return Identity(*(str(plain[name]) for name in ("spec", "model", "texts", "code")))
    except (KeyError, TypeError) as error:
        raise ValueError(f"no identity of a run: {error}") from error


def identity_of(spec: RunSpec, elsewhere: bool = False) -> Identity:
    """The identity of a run as things are now. `elsewhere`: the model and the code are another machine's, not known here."""
    return Identity(
        spec=spec.sha256(),
        model="" if elsewhere else _model(spec.model, spec.revision),
        texts=_texts(spec),
        code="" if elsewhere else _code(),
    )


def commit_identity(commit: str) -> str:
    """The identity of a model of the Hub."""
    return f"commit {commit}"


def _model(name: str, revision: str | None) -> str:
    """Empty where the model is not here, or cannot be read: who loads it says why."""
    try:
        source = resolve(name)
        if source.kind is SourceKind.HUB:
            return _commit(source.location, revision or "main")
        path = Path(source.location)
        paths = gguf_shards(path) if source.kind is SourceKind.GGUF else _files_of(path)
        return _hash_of_files(paths)
    except (CwaError, OSError):
        return ""


def _files_of(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if path.suffix in _OF_A_MODEL and path.is_file()]


def _commit(repo: str, revision: str) -> str:
    """The commit that a revision is in the cache. A commit is one itself, downloaded or not."""
    if re.fullmatch(r"[0-9a-f]{40}", revision):
        return commit_identity(revision)
    found = HubAccess.from_environment().commit_of(repo, revision)
    return commit_identity(found) if found else ""


def _texts(spec: RunSpec) -> str:
    """Of a dataset of the Hub its name, which is in the spec; with tasks of one's own also what is in their folder."""
    if spec.tasks and spec.task_path is not None:
        try:
            of_tasks = _hash_of_files(_below(spec.task_path))
        except OSError:
            of_tasks = ""
        return f"{_texts(spec.model_copy(update={'tasks': ()}))} {of_tasks}"
    try:
        if spec.data_file is not None:
            return _hash_of_files([spec.data_file])
        if spec.dataset is None:
            return hashlib.sha256((files("cwa_engine.data") / "passages.txt").read_bytes()).hexdigest()
        folder = Path(parse_dataset(spec.dataset).path)
        return _hash_of_files(_below(folder)) if folder.is_absolute() and folder.is_dir() else ""
    except (CwaError, OSError):
        return ""


def _below(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def _hash_of_files(paths: Iterable[Path]) -> str:
    """Of their names and contents. A file is read again where its size or time has changed."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.name} {known_hash(path)}\n".encode())
    return digest.hexdigest()


@functools.cache
def _code() -> str:
    versions = [f"{name} {version}" for name, version in library_versions().items()]
    return hashlib.sha256("\n".join([__version__, code_sha256(), *versions]).encode()).hexdigest()
