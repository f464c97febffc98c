"""Translation of the libraries' errors while a model is downloaded and loaded into our errors with a next step."""

from __future__ import annotations

import errno
import os
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RevisionNotFoundError,
)
from safetensors import SafetensorError

from cwa_engine.base.errors import CwaError, ModelBroken, ModelGated, ModelNotFound, OutOfMemory
from cwa_engine.guide.catalog import catalog_model
from cwa_engine.hub.sources import HubAccess, ModelSource, SourceKind, near_models

_NO_MEMORY = ("can't allocate memory", os.strerror(errno.ENOMEM), "can't start new thread", "std::bad_alloc")
# What CUDA and its libraries say of a full device where torch has not asked for the memory itself.
_NO_DEVICE_MEMORY = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
_NO_CONNECTION = (ConnectionError, TimeoutError, socket.gaierror, ssl.SSLError)


@contextmanager
def named_failures(source: ModelSource, revision: str | None, access: HubAccess) -> Iterator[None]:
    """Translate the errors of libraries while a model is loaded into errors that name the model and the next step."""
    try:
        yield
    except CwaError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        raise _named(error, source, revision, access) from error


def is_panic(error: BaseException) -> bool:
    """Whether this is the panic of a library in Rust. It derives from BaseException, not from Exception."""
    return type(error).__name__ == "PanicException"


def _named(error: BaseException, source: ModelSource, revision: str | None, access: HubAccess) -> CwaError:
    chain = list(_causes(error))
    name = source.name

    def caused_by(*kinds: type[BaseException]) -> bool:
        return any(isinstance(cause, kinds) for cause in chain)

    if any(is_out_of_memory(cause) for cause in chain):
        return OutOfMemory(
            f"{name} does not fit into memory", hint="unload other models (`cwtool ps`), or use --dtype bfloat16"
        )
    entry = catalog_model(source.location)
    if caused_by(GatedRepoError):
        return _gated(name, source.location, "has not been granted to this token" if access.token else "needs a token")
    if caused_by(RevisionNotFoundError):
        return ModelNotFound(
            f"{name} has no revision '{revision}'", hint=f"see https://huggingface.co/{source.location}"
        )
    if source.kind is SourceKind.HUB and caused_by(HFValidationError):
        return ModelNotFound(f"there is no folder {name}, and it is no Hub id", hint="check the path")
    if caused_by(LocalEntryNotFoundError, HfHubHTTPError, *_NO_CONNECTION):
        if access.offline or caused_by(OfflineModeIsEnabled):
            where = "in the cache, and HF_HUB_OFFLINE is set"
        elif caused_by(*_NO_CONNECTION):
            where = "in the cache, and the Hub cannot be reached"
        elif (answer := _hub_answer(chain)) >= 429:
            where = f"in the cache, and the Hub answered {answer}: try again later"
        else:
            where = "in the cache or on the Hub"
        if entry and entry.gated:
            return _gated(name, entry.name, f"is not {where}")
        near = near_models(name, access)
        hint = f"{near} `cwtool models` lists what the guide knows; a path must lead to a folder or .gguf file".strip()
        what = f"revision '{revision}' of {name}" if revision else f"model '{name}'"
        return ModelNotFound(f"{what} is not {where}", hint=hint)
    if source.kind is SourceKind.HUB and access.offline and caused_by(OSError, EntryNotFoundError):
        return ModelBroken(
            f"the cached copy of {name} is not complete: {_first_line(error)}", hint="load it once online"
        )
    if "trust_remote_code" in str(error):
        return ModelBroken(
            f"{name} comes with its own code, which is not run",
            hint="if you trust it, the daemon's owner may set trust_remote_code = true in config.toml and restart it",
        )
    broken = f"{name} cannot be loaded: {_first_line(error)}"
    if caused_by(SafetensorError):
        broken = f"a weights file of {name} is broken or truncated: {_first_line(error)}"
    return ModelBroken(broken, hint=f"check the files in {source.location}, or download the model again")


def _hub_answer(chain: list[BaseException]) -> int:
    """HTTP status of the Hub's refusal; 0 if it did not answer."""
    return next((int(cause.response.status_code) for cause in chain if isinstance(cause, HfHubHTTPError)), 0)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out. On a CPU torch raises a plain RuntimeError for this, and reading a file an OSError."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return getattr(error, "errno", None) == errno.ENOMEM or any(
        phrase in str(error) for phrase in (*_NO_MEMORY, *_NO_DEVICE_MEMORY)
    )


def _gated(name: str, repo: str, why: str) -> ModelGated:
    return ModelGated(
        f"{name} is gated and {why}",
        hint=f"accept the licence at https://huggingface.co/{repo}, then set HF_TOKEN to a token of that account",
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0]
