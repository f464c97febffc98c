"""Hub names as people write them: `gpt2`, `gpt2@main`, `gpt2/`, and addresses of pages of models and datasets."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Literal

from cwa_engine.base.errors import InvalidInput

Kind = Literal["model", "dataset"]

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_ADDRESS = re.compile(r"[a-z]+://.*|((www\.)?huggingface\.co|hf\.co)/.*", re.IGNORECASE)
_HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co")
_OF_A_REVISION = ("tree", "blob", "resolve", "raw", "commit", "commits")  # parts of an address that a revision follows
_NO_REPOSITORIES = ("spaces", "collections", "papers", "docs", "blog", "learn", "api", "models", "organizations")


@dataclass(frozen=True, slots=True)
class HubName:
    """A repository, its revision if one is named, and the rest of the path of its page."""

    repo: str
    revision: str | None = None
    page: tuple[str, ...] = ()


def is_hub_id(name: str) -> bool:
    """Whether this has the form of a repository id: NAME or ORGANISATION/NAME."""
    return _HUB_ID.fullmatch(name) is not None


def is_address(name: str) -> bool:
    """Whether this is a web address, of the Hub or of another site."""
    return _ADDRESS.fullmatch(name) is not None


def read_hub_name(name: str, kind: Kind) -> HubName | None:
    """The repository of an id, of `ID@REVISION` or of a page's address; None if `name` has none of these forms.

    Raises InvalidInput for an address that is not the page of a repository of this kind.
    """
    if is_address(name):
        return _of_address(name, kind)
    repo, at, revision = name.rstrip("/").partition("@")
    if not is_hub_id(repo) or repo.startswith("."):
        return None
    if at and not revision:
        raise InvalidInput(f"'{name}' names no revision after the @", hint=f"write {repo}, or {repo}@main")
    return HubName(repo, revision or None)


def _of_address(address: str, kind: Kind) -> HubName:
    from urllib.parse import unquote, urlsplit  # imported here: few names are addresses

    scheme, _, rest = address.rpartition("://")
    url = urlsplit(f"//{rest}")
    parts = [unquote(part) for part in url.path.split("/") if part]
    if scheme.lower() == "hf":
        parts.insert(0, url.netloc)
    elif url.netloc.lower() not in _hosts():
        raise InvalidInput(f"{address} is an address of {url.netloc}, not of the Hub", hint=_hint(kind))
    found: Kind = "dataset" if parts[:1] == ["datasets"] else "model"
    if found == "dataset":
        parts.pop(0)
    if not parts or parts[0] in _NO_REPOSITORIES:
        raise InvalidInput(f"{address} is not the page of a {kind}", hint=_hint(kind))
    if found != kind:
        raise InvalidInput(f"{address} is a {found}, not a {kind}", hint=_hint(kind))
    of_two = len(parts) > 1 and parts[1] not in _OF_A_REVISION
    repo, _, revision = "/".join(parts[: 1 + of_two]).partition("@")
    page = parts[1 + of_two :]
    if page[:1] and page[0] in _OF_A_REVISION:
        revision, page = revision or "".join(page[1:2]), page[2:]
    if page and page[-1].endswith(".gguf"):
        hint = f"download it, `hf download {repo} {'/'.join(page)}`, and give its path"
        raise InvalidInput(f"{address} is one file of a repository", hint=hint)
    if not is_hub_id(repo):
        raise InvalidInput(f"{address} is not the page of a {kind}", hint=_hint(kind))
    return HubName(repo, revision or None, tuple(page))


def _hosts() -> tuple[str, ...]:
    """Host names of the Hub, and of the mirror in HF_ENDPOINT."""
    mirror = os.environ.get("HF_ENDPOINT")
    return (*_HOSTS, mirror.rpartition("://")[2].strip("/")) if mirror else _HOSTS


def _hint(kind: Kind) -> str:
    folder = "datasets/" if kind == "dataset" else ""
    return f"give a folder, an id like ORGANISATION/NAME, or https://huggingface.co/{folder}ORGANISATION/NAME"
