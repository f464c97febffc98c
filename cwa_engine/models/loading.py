"""Loading a causal language model by name, with an error that names the reason for every failure.

docs/loading.md lists the checks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from cwa_engine.base.cancellation import check_cancelled
from cwa_engine.base.devices import devices_in, memory_of
from cwa_engine.base.errors import InvalidInput, ModelBroken, ModelNotFound
from cwa_engine.data.tokens import TokenSequence, batched
from cwa_engine.hub.access import current_access, hub_access
from cwa_engine.hub.sources import (
    HubAccess,
    ModelSource,
    SourceKind,
    file_hashes,
    fingerprint,
    gguf_shards,
    name_and_revision,
    resolve,
)
from cwa_engine.models import causality
from cwa_engine.models.anatomy import Anatomy, anatomy_of, longest_sequence
from cwa_engine.models.checkpoint import WEIGHT_DTYPES, Checkpoint, Read, StoredTensor, stored_tensors, weight_files
from cwa_engine.models.completeness import check_complete, check_finite, files_left_out, refuse_adapter
from cwa_engine.models.download import snapshot, snapshot_without_weights
from cwa_engine.models.empty import empty_model
from cwa_engine.models.end_tokens import stored_end_tokens
from cwa_engine.models.facts import Facts
from cwa_engine.models.failures import named_failures
from cwa_engine.models.forward import cancel_between_blocks
from cwa_engine.models.gguf import open_gguf
from cwa_engine.models.model_files import check_counts, check_files, read_json
from cwa_engine.models.offload import Offload
from cwa_engine.models.quantised import Settings, restore, scheme_of, take_settings
from cwa_engine.models.shards import Shards, planned_now, split_evenly, spread
from cwa_engine.models.tokenizer import load_tokenizer, refuse_empty
from cwa_engine.rows import ModelOnDisk

_SMALL = 10_000_000  # a config may describe this many weights more than the files hold
_MOST_COMPUTED_BYTES = 2**30  # of computed masks and tables of positions; those of GPT-J take 117 MB


@dataclass(frozen=True)
class LoadedModel:
    """A model in eval mode on its device, with what a manifest records of its origin."""

    model: PreTrainedModel = field(repr=False)
    tokenizer: PreTrainedTokenizerBase = field(repr=False)
    anatomy: Anatomy = field(repr=False)
    source: ModelSource
    revision: str | None  # commit of the Hub repository, None for local files
    files: dict[str, str]  # file name -> sha256
    device: torch.device  # of token ids, embedding and logits; where there are several devices, the first
    dtype: str  # "float32"
    notes: tuple[str, ...] = ()  # what a reader of results must know about the loading
    unbatched_above: int | None = None  # tokens; longer texts are computed alone; None: no limit
    offload: Offload | None = field(default=None, repr=False)  # set if the blocks stay in CPU memory
    shards: Shards | None = field(default=None, repr=False)  # set if the blocks lie on several devices
    facts: Facts = field(default_factory=Facts, repr=False, compare=False)

    @property
    def default_batch_size(self) -> int:
        """Sequences in a batch if neither the user nor a plan sets the number."""
        # One at a time is fastest on a CPU: 8 sequences of SmolLM2-135M took 4.2 s singly, 7.2 s padded to one batch.
        return 1 if self.device.type == "cpu" else 8

    def batched(self, sequences: Sequence[TokenSequence], size: int | None = None) -> list[list[TokenSequence]]:
        """Batches of at most `size` sequences. Each sequence has the same logits in its batch as alone."""
        return batched(sequences, size or self.default_batch_size, self.unbatched_above)

    def with_parameters(self, names: Iterable[str]) -> LoadedModel:
        """The same model with an anatomy of these parameters only, for ranking and controls."""
        return dataclasses.replace(self, anatomy=self.anatomy.subset(names))

    @property
    def devices(self) -> tuple[torch.device, ...]:
        """The devices that it lies on, `device` first."""
        return self.shards.devices if self.shards else (self.device,)

    @property
    def device_name(self) -> str:
        """The devices as an option names them: "cuda:0", "cuda:0+cuda:1"."""
        return self.shards.name if self.shards else str(self.device)

    def device_of(self, name: str) -> torch.device:
        """Where a parameter is used: its block's device."""
        return self.model.get_parameter(name).device if self.shards else self.device

    def free_as_weights(self, free: Callable[[torch.device], int]) -> int:
        """Bytes for work that is spread over the devices as the weights are, given how many are `free` on a device."""
        return self.shards.free_as_weights(free) if self.shards else free(self.device)

    @property
    def size_bytes(self) -> int:
        """Bytes of the weights."""
        return weights_bytes(self.model)

    @property
    def max_tokens(self) -> int | None:
        """The most tokens of a sequence; None if the model names no limit."""
        return longest_sequence(self.model)


