"""Hub settings for one job. The libraries read their environment once, at import; a daemon serves jobs of many shells.

with hub_access(access):
    ...  # huggingface_hub, transformers and datasets use `access`
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import ModuleType
from typing import Any

from cwa_engine.hub.sources import HubAccess

_current: ContextVar[HubAccess | None] = ContextVar("hub access", default=None)


def current_access() -> HubAccess:
    """The access of the enclosing `hub_access` block, or that of the environment."""
    return _current.get() or HubAccess.from_environment()


@contextmanager
def hub_access(access: HubAccess) -> Iterator[None]:
    """Use `access` for the Hub until the end of the block. Fields that are None come from the environment.

    The settings belong to the whole process, so two such blocks must not run in two threads at once.
    """
    from huggingface_hub import constants  # imported here: code that only names models does not need it

    access = access.filled_in()
    before = _current.set(access)
    values = {
        "HF_HUB_OFFLINE": access.offline,
        "HF_HUB_CACHE": access.cache_dir,
        "ENDPOINT": access.endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": f"{access.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}",
    }
    try:
        with _changed(constants, values):
            yield
    finally:
        _current.reset(before)


@contextmanager
def datasets_access(package: ModuleType, access: HubAccess) -> Iterator[None]:
    """The same for the package `datasets`. The caller passes it, because its import takes a second."""
    downloads = Path(access.datasets_cache or "") / "downloads"
    values = {
        "HF_ENDPOINT": access.endpoint,
        "HUB_DATASETS_URL": f"{access.endpoint}/datasets/{{repo_id}}/resolve/{{revision}}/{{path}}",
        "HF_HUB_OFFLINE": access.datasets_offline,
        "HF_DATASETS_OFFLINE": access.datasets_offline,
        "HF_DATASETS_CACHE": Path(access.datasets_cache or ""),
        "DOWNLOADED_DATASETS_PATH": downloads,
        "EXTRACTED_DATASETS_PATH": downloads / "extracted",
    }
    with hub_access(access), _changed(package.config, values):
        yield


@contextmanager
def _changed(module: ModuleType, values: Mapping[str, Any]) -> Iterator[None]:
    """Replace values of a module until the end of the block. Names that the module lacks are left out."""
    before = {name: getattr(module, name) for name in values if hasattr(module, name)}
    try:
        for name in before:
            setattr(module, name, values[name])
        yield
    finally:
        for name, value in before.items():
            setattr(module, name, value)
