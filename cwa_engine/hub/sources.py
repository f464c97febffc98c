"""From a model name to its source: an alias, an imported name, a local folder, a GGUF file or a Hub repository. torch-free."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from pathlib import Path

from cwa_engine.base.cancellation import check_cancelled
from cwa_engine.base.errors import InvalidInput, ModelBroken, ModelNotFound, did_you_mean
from cwa_engine.base.files import near_files, user_path
from cwa_engine.guide.catalog import catalog, catalog_model, known_names
from cwa_engine.hub.imported import imported_models, imported_path
from cwa_engine.hub.names import is_address, read_hub_name

HUB = "https://huggingface.co"
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".gguf")
_PIECE = 1 << 20  # bytes of a file that are hashed at once


class SourceKind(StrEnum):
    HUB = "hub"
    FOLDER = "folder"
    GGUF = "gguf"
    MEMORY = "memory"  # a model object that a program holds


@dataclass(frozen=True, slots=True)
class ModelSource:
    """`location` is a Hub id, or the path of a folder or GGUF file."""

    name: str  # as the user wrote it
    kind: SourceKind
    location: str


@dataclass(frozen=True, slots=True)
class HubAccess:
    """How to reach the Hub and its caches. None means the value of this process's environment. The token is never shown."""

    token: str | None = field(default=None, repr=False)  # "": send no token
    cache_dir: str | None = None
    offline: bool | None = None
    endpoint: str | None = None  # https://huggingface.co, or a mirror
    datasets_cache: str | None = None
    datasets_offline: bool | None = None

    @classmethod
    def from_environment(cls) -> HubAccess:
        """All fields from this process's variables of huggingface_hub and datasets, or their defaults.

        An empty variable counts as not set. Raises InvalidInput for a malformed token, without showing it.
        """
        env = os.environ
        caches = user_path(env.get("XDG_CACHE_HOME") or "~/.cache", "XDG_CACHE_HOME")
        home = user_path(env.get("HF_HOME") or str(caches / "huggingface"), "HF_HOME")
        cache = env.get("HF_HUB_CACHE") or env.get("HUGGINGFACE_HUB_CACHE") or str(home / "hub")
        offline = _is_on("HF_HUB_OFFLINE") or _is_on("TRANSFORMERS_OFFLINE")
        return cls(
            token=_token(home),
            cache_dir=str(user_path(cache, "HF_HUB_CACHE")),
            offline=offline,
            endpoint=(env.get("HF_ENDPOINT") or HUB).rstrip("/"),
            datasets_cache=str(user_path(env.get("HF_DATASETS_CACHE") or str(home / "datasets"), "HF_DATASETS_CACHE")),
            datasets_offline=_is_on("HF_DATASETS_OFFLINE") if env.get("HF_DATASETS_OFFLINE") else offline,
        )

    def shown(self) -> dict[str, str | bool | None]:
        """The fields as a map, without the token."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "token"}

    def filled_in(self) -> HubAccess:
        """The same, with every None replaced by the value of this process's environment."""
        open_fields = [field.name for field in fields(self) if getattr(self, field.name) is None]
        own = HubAccess.from_environment() if open_fields else self
        return replace(self, **{name: getattr(own, name) for name in open_fields})

    @property
    def sent_token(self) -> str | bool:
        """The token as the libraries take it. False stops them from looking for another one."""
        return self.token or False

    @property
    def cache(self) -> Path:
        """The folder of downloaded models."""
        return Path(self.filled_in().cache_dir or "")

    def commit_of(self, repo: str, revision: str) -> str:
        """The commit that a revision is in the cache; empty where it is not known."""
        found = self.cache / f"models--{repo.replace('/', '--')}" / "refs" / revision
        return found.read_text().strip() if found.is_file() else ""

    @property
    def place(self) -> str:
        """Identifies the cache and its Hub: the same Hub id may be another model elsewhere."""
        return f"{self.cache_dir} of {self.endpoint}"


def _is_on(name: str) -> bool:
    return os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")


