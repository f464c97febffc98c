"""A bundle uploaded to the Hub as a data set, which happens only where it is asked for. torch-free."""

from __future__ import annotations

import re

from cwa_engine.base.errors import InvalidInput, Refused, UploadFailed
from cwa_engine.bundles.contents import About
from cwa_engine.bundles.packing import PackedBundle
from cwa_engine.hub.access import hub_access
from cwa_engine.hub.sources import HubAccess

_REPO = re.compile(r"[\w\-][\w.\-]*/[\w\-][\w.\-]*", re.ASCII)
_CARD = """---
pretty_name: {id}
tags:
- cwtool
- interpretability
- weights
viewer: false
---

# {id}

A {kind} of cwtool {version} with {runs}, packed into one file: `{file}`.

    pip install cwtool
    cwtool verify {file} --fingerprint {sha256}

checks every hash of it and recomputes every figure from the losses of each sequence. In it are methods, limitations, and
which figure and which rows of which file every statement rests on.

SHA-256 of `{file}`: `{sha256}`
"""


def checked_repo(name: str) -> str:
    """USER/NAME of a data set. Raises InvalidInput for what is none."""
    name = name.removeprefix("datasets/")
    if not _REPO.fullmatch(name) or len(name) > 96 or ".." in name or "--" in name:
        raise InvalidInput(f"'{name}' names no data set of the Hub", hint="give it as USER/NAME")
    return name


def upload(packed: PackedBundle, repo: str, private: bool, access: HubAccess | None = None) -> str:
    """Upload a bundle with a card; give the address of the data set. A bundle of that name there is replaced.

    Raises Refused without a token, or with one that may not write there, and UploadFailed.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError

    access = (access or HubAccess.from_environment()).filled_in()
    if access.offline:
        raise UploadFailed(
            f"{packed.path} is not uploaded: HF_HUB_OFFLINE forbids the network", hint="unset HF_HUB_OFFLINE"
        )
    if not access.token:
        raise Refused(
            f"{packed.path} is not uploaded: there is no token of the Hub",
            hint="set HF_TOKEN to one that may write, or `hf auth login`",
        )
    hub = HfApi(endpoint=access.endpoint, token=access.token)
    file, said = packed.path.name, f"{packed.about.kind} {packed.about.id}"
    card = card_of(packed.about, file, packed.sha256).encode()
    try:
        with hub_access(access):
            hub.create_repo(repo, repo_type="dataset", private=private, exist_ok=True)
            added = [CommitOperationAdd(file, packed.path), CommitOperationAdd("README.md", card)]
            hub.create_commit(repo, added, commit_message=said, repo_type="dataset")
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        if status in (401, 403, 404):
            raise Refused(
                f"{packed.path} is not uploaded: the Hub answers {status}, so this token may not write to {repo}",
                hint="HF_TOKEN needs the right to write there; the user or organisation must be yours",
            ) from error
        raise UploadFailed(
            f"{packed.path} is not uploaded: the Hub answers {status}", hint="try again later"
        ) from error
    except Exception as error:  # its HTTP library has errors of its own, and another one with each major version
        raise UploadFailed(
            f"{packed.path} is not uploaded to {access.endpoint}: {type(error).__name__}: {error}",
            hint="check the network, and HF_ENDPOINT",
        ) from error
    return f"{access.endpoint}/datasets/{repo}"


def card_of(about: About, file: str, sha256: str) -> str:
    """The README of a data set."""
    runs = f"{len(about.runs)} run{'s' * (len(about.runs) != 1)}"
    return _CARD.format(id=about.id, kind=about.kind, version=about.cwtool, runs=runs, file=file, sha256=sha256)