def weights_bytes(model: PreTrainedModel) -> int:
    """Bytes of a model's weights, also of weights that are not in memory yet."""
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


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

    `device` "cuda:0+cuda:1" spreads the decoder blocks over several devices. `dtype` "auto" keeps the stored dtype on an
    accelerator and uses float32 on a CPU. With `offload` the decoder blocks stay in CPU memory and come to the device one at
    a time.

    Callbacks: `say(text)` before a step that takes long; `make_room(bytes of the weights)` just before they are read,
    of several devices what they need together if all are as full as the fullest;
    `read(bytes done, bytes in all)` while weights are downloaded, and again while they are read.

    Raises ModelNotFound, ModelGated, ModelBroken or OutOfMemory. Missing weights are never initialised: a model whose
    files lack some is broken.
    """
    access = access.filled_in() if access else current_access()
    source, revision = _source(name, revision)
    target = torch_device(device)
    devices = [torch_device(one) for one in devices_in(device)]
    if offload and len(devices) > 1:
        raise InvalidInput("blocks in CPU memory come to one device", hint=f"leave out --offload, or --device {target}")
    with hub_access(access), named_failures(source, revision, access):
        before = fingerprint(source)
        stored = _stored_model(source, revision, access, say, read, trust_remote_code)
        empty = empty_model(stored.config, _torch_dtype(dtype, target, stored.tensors), trust_remote_code)
        _refuse_more_than_stored(name, empty, stored.tensors)
        make_room(_bytes_for(name, empty, devices))
        if len(devices) > 1:
            planned_now(name, empty, anatomy_of(empty), devices)  # raises before the weights are read
        model, notes = _causal_model(name, empty, stored.tensors, stored.tokenizer, read)
        if stored.end_tokens and model.generation_config is not None:
            model.generation_config.eos_token_id = list(stored.end_tokens)
        unbatched_above, on_batches = batching(model, stored.tokenizer)
        anatomy = anatomy_of(model)
        shards = spread(name, model, anatomy, devices) if len(devices) > 1 else None
        offloaded = None if shards else _placed(model, anatomy, target, offload)
        files = file_hashes(stored.files)
        if fingerprint(source) != before:
            raise ModelBroken(
                f"the files of {name} changed while they were read", hint="try again when they are complete"
            )
        return LoadedModel(
            model=model,
            tokenizer=stored.tokenizer,
            anatomy=anatomy,
            source=source,
            revision=stored.revision,
            files=files,
            device=target,
            dtype=str(next(model.parameters()).dtype).removeprefix("torch."),
            notes=tuple(filter(None, (*stored.notes, *notes, on_batches, notes_on_norms(anatomy), _where(shards)))),
            unbatched_above=unbatched_above,
            offload=offloaded,
            shards=shards,
        )


def _source(name: str, revision: str | None) -> tuple[ModelSource, str | None]:
    """The source and the revision of a name. Raises InvalidInput for a revision of a local model."""
    name, revision = name_and_revision(name, revision)
    source = resolve(name)
    if revision and source.kind is not SourceKind.HUB:
        raise InvalidInput(
            f"{name} is read from {source.location}, which has no revision '{revision}'", hint="leave out --revision"
        )
    return source, revision


def _refuse_more_than_stored(name: str, empty: PreTrainedModel, tensors: Mapping[str, StoredTensor]) -> None:
    """Raises ModelBroken if the config describes a far larger model than the files hold, before memory is allocated.

    Smaller differences get a more detailed error after the tensors have been read.
    """
    stored = sum(tensor.numel for tensor in tensors.values())
    described = sum(parameter.numel() for parameter in empty.parameters())
    if described > 4 * stored + _SMALL:
        raise ModelBroken(
            f"the config of {name} describes a model of {described:,} weights, and its files hold {stored:,}",
            hint="download or save the model again",
        )
    computed = sum(buffer.numel() * buffer.element_size() for buffer in empty.buffers())
    if computed > 4 * stored + _MOST_COMPUTED_BYTES:
        raise ModelBroken(
            f"the config of {name} asks for tables of {computed / 1e9:,.1f} GB beside its {stored:,} weights",
            hint="download or save the model again",
        )


def _causal_model(
    name: str,
    empty: PreTrainedModel,
    tensors: Mapping[str, StoredTensor],
    tokenizer: PreTrainedTokenizerBase,
    read: Read,
) -> tuple[PreTrainedModel, list[str]]:
    """The checkpoint as a causal model, and notes on what was left out or switched. Raises ModelBroken."""
    model, notes = _whole_model(name, empty, tensors, read)
    if not causality.sees_later_tokens(model, tokenizer.all_special_ids):
        return model, notes
    if switched := causality.as_decoder(empty.config):
        del model  # its memory is needed
        model, notes = _whole_model(name, empty, tensors, read)
        if not causality.sees_later_tokens(model, tokenizer.all_special_ids):
            return model, [*notes, f"run as a decoder ({switched} = true): as its config has it, it sees later tokens"]
    raise ModelBroken(
        f"{name} ({type(empty).__name__}) sees later tokens, so its loss is not a perplexity",
        hint="cwtool analyses causal language models; docs/architectures.md lists those that work",
    )


def _whole_model(
    name: str, empty: PreTrainedModel, tensors: Mapping[str, StoredTensor], read: Read
) -> tuple[PreTrainedModel, list[str]]:
    """The model with every weight read from the checkpoint, and notes on what was left out."""
    checkpoint = Checkpoint(tensors, read)
    load: Any = type(empty).from_pretrained  # its type lacks the loading info
    # `ignore_mismatched_sizes` lets tensors of a wrong shape pass, because `check_complete` names them better.
    model, info = load(
        None,
        config=empty.config,
        state_dict=checkpoint.state_dict(),
        dtype=empty.dtype,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    notes = check_complete(name, model, info, checkpoint)
    check_finite(name, model)
    cancel_between_blocks(model)
    return model.eval(), notes


def _placed(model: Any, anatomy: Anatomy, device: torch.device, offload: bool) -> Offload | None:
    """Move the model to its device; with `offload` its blocks stay in CPU memory."""
    if offload:
        return Offload(model, list(model.get_submodule(anatomy.blocks_path).children()), device)
    for block in model.get_submodule(anatomy.blocks_path).children():
        check_cancelled()
        block.to(device)
    model.to(device)
    return None


def _bytes_for(name: str, empty: PreTrainedModel, devices: Sequence[torch.device]) -> int:
    """Bytes that must be free for the weights; on several devices together, where all are as full as the fullest."""
    if len(devices) == 1:
        return weights_bytes(empty)
    return len(devices) * max(split_evenly(name, empty, anatomy_of(empty), devices).weights)


def _where(shards: Shards | None) -> str:
    return shards.described if shards else ""


def batching(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int | None, str]:
    """(tokens above which a text is computed alone, or None; a note about it, or "")"""
    if causality.depends_on_batch(model, tokenizer.all_special_ids):
        return 0, "every text is computed alone: this model's logits depend on the longest text of a batch"
    limit = causality.unbatched_above_of(model.config)
    if limit is None or limit >= (longest_sequence(model) or limit):
        return None, ""
    return limit, f"texts of more than {limit:,} tokens are computed alone: they change the positions of a whole batch"


def notes_on_norms(anatomy: Anatomy) -> str:
    """A note for norms that multiply by an offset plus the stored weight, so that a stored zero is not a factor of zero."""
    offsets = set(anatomy.offsets.values())
    if not offsets:
        return ""
    offset = f"{offsets.pop():g}" if len(offsets) == 1 else "c"
    return f"norms here multiply by {offset} + w: their scores and the perturbations are of that factor, so zero makes it 0"


def _plain_config(folder: Path, trust_remote_code: bool) -> tuple[PretrainedConfig, Settings | None]:
    """The config without its quantisation, and the quantisation's settings if there are any."""
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code)
    return config, take_settings(config, folder)