def _token(home: Path) -> str:
    """The token of HF_TOKEN, or the one that `hf auth login` left in a file; empty for none."""
    given = os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN")
    source = "HF_TOKEN"
    if not given:
        file = Path(os.environ.get("HF_TOKEN_PATH") or home / "token").expanduser()
        source = str(file)
        try:
            given = file.read_text("utf-8", errors="replace")
        except OSError:
            return ""
    token = given.strip()
    if not re.fullmatch(r"[!-~]*", token):  # a library's error message would show it
        raise InvalidInput(f"{source} does not hold a token", hint="a token has no spaces, and ASCII characters only")
    return token


def resolve(name: str) -> ModelSource:
    """The source of a name without a revision. Raises ModelNotFound if it is no alias, path or Hub id."""
    entry = catalog_model(name)
    if entry and entry.gguf_package and (gguf := packaged_gguf(entry.gguf_package)):
        return ModelSource(name, SourceKind.GGUF, str(gguf))
    imported = imported_path(name)
    path = _existing(imported or name)
    if imported and path is None:
        raise ModelNotFound(
            f"{name} was imported from {imported}, and nothing is there now",
            hint=f"put it back, or `cwtool models forget {name}`",
        )
    if path and path.is_dir():
        if not os.access(path, os.R_OK | os.X_OK):
            raise _unreadable(path)
        return ModelSource(name, SourceKind.FOLDER, str(path.resolve()))
    if path and _is_gguf(path) and path.is_file():
        return ModelSource(name, SourceKind.GGUF, _absolute(path))
    if entry:
        return ModelSource(name, SourceKind.HUB, entry.name)
    if path:
        raise ModelNotFound(
            f"{name} is no folder and no GGUF file", hint="give the model's folder, a .gguf file or a Hub id"
        )
    found = read_hub_name(name, "model")
    if found is None:
        raise ModelNotFound(f"there is no folder {name}, and it is no Hub id", hint=near_files(Path(name).absolute()))
    if found.revision:
        raise InvalidInput(f"'{name}' names a revision", hint=f"give {found.repo}, and the revision beside it")
    return ModelSource(name, SourceKind.HUB, found.repo)


def absolute_name(name: str) -> str:
    """Make a name that is a path absolute, because a daemon has another working folder.

    Other names are unchanged, and so is one that was imported, though a folder here may be called like it. Raises
    InvalidInput for a name that looks like a path but cannot be one.
    """
    path = None if imported_path(name.strip()) else _existing(name)
    if path:
        return _absolute(path)
    name = name.strip()
    is_name = not name or is_address(name) or read_hub_name(name, "model")
    return name if is_name else str(user_path(name, "the model"))


def _is_gguf(path: Path) -> bool:
    return path.suffix.lower() == ".gguf"


def _absolute(path: Path) -> str:
    """Absolute, without resolving a link: in a Hub cache the link's target is not named .gguf, and its shards lie elsewhere."""
    return str(path.parent.resolve() / path.name if _is_gguf(path) else path.resolve())


def name_and_revision(name: str, revision: str | None = None) -> tuple[str, str | None]:
    """Split `gpt2@main`, `gpt2/` or the address of a Hub page into a name for `resolve` and a revision.

    Raises InvalidInput if two revisions are named, if a path has one, or if the name is empty.
    """
    name = name.strip()
    if not name:
        raise InvalidInput("no model is given", hint="an alias such as smollm2-135m, a Hub id, or a path")
    if revision is not None and not revision.strip():
        raise InvalidInput("the revision is empty", hint="give a branch, tag or commit, or leave --revision out")
    if name.startswith(("/", ".", "~")):
        if revision:
            raise InvalidInput(f"{name} is a path, and has no revision '{revision}'", hint="leave out --revision")
        return name, None
    found = read_hub_name(name, "model")
    if found is None:
        return name, revision
    if revision and found.revision and revision != found.revision:
        raise InvalidInput(
            f"'{name}' names the revision {found.revision}, and --revision is {revision}", hint="give one of them"
        )
    return found.repo, found.revision or revision


