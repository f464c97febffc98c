"""From a model name to a causal language model in memory, with every failure named."""

from __future__ import annotations

import dataclasses
import shutil
import socket
import ssl
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from cwa_engine.catalog import catalog_model
from cwa_engine.errors import CwaError, InvalidInput, ModelBroken, ModelGated, ModelNotFound, OutOfMemory
from cwa_engine.models.anatomy import Anatomy, config_number, dissect, position_table_length
from cwa_engine.models.download import Read, snapshot, snapshot_without_weights
from cwa_engine.models.offload import Offload
from cwa_engine.models.sources import (
    HubAccess,
    ModelSource,
    SourceKind,
    file_hashes,
    file_sha256,
    gguf_cache_folder,
    near_models,
    resolve,
)
from cwa_engine.models.stored import StoredTensor, stored_tensors
from cwa_engine.models.tokenizer import load_tokenizer

_NO_CONNECTION = (ConnectionError, TimeoutError, socket.gaierror, ssl.SSLError)


@dataclass(frozen=True)
class LoadedModel:
    """A model in eval mode on its device, and what a manifest must say about where it came from."""

    model: PreTrainedModel = field(repr=False)
    tokenizer: PreTrainedTokenizerBase = field(repr=False)
    anatomy: Anatomy = field(repr=False)
    source: ModelSource
    revision: str | None  # commit of the Hub repository, None for local files
    files: dict[str, str]  # file name -> sha256
    device: torch.device
    dtype: str  # "float32"
    notes: tuple[str, ...] = ()  # what a reader of results must know of how it was loaded
    offload: Offload | None = field(default=None, repr=False)  # where blocks live in CPU memory
    memo: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)  # what was found out about the model

    @property
    def default_batch_size(self) -> int:
        """Sequences at once where neither a user nor a plan says how many."""
        # One at a time is fastest on a CPU: 8 sequences of SmolLM2-135M took 4.2 s singly, 7.2 s padded to one batch.
        return 1 if self.device.type == "cpu" else 8

    def with_parameters(self, names: Iterable[str]) -> LoadedModel:
        """The same model with only these parameters in view, for ranking and controls."""
        return dataclasses.replace(self, anatomy=self.anatomy.subset(names))

    @property
    def size_bytes(self) -> int:
        """Memory of the weights."""
        return sum(p.numel() * p.element_size() for p in self.model.parameters())

    @property
    def max_tokens(self) -> int | None:
        """The longest sequence the model takes, None where nothing names a limit."""
        names = "max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "max_target_positions"
        limits = [config_number(self.model, *names), position_table_length(self.model)]
        return min((limit for limit in limits if limit), default=None)


def load_model(
    name: str,
    revision: str | None = None,
    dtype: str = "auto",
    device: str = "cpu",
    offload: bool = False,
    access: HubAccess | None = None,
    say: Callable[[str], None] = lambda text: None,
    make_room: Callable[[int], None] = lambda size_bytes: None,
    read: Read = lambda done_bytes, total_bytes: None,
    trust_remote_code: bool = False,
) -> LoadedModel:
    """Load a model by alias, Hub id, local folder or GGUF file.

    `say` hears what takes long; `make_room` is told what the weights will take, in bytes, just before they are read;
    `read` hears how many bytes of them have been downloaded, then how many have been read.

    With `offload` the decoder blocks stay in CPU memory and come to the device one at a time.

    `dtype` "auto" keeps the stored dtype on an accelerator and uses float32 on a CPU. Raises ModelNotFound, ModelGated,
    ModelBroken or OutOfMemory. Weights that the files lack are never made up: a model that misses some is broken.
    """
    access = access or HubAccess.from_environment()
    source = resolve(name)
    target = torch_device(device)
    with _named_failures(source, revision, access):
        folder = _local_folder(source, revision, access, say, read)
        torch_dtype = _torch_dtype(dtype, target)
        tensors = stored_tensors(folder)
        make_room(sum(tensor.loaded_bytes(torch_dtype) for tensor in tensors.values()))
        load: Any = AutoModelForCausalLM.from_pretrained  # typed as if it never gave the loading info
        local = {"local_files_only": True, "trust_remote_code": trust_remote_code}
        with _reading(tensors, read):
            # Tensors of another shape are let through here, for `_refuse_incomplete` to name them.
            model, info = load(
                folder, dtype=torch_dtype, output_loading_info=True, ignore_mismatched_sizes=True, **local
            )
        _refuse_incomplete(source, info)
        tokenizer, notes = load_tokenizer(source, folder, **local)
        model.eval()
        anatomy = dissect(model)
        offloaded = None
        if offload:
            offloaded = Offload(model, list(model.get_submodule(anatomy.blocks_path).children()), target)
        else:
            model.to(target)
        return LoadedModel(
            model=model,
            tokenizer=tokenizer,
            anatomy=anatomy,
            source=source,
            revision=folder.name if source.kind is SourceKind.HUB else None,
            files=_hashes(source, folder),
            device=target,
            dtype=str(next(model.parameters()).dtype).removeprefix("torch."),
            notes=notes,
            offload=offloaded,
        )


def blueprint(
    name: str, revision: str | None, access: HubAccess, trust_remote_code: bool = False
) -> tuple[ModelSource, PretrainedConfig, PreTrainedTokenizerBase]:
    """What a model can be sketched from; no weights are read or downloaded. Raises what `load_model` raises."""
    source = resolve(name)
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": trust_remote_code}
    with _named_failures(source, revision, access):
        gguf = Path(source.location)
        if source.kind is SourceKind.HUB:
            folder = snapshot_without_weights(source.location, revision, access)
        elif source.kind is SourceKind.GGUF and not gguf_cache_folder(gguf).is_dir():
            folder, options["gguf_file"] = gguf.parent, gguf.name
        else:
            folder = _local_folder(source, revision, access)
        config = AutoConfig.from_pretrained(folder, **options)
        tokenizer, _ = load_tokenizer(source, folder, **options)
        return source, config, tokenizer


