"""Where a model name leads: an alias, a local folder, a GGUF file or a Hub repository. torch-free."""

from __future__ import annotations

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
from cwa_engine.guide.catalog import CATALOG, catalog_model, known_names
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
    """How to reach the Hub and its caches; None means: as the process's own environment says. The token is never shown."""

    token: str | None = field(default=None, repr=False)  # "": none is sent
    cache_dir: str | None = None
    offline: bool | None = None
    endpoint: str | None = None  # https://huggingface.co, or a mirror
    datasets_cache: str | None = None
    datasets_offline: bool | None = None

    @classmethod
    def from_environment(cls) -> HubAccess:
        """What the variables of huggingface_hub and datasets say in this process, nothing left open; an empty one says nothing.

        Raises InvalidInput, without showing it, for a token that can be none.
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
        """All but the token."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "token"}

    def filled_in(self) -> HubAccess:
        """The same, with what it leaves open as this process's environment has it."""
        open_fields = [field.name for field in fields(self) if getattr(self, field.name) is None]
        own = HubAccess.from_environment() if open_fields else self
        return replace(self, **{name: getattr(own, name) for name in open_fields})

    @property
    def sent_token(self) -> str | bool:
        """The token as the libraries take it: with False they do not look for another one."""
        return self.token or False

    @property
    def cache(self) -> Path:
        """The folder of downloaded models."""
        return Path(self.filled_in().cache_dir or "")

    @property
    def place(self) -> str:
        """Which models a Hub id stands for: those of this cache, and of the Hub that fills it."""
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
    if not re.fullmatch(r"[!-~]*", token):  # libraries would put it into what they say of it
        raise InvalidInput(f"what {source} holds is no token", hint="a token has no spaces, and ASCII characters only")
    return token


def resolve(name: str) -> ModelSource:
    """What `name` stands for, without a revision. Raises ModelNotFound where it can be nothing at all."""
    entry = catalog_model(name)
    if entry and entry.gguf_package and (gguf := packaged_gguf(entry.gguf_package)):
        return ModelSource(name, SourceKind.GGUF, str(gguf))
    path = _existing(name)
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
    """What can only be a path, and what is one here, made absolute, for a daemon has another working folder.

    Every other name is as it is. Raises InvalidInput for what looks like a path and can be none.
    """
    path = _existing(name)
    if path:
        return _absolute(path)
    name = name.strip()
    is_name = not name or is_address(name) or read_hub_name(name, "model")
    return name if is_name else str(user_path(name, "the model"))


def _is_gguf(path: Path) -> bool:
    return path.suffix.lower() == ".gguf"


def _absolute(path: Path) -> str:
    """A link keeps its name: in a Hub cache it leads to a file that is not called .gguf, away from its shards."""
    return str(path.parent.resolve() / path.name if _is_gguf(path) else path.resolve())


def name_and_revision(name: str, revision: str | None = None) -> tuple[str, str | None]:
    """A model as `resolve` takes it, and the revision: of `gpt2@main`, `gpt2/`, or the address of its page on the Hub.

    Raises InvalidInput where two revisions are named, where a path has one, or where the name is empty.
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
    """The file or folder by that name; None where there is none, or where the name can be no path."""
    try:
        path = user_path(name, "the model")
        return path if path.exists() else None
    except PermissionError:
        if name.startswith(("/", ".", "~")):  # what can be nothing but a path
            raise _unreadable(path) from None
        return None
    except (OSError, InvalidInput):  # a name longer than a path may be; empty; ~user of a user that does not exist
        return None


def _unreadable(path: Path) -> ModelNotFound:
    return ModelNotFound(
        f"{path} cannot be read: permission denied",
        hint="`chmod` it, or the folders above it, so that your daemon's user may read it",
    )


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


def models_on_disk(access: HubAccess) -> dict[str, int]:
    """Hub id -> bytes on disk, of what `resolve` finds without a download: GGUF files of packages, and the Hub's cache."""
    packaged = {entry.name: packaged_gguf(entry.gguf_package) for entry in CATALOG if entry.gguf_package}
    return dict(cached_models(access)) | {name: gguf.stat().st_size for name, gguf in packaged.items() if gguf}


def gguf_shards(gguf: Path) -> list[Path]:
    """All shards of a model of which this GGUF file is one, in their order; the file alone where its name says no more.

    Raises ModelBroken, naming them, for shards that are missing.
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
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while piece := file.read(_PIECE):
            check_cancelled()
            digest.update(piece)
    return digest.hexdigest()


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
            paths = sorted(path.iterdir())
    try:
        stats = [(entry.name, entry.stat().st_size, entry.stat().st_mtime_ns) for entry in paths if entry.is_file()]
    except OSError as error:
        raise ModelBroken(
            f"the files of {source.name} cannot be read: {error.strerror}", hint=f"look at {source.location}"
        ) from error
    return hashlib.sha256(repr(stats).encode()).hexdigest()