def load_without_weights(
    name: str, revision: str | None, access: HubAccess, trust_remote_code: bool = False
) -> tuple[ModelSource, PretrainedConfig, PreTrainedTokenizerBase]:
    """Where a model comes from, its config and its tokenizer; no weights are read or downloaded.

    Raises what `load_model` raises.
    """
    source, revision = _source(name, revision)
    access = access.filled_in()
    with hub_access(access), named_failures(source, revision, access):
        if source.kind is SourceKind.GGUF:
            opened = _of_gguf(source)
            return source, opened.config, opened.tokenizer
        hub = source.kind is SourceKind.HUB
        folder = snapshot_without_weights(source.location, revision, access) if hub else _own_folder(source)
        check_files(folder)
        check_counts(read_json(folder / "config.json"), folder / "config.json")
        config, settings = _plain_config(folder, trust_remote_code)
        if settings:
            scheme_of(settings, name)  # raises if the model could not be loaded
        tokenizer, _ = load_tokenizer(source, folder, local_files_only=True, trust_remote_code=trust_remote_code)
        return source, config, tokenizer


def model_on_disk(
    name: str,
    revision: str | None,
    access: HubAccess,
    say: Callable[[str], None],
    read: Read,
    trust_remote_code: bool = False,
) -> ModelOnDisk:
    """See to it that a model's files are on disk and complete, and say what they hold. No weights are read into memory.

    Callbacks and what it raises are those of `load_model`.
    """
    source, revision = _source(name, revision)
    access = access.filled_in()
    with hub_access(access), named_failures(source, revision, access):
        stored = _stored_model(source, revision, access, say, read, trust_remote_code)
        empty = empty_model(stored.config, torch.bfloat16, trust_remote_code)
        _refuse_more_than_stored(name, empty, stored.tensors)
        parameters = sum(parameter.numel() for parameter in empty.parameters())
        held = sum(tensor.numel for tensor in stored.tensors.values())
        if held < parameters:
            raise ModelBroken(
                f"the files of {name} hold {held:,} weights, and its config describes {parameters:,}",
                hint="download or save the model again",
            )
        return ModelOnDisk(
            model=name,
            location=source.location,
            kind=source.kind.value,
            revision=stored.revision,
            model_type=stored.config.model_type,
            architecture=type(empty).__name__,
            parameters=parameters,
            dtype=str(_most_stored(stored.tensors)).removeprefix("torch."),
            size_bytes=sum(tensor.size_bytes for tensor in stored.tensors.values()),
            notes=tuple(filter(None, stored.notes)),
        )