def _existing(name: str) -> Path | None:
    """The file or folder of that name; None if there is none or the name cannot be a path."""
    try:
        path = user_path(name, "the model")
        return path if path.exists() else None
    except PermissionError:
        if name.startswith(("/", ".", "~")):  # such a name can only be a path
            raise _unreadable(path) from None
        return None
    except (OSError, InvalidInput):  # too long or empty for a path, or ~user of an unknown user
        return None


def _unreadable(path: Path) -> ModelNotFound:
    return ModelNotFound(
        f"{path} cannot be read: permission denied",
        hint="`chmod` it, or the folders above it, so that your daemon's user may read it",
    )


def packaged_gguf(package: str) -> Path | None:
    """The GGUF file inside an installed package, found without importing the package; None if it is not installed."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return None
    return next(iter(sorted(Path(spec.origin).parent.glob("*.gguf"))), None)


def near_models(name: str, access: HubAccess) -> str:
    """`did you mean ...?` with names of the guide and of the cache; empty for a name that is one of these."""
    known = known_names() + [repo for repo, _ in cached_models(access)] + list(imported_models())
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


def models_on_disk(access: HubAccess) -> dict[str, int]:
    """Name -> bytes on disk, of models that need no download: GGUF files of packages, the Hub's cache, imported models."""
    packaged = {entry.name: packaged_gguf(entry.gguf_package) for entry in catalog() if entry.gguf_package}
    here = dict(cached_models(access)) | {name: gguf.stat().st_size for name, gguf in packaged.items() if gguf}
    return here | {name: model.size_bytes for name, model in imported_models().items()}


def gguf_shards(gguf: Path) -> list[Path]:
    """All shards of the model of this GGUF file, in order; the file alone if its name is not that of a shard.

    Raises ModelBroken if shards are missing; the message names them.
    """
    match = re.fullmatch(r"(?i)(.+)-(\d{5})-of-(\d{5})(\.gguf)", gguf.name)
    if not match:
        return [gguf]
    stem, _, count, suffix = match.groups()
    shards = [gguf.with_name(f"{stem}-{number:05}-of-{count}{suffix}") for number in range(1, int(count) + 1)]
    if missing := [shard.name for shard in shards if not shard.is_file()]:
        raise ModelBroken(
            f"{gguf.name} is one of {len(shards)} shards, and the folder lacks {len(missing)} of them: "
            f"{', '.join(missing[:5])}{' ...' * (len(missing) > 5)}",
            hint="download all shards into one folder; any of them may be named then",
        )
    return shards


def file_hashes(paths: Iterable[Path]) -> dict[str, str]:
    """Name -> sha256 of each of these files of a model.

    Files of a Hub cache are links to blobs named by their sha256, so they are not read again.
    """
    hashes = {}
    for path in paths:
        blob = path.resolve().name
        if path.is_symlink() and re.fullmatch(r"[0-9a-f]{64}", blob):
            hashes[path.name] = blob
        else:
            hashes[path.name] = file_sha256(path)
    return hashes


def known_hash(path: Path) -> str:
    """The sha256 of a file, as `file_hashes` has it; it is read again where its size or time has changed."""
    found = path.stat()
    return _hash_of(path, found.st_size, found.st_mtime_ns)


@functools.lru_cache(maxsize=10_000)
def _hash_of(path: Path, size: int, changed_ns: int) -> str:
    return file_hashes([path])[path.name]


def file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while piece := file.read(_PIECE):
            check_cancelled()
            digest.update(piece)
    return digest.hexdigest()


def fingerprint(source: ModelSource) -> str:
    """A text that changes when the local files of a model change, so that no stale warm copy is used.

    Empty for Hub models, because a snapshot never changes.
    """
    path = Path(source.location)
    match source.kind:
        case SourceKind.HUB:
            return ""
        case SourceKind.GGUF:
            paths = gguf_shards(path)
        case SourceKind.FOLDER:
            paths = sorted(path.iterdir())
    try:
        stats = [(entry.name, entry.stat().st_size, entry.stat().st_mtime_ns) for entry in paths if entry.is_file()]
    except OSError as error:
        raise ModelBroken(
            f"the files of {source.name} cannot be read: {error.strerror}", hint=f"look at {source.location}"
        ) from error
    return hashlib.sha256(repr(stats).encode()).hexdigest()
