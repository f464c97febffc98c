"""Where a model name leads: an alias, a local folder, a GGUF file or a Hub repository. torch-free."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from cwa_engine.catalog import catalog_model, known_names
from cwa_engine.errors import ModelBroken, ModelNotFound, did_you_mean

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".gguf")


class SourceKind(StrEnum):
    HUB = "hub"
    FOLDER = "folder"
    GGUF = "gguf"


@dataclass(frozen=True, slots=True)
class ModelSource:
    """`location` is a Hub id, or the path of a folder or GGUF file."""

    name: str  # as the user wrote it
    kind: SourceKind
    location: str


@dataclass(frozen=True, slots=True)
class HubAccess:
    """How to reach the Hub and its cache; None means: as the process's own environment says. The token is never shown."""

    token: str | None = field(default=None, repr=False)
    cache_dir: str | None = None
    offline: bool = False

    @classmethod
    def from_environment(cls) -> HubAccess:
        """What HF_TOKEN, HF_HUB_CACHE, HF_HOME and HF_HUB_OFFLINE say in this process."""
        env = os.environ
        home = env.get("HF_HOME")
        return cls(
            token=env.get("HF_TOKEN") or env.get("HUGGING_FACE_HUB_TOKEN") or None,
            cache_dir=env.get("HF_HUB_CACHE") or (str(Path(home).expanduser() / "hub") if home else None),
            offline=env.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"),
        )

    @property
    def cache(self) -> Path:
        """The cache folder, by default where huggingface_hub has it."""
        if self.cache_dir:
            return Path(self.cache_dir)
        return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "huggingface" / "hub"


def resolve(name: str) -> ModelSource:
    """What `name` stands for. Raises ModelNotFound where it can be nothing at all."""
    entry = catalog_model(name)
    if entry and entry.gguf_package and (gguf := packaged_gguf(entry.gguf_package)):
        return ModelSource(name, SourceKind.GGUF, str(gguf))
    path = _existing(name)
    if path and path.is_dir():
        return ModelSource(name, SourceKind.FOLDER, str(path.resolve()))
    if path and path.suffix == ".gguf":
        return ModelSource(name, SourceKind.GGUF, _absolute(path))
    if entry:
        return ModelSource(name, SourceKind.HUB, entry.name)
    if path:
        raise ModelNotFound(
            f"{name} is a file, but not a GGUF file", hint="give the model's folder, a .gguf file or a Hub id"
        )
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise ModelNotFound(
            f"there is no folder {name}, and it is no Hub id", hint="check the path and who may read it"
        )
    return ModelSource(name, SourceKind.HUB, name)


def absolute_name(name: str) -> str:
    """A local path made absolute, for a daemon has another working folder; every other name as it is."""
    path = _existing(name)
    return _absolute(path) if path else name


def _absolute(path: Path) -> str:
    """A link keeps its name: in a Hub cache it leads to a file that is not called .gguf, away from its shards."""
    return str(path.parent.resolve() / path.name if path.suffix == ".gguf" else path.resolve())


def _existing(name: str) -> Path | None:
    """The file or folder by that name; None where there is none, or where the name can be no path."""
    try:
        path = Path(name).expanduser()
        return path if path.exists() else None
    except (OSError, RuntimeError):  # a name longer than a path may be; ~user of a user that does not exist
        return None


def packaged_gguf(package: str) -> Path | None:
    """The GGUF file inside an installed package, found without running the package; None where it is not installed."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return None
    return next(iter(sorted(Path(spec.origin).parent.glob("*.gguf"))), None)


def near_models(name: str, access: HubAccess) -> str:
    """`did you mean ...?` over the guide and the models already in the cache; empty for a name that is one of these."""
    known = known_names() + [repo for repo, _ in cached_models(access)]
    return "" if name in known else did_you_mean(name, known)


def cached_models(access: HubAccess) -> list[tuple[str, int]]:
    """(Hub id, bytes on disk) of every model in the cache that has weights."""
    found = []
    for folder in sorted(access.cache.glob("models--*")):
        weights = {f.resolve() for f in folder.glob("snapshots/*/*") if f.suffix in WEIGHT_SUFFIXES and f.exists()}
        if weights:
            repo = folder.name.removeprefix("models--").replace("--", "/")
            found.append((repo, sum(f.stat().st_size for f in weights)))
    return found


def gguf_shards(gguf: Path) -> list[Path]:
    """All shards of a model of which this GGUF file is one, in their order; the file alone where its name says no more.

    Raises ModelBroken, naming them, for shards that are missing.
    """
    match = re.fullmatch(r"(.+)-(\d{5})-of-(\d{5})\.gguf", gguf.name)
    if not match:
        return [gguf]
    shards = [gguf.with_name(f"{match[1]}-{number:05}-of-{match[3]}.gguf") for number in range(1, int(match[3]) + 1)]
    if missing := [shard.name for shard in shards if not shard.is_file()]:
        raise ModelBroken(
            f"{gguf.name} is one of {len(shards)} shards, of which {', '.join(missing)} {'is' if len(missing) == 1 else 'are'}"
            f" not in {gguf.parent}",
            hint="download all shards into one folder; any of them may be named then",
        )
    return shards


def file_hashes(paths: Iterable[Path]) -> dict[str, str]:
    """Name -> sha256 of each of these files of a model.

    Files of a Hub cache are links to blobs that are named by their sha256, which saves reading them again.
    """
    hashes = {}
    for path in paths:
        blob = path.resolve().name
        if path.is_symlink() and re.fullmatch(r"[0-9a-f]{64}", blob):
            hashes[path.name] = blob
        else:
            hashes[path.name] = file_sha256(path)
    return hashes


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(source: ModelSource) -> str:
    """Changes when the local files of a model change, so that a warm copy is never older than its folder.

    Empty for Hub models: a snapshot never changes.
    """
    path = Path(source.location)
    match source.kind:
        case SourceKind.HUB:
            return ""
        case SourceKind.GGUF:
            paths = gguf_shards(path)
        case SourceKind.FOLDER:
            paths = sorted(entry for entry in path.iterdir() if entry.is_file())
    stats = [(entry.name, entry.stat().st_size, entry.stat().st_mtime_ns) for entry in paths]
    return hashlib.sha256(repr(stats).encode()).hexdigest()