def torch_device(device: str) -> torch.device:
    """The torch device of a name, of several the first; CPU lanes are all "cpu". Raises InvalidInput if one is not here."""
    here = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        here.append("mps")
    names = memory_of(device)
    for name in names:
        if ("cuda:0" if name == "cuda" else name) not in here:
            raise InvalidInput(f"this machine has no device '{name}'", hint=f"it has {', '.join(here)}")
    return torch.device(names[0])


def _torch_dtype(dtype: str, device: torch.device, stored: Mapping[str, StoredTensor]) -> torch.dtype:
    """The dtype of a name; "auto" is float32 on a CPU, elsewhere the dtype in which most weights are stored."""
    if dtype != "auto":
        chosen = getattr(torch, dtype)
        assert isinstance(chosen, torch.dtype)
        return chosen
    if device.type == "cpu":
        return torch.float32
    most = _most_stored(stored)
    return torch.float32 if most is torch.float64 else most


def _most_stored(stored: Mapping[str, StoredTensor]) -> torch.dtype:
    """The dtype in which most weights are stored."""
    sizes = dict.fromkeys(WEIGHT_DTYPES, 0)
    for tensor in stored.values():
        if tensor.dtype in sizes:
            sizes[tensor.dtype] += tensor.numel
    return max(sizes, key=sizes.__getitem__)


@dataclass(frozen=True)
class _StoredModel:
    """The parts of a model before it is built, and the files that it is read from."""

    config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase
    tensors: Mapping[str, StoredTensor]
    notes: tuple[str, ...]
    revision: str | None
    files: Sequence[Path]
    end_tokens: tuple[int, ...] | None = None  # of its generation config


def _stored_model(
    source: ModelSource,
    revision: str | None,
    access: HubAccess,
    say: Callable[[str], None],
    read: Read,
    trust_remote_code: bool,
) -> _StoredModel:
    if source.kind is SourceKind.GGUF:
        return _of_gguf(source)
    hub = source.kind is SourceKind.HUB
    folder = snapshot(source.location, revision, access, say, read) if hub else _own_folder(source)
    check_files(folder)
    files = stored_tensors(folder)
    check_counts(read_json(folder / "config.json"), folder / "config.json", len(files))
    config, settings = _plain_config(folder, trust_remote_code)
    stored = restore(files, settings, source.name)
    tokenizer, on_tokens = load_tokenizer(source, folder, local_files_only=True, trust_remote_code=trust_remote_code)
    ends, on_ends = stored_end_tokens(folder)
    return _StoredModel(
        config=config,
        tokenizer=tokenizer,
        tensors=stored.tensors,
        notes=(stored.note, files_left_out(folder), *on_tokens, on_ends),
        revision=folder.name if hub else None,
        files=(folder / "config.json", *weight_files(folder)),
        end_tokens=ends,
    )


def _of_gguf(source: ModelSource) -> _StoredModel:
    path = Path(source.location)
    opened = open_gguf(path)
    return _StoredModel(
        config=opened.config,
        tokenizer=refuse_empty(source, opened.tokenizer),
        tensors=opened.tensors,
        notes=opened.notes,
        revision=None,
        files=gguf_shards(path),
    )


def _own_folder(source: ModelSource) -> Path:
    """The path of a local model folder. Raises ModelBroken or ModelNotFound if it is not one."""
    folder = Path(source.location)
    refuse_adapter((entry.name for entry in folder.iterdir()), source.name)
    check_files(folder)
    if not (folder / "config.json").is_file():
        raise ModelNotFound(f"folder {folder} has no config.json", hint="give the folder that `save_pretrained` wrote")
    return folder