@contextmanager
def _reading(tensors: Mapping[str, StoredTensor], read: Read) -> Iterator[None]:
    """Tell how many bytes have been read, each time transformers goes on to the next parameter."""
    total = sum(tensor.size_bytes for tensor in tensors.values())

    def hook(factory: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        if options.get("desc") != "Loading weights" or not args:
            return factory(*args, **options)
        return counted(args[0])

    def counted(parameters: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
        done = 0
        for name, mapping in parameters:
            read(done, total)
            yield name, mapping
            # A checkpoint of the bare decoder lacks the first part of the names.
            tensor = tensors.get(name) or tensors.get(name.partition(".")[2])
            done += tensor.size_bytes if tensor else 0
        read(total, total)

    before = transformers_logging.set_tqdm_hook(hook)
    try:
        yield
    finally:
        transformers_logging.set_tqdm_hook(before)


def torch_device(device: str) -> torch.device:
    """The device, or InvalidInput where this machine lacks it."""
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    chosen = torch.device(device)
    if not available[chosen.type] or (chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count()):
        raise InvalidInput(f"this machine has no device '{device}'", hint="use --device cpu")
    return chosen


def _torch_dtype(dtype: str, device: torch.device) -> torch.dtype | str:
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else "auto"
    chosen = getattr(torch, dtype)
    assert isinstance(chosen, torch.dtype)
    return chosen


def _local_folder(
    source: ModelSource,
    revision: str | None,
    access: HubAccess,
    say: Callable[[str], None] = lambda text: None,
    read: Read = lambda done_bytes, total_bytes: None,
) -> Path:
    """The folder with config, tokenizer and weights: the user's own, a Hub snapshot, or a converted GGUF."""
    match source.kind:
        case SourceKind.FOLDER:
            folder = Path(source.location)
            if not (folder / "config.json").is_file():
                raise ModelNotFound(
                    f"folder {folder} has no config.json", hint="give the folder that `save_pretrained` wrote"
                )
            return folder
        case SourceKind.GGUF:
            return _converted(Path(source.location), say)
        case SourceKind.HUB:
            return snapshot(source.location, revision, access, say, read)


def _converted(gguf: Path, say: Callable[[str], None]) -> Path:
    """A safetensors copy of a GGUF file, made once; loading that takes one second instead of twenty."""
    folder = gguf_cache_folder(gguf)
    if folder.is_dir():
        return folder
    say(f"converting {gguf.name} to safetensors, once")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        _convert(gguf, Path(scratch))
        shutil.copymode(folder.parent, scratch)
        try:
            Path(scratch).rename(folder)
        except OSError:
            if not folder.is_dir():  # unless another process was faster
                raise
        Path(scratch).mkdir(exist_ok=True)  # TemporaryDirectory wants to remove it
    return folder


def _convert(gguf: Path, target: Path) -> None:
    """Dequantize to float32. A model that came from GGUF refuses `save_pretrained`; a fresh one with its weights does not."""
    where, name = str(gguf.parent), gguf.name
    quantized = AutoModelForCausalLM.from_pretrained(where, gguf_file=name, dtype=torch.float32)
    fields = quantized.config.to_dict()
    fields.pop("quantization_config", None)
    plain = type(quantized)(type(quantized.config).from_dict(fields))
    plain.load_state_dict(quantized.state_dict())
    plain.tie_weights()
    plain.save_pretrained(target)
    AutoTokenizer.from_pretrained(where, gguf_file=name).save_pretrained(target)


def _hashes(source: ModelSource, folder: Path) -> dict[str, str]:
    """sha256 of the files the weights came from: of a converted GGUF the original."""
    if source.kind is SourceKind.GGUF:
        gguf = Path(source.location)
        return {gguf.name: file_sha256(gguf)}
    return file_hashes(folder)


def _refuse_incomplete(source: ModelSource, info: dict[str, object]) -> None:
    for key, what in (("missing_keys", "has no weights for"), ("mismatched_keys", "has weights of another shape for")):
        # transformers gives names, or (name, shape in the file, shape in the model)
        names = sorted(k if isinstance(k, str) else k[0] for k in info.get(key) or ())  # type: ignore[attr-defined]
        if names:
            shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            raise ModelBroken(
                f"{source.name} {what} {shown}",
                hint="the files do not hold this whole architecture; download or save the model again",
            )


@contextmanager
def _named_failures(source: ModelSource, revision: str | None, access: HubAccess) -> Iterator[None]:
    """Turn what libraries raise while a model is loaded into errors that name the model and the next step."""
    try:
        yield
    except CwaError:
        raise
    except Exception as error:
        raise _named(error, source, revision, access) from error


def _named(error: Exception, source: ModelSource, revision: str | None, access: HubAccess) -> CwaError:
    chain = list(_causes(error))
    name = source.name

    def caused_by(*kinds: type[BaseException]) -> bool:
        return any(isinstance(cause, kinds) for cause in chain)

    if is_out_of_memory(error):
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
    """HTTP status of the Hub's refusal, 0 where it did not answer at all."""
    return next((int(cause.response.status_code) for cause in chain if isinstance(cause, HfHubHTTPError)), 0)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on an accelerator or on the CPU, where torch raises a plain RuntimeError."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)


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
