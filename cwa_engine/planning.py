"""Planning a run by memory: what scoring needs at each dtype, and which way of scoring fits the device.

No weights are loaded. The model is made from its config with tensors that have no memory, its two longest batches are
scored, and the bytes of the tensors that live at the same time are counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import psutil
import torch
from huggingface_hub.errors import RevisionNotFoundError
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from cwa_engine.base.devices import devices_in, is_cpu
from cwa_engine.base.errors import InvalidInput, ModelGated, ModelNotFound
from cwa_engine.base.events import ignore
from cwa_engine.base.sizes import memory_size
from cwa_engine.data.tokens import TokenSequence
from cwa_engine.evaluation.resume import SHARE as CACHED_SHARE
from cwa_engine.evaluation.resume import WEIGHTS_SHARE
from cwa_engine.guide.catalog import catalog_model
from cwa_engine.hub.access import hub_access
from cwa_engine.hub.sources import HubAccess, ModelSource, SourceKind, name_and_revision
from cwa_engine.machine.memory import available_memory
from cwa_engine.methods.metrics import JOINABLE_NEEDS, Needs, needs_of
from cwa_engine.models.chain import NotAChain, chain_of
from cwa_engine.models.fake_model import FakeModel, fake_model, goes_token_by_token, peak_bytes
from cwa_engine.models.guide_config import byte_tokenizer, guide_config
from cwa_engine.models.loading import LoadedModel, load_without_weights
from cwa_engine.models.memory import free_bytes
from cwa_engine.models.shards import Shards, split_by
from cwa_engine.plan_ways import Way, gives_up, options_of, recommended, ways_that_fit
from cwa_engine.rows import Plan, PlanRow
from cwa_engine.sensitivity.gradients import resident
from cwa_engine.sensitivity.hessian import hutchinson_diagonal
from cwa_engine.sensitivity.memory import rough_bytes, statistics_bytes
from cwa_engine.sensitivity.sweep import sweep
from cwa_engine.spec import RunSpec
from cwa_engine.text_use import use_texts

SHARE = 0.8  # a plan may use this share of free memory
ROUGH_SHARE = 0.5  # a rough estimate below this share of free memory is trusted without counting
MOST_AT_ONCE = 64  # sequences in a batch
ENOUGH_AT_ONCE = 8  # to keep a GPU busy: where a rough estimate has room for so many, none is counted
LEAST_TO_HALVE = 4  # scoring texts: two for each half
LEAST_TOKENS = 32  # of texts that are cut so that they fit
OVERHEAD = 1.15  # factor for what allocators take beside the tensors; measured, see benchmarks/RESULTS.md
KERNELS_BYTES = 80_000_000  # what kernels keep for themselves; measured too
IMPORTED_BYTES = int(psutil.Process().memory_info().rss)  # of this process with its libraries and without a model
SOURCES = ("resident", "sweep")

MODELS_KEPT = 4  # models without weights, whose counts serve the next plan: a form plans anew with every key

# (dtype, bytes of the weights in it) -> bytes free for weights and work; None if the device is not known.
FreeBytes = Callable[[str, int], int | None]


def plan(
    spec: RunSpec,
    access: HubAccess,
    device: str,
    trust_remote_code: bool = False,
    room: FreeBytes | None = None,
    cpu_bytes: int | None = None,
    each: Sequence[int] = (),
    with_options: bool = True,
) -> Plan:
    """The memory that `spec` needs at each dtype and by each source of gradients, and which of these fits the device.

    `room` gives the device's free memory, of several devices their sum, of which each has a share as `each` says: as what
    is free on them, or alike. `cpu_bytes` is the CPU memory that is free for blocks that wait there. Without `room` the
    machine is asked. Options with less text take as long as the plan itself: `with_options` says whether they are sought.
    Raises what loading the model or reading texts raises.
    """
    if room is None:
        each = [free_bytes(torch.device(name)) for name in devices_in(device)]
        measured = sum(each)
        room = lambda dtype, weights: measured  # noqa: E731
    with hub_access(access):
        free = available_memory().free_bytes if cpu_bytes is None else cpu_bytes
        return _plan(spec, access, device, room, free, each, trust_remote_code, with_options)


def _plan(
    spec: RunSpec,
    access: HubAccess,
    device: str,
    room: FreeBytes,
    cpu_bytes: int,
    each: Sequence[int],
    trust_remote_code: bool,
    with_options: bool,
) -> Plan:
    source, config, tokenizer, note = _described(spec, access, trust_remote_code)
    stored = str(getattr(config, "dtype", None) or torch.float32).removeprefix("torch.")
    full = _without_weights(source, config, tokenizer, torch.float32)
    _, scoring, evaluation = use_texts(full, spec, ignore)
    rows: list[PlanRow] = []
    free, most = room("", 0), 0
    cramped: list[tuple[FakeModel, _Task]] = []  # what does not fit on the device with all texts
    needs = needs_of(spec.scored_metrics)
    all_at_once = _takes_all_at_once(spec, needs)
    asked = spec.dtype if spec.dtype != "auto" else "float32" if is_cpu(device) else stored
    usual = "float32" if asked == "float32" else "bfloat16"  # float16 takes as much
    for whole in (full, _without_weights(source, config, tokenizer, torch.bfloat16)):
        model = _over_devices(whole, device, each)
        found = room(model.dtype, model.size_bytes)
        task = _Task(scoring, evaluation, needs, device, found or 0, cpu_bytes, all_at_once)
        own = task.rows(model)
        rows += own if found is not None else [replace(row, fits=None) for row in own]
        most = max(most, found or 0)
        if found is not None and not all_at_once and not any(row.fits for row in own if row.gradients != "offload"):
            cramped.append((model, task))
    ways = ways_that_fit(spec, rows, usual)
    with_less: list[Way] = []
    if with_options and gives_up(ways, usual):
        for model, task in cramped:
            other = {} if model.dtype == usual else {"dtype": model.dtype}
            with_less += _ways_with_less(spec, full, model, task, other)
    if free is None:
        command, why = None, f"there is no {device} here, and the free memory of another machine's is not known"
    else:
        command, why = recommended(ways, rows, most)
    return Plan(
        model=spec.model,
        parameters=full.anatomy.numel,
        device=device,
        free_bytes=free,
        reclaimable_bytes=max(0, most - (free or 0)),
        sequences=len(scoring),
        longest=max(len(sequence.ids) for sequence in scoring),
        metrics=spec.scored_metrics,
        rows=tuple(rows),
        command=command,
        why=why,
        note=note,
        options=options_of(ways, with_less) if gives_up(ways, usual) else (),
    )


def _ways_with_less(
    spec: RunSpec, full: LoadedModel, model: LoadedModel, task: _Task, dtype: Mapping[str, str]
) -> Iterator[Way]:
    """The sweep with fewer texts, and with shorter ones: of each kind the most that fits, where anything does.

    Both are halved until they fit. What halving can bring at most is seen first, since counting takes seconds.
    """
    room = int(SHARE * task.free) - model.size_bytes
    row = task.row(model, "sweep")
    hidden = int(OVERHEAD * _hidden_bytes(model, task.scoring))
    texts, tokens = len(task.scoring) + len(task.evaluation), max(len(sequence.ids) for sequence in task.scoring)
    fewer = ({"eval_limit": texts >> times} for times in range(1, 6) if texts >> times >= 2 * LEAST_TO_HALVE
             and row.working_bytes - hidden * (1 - 0.5**times) <= room)  # fmt: skip
    shorter = ({"seq_len": tokens >> times} for times in range(1, 5) if tokens >> times >= LEAST_TOKENS
               and row.working_bytes * 0.25**times <= room)  # fmt: skip
    for candidates in (fewer, shorter) if room > 0 else ():
        for fields in candidates:
            asked = spec.model_copy(update={**fields, **dtype, "gradients": "sweep"})
            _, scoring, evaluation = use_texts(full, asked, ignore)
            tried = replace(task, scoring=scoring, evaluation=evaluation).least(model)
            if tried.fits:
                ((name, number),) = fields.items()
                less = f"{number} texts" if name == "eval_limit" else f"texts of {number} tokens"
                yield asked, tried, f"the gradients of one block fit with {less}, in {model.dtype}"
                break


_models: dict[tuple[str, torch.dtype], FakeModel] = {}


def _without_weights(
    source: ModelSource, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype
) -> FakeModel:
    """The model of a config, that of an earlier plan with what was counted on it where it is the same."""
    key = f"{type(config).__qualname__} {config.to_json_string(use_diff=False)}", dtype
    if key not in _models:
        made = fake_model(source, config, tokenizer, dtype)
        while len(_models) >= MODELS_KEPT:
            del _models[next(iter(_models))]
        _models[key] = made
    return replace(_models[key], source=source, tokenizer=tokenizer)


def _over_devices(model: FakeModel, device: str, each: Sequence[int]) -> FakeModel:
    """The model over the devices of a name, whose room is as `each` says. Raises InvalidInput if it cannot be spread."""
    names = devices_in(device)
    if len(names) == 1:
        return model
    devices = [torch.device(name) for name in names]
    shards = split_by(model.source.name, model.model, model.anatomy, devices, each or [1] * len(devices))
    return fake_model(model.source, model.model.config, model.tokenizer, model.model.dtype, shards)


def _described(
    spec: RunSpec, access: HubAccess, trust_remote_code: bool
) -> tuple[ModelSource, PretrainedConfig, PreTrainedTokenizerBase, str]:
    """The model's source, config and tokenizer: of its files, or as the guide has them where these cannot be had.

    The text is empty for a model with files; else it says what the plan rests on. Raises what loading the model raises.
    """
    try:
        return *load_without_weights(spec.model, spec.revision, access, trust_remote_code), ""
    except (ModelNotFound, ModelGated) as error:
        entry = catalog_model(name_and_revision(spec.model)[0])
        if entry is None or isinstance(error.__cause__, RevisionNotFoundError):
            raise
        rests_on = (
            "planned from the config in the guide, with every byte of a text as a token: an upper bound, as real tokens are "
            "fewer; the stored dtype is taken to be float32"
        )
        why = f"{spec.model} is not on disk" if access.offline else error.message
        source = ModelSource(spec.model, SourceKind.HUB, entry.name)
        return source, guide_config(entry), byte_tokenizer(), f"{why}: {rests_on}"


@dataclass(frozen=True)
class _Task:
    """The scoring that is planned, and its device. `free` is in bytes, `cpu_bytes` those of CPU memory.

    Where it needs all gradients `all_at_once` there is neither a sweep nor offload.
    """

    scoring: Sequence[TokenSequence]
    evaluation: Sequence[TokenSequence]
    needs: Needs
    device: str
    free: int
    cpu_bytes: int
    all_at_once: bool

    def rows(self, model: LoadedModel) -> list[PlanRow]:
        """A row for every way of scoring a model in this dtype. On a CPU and on several devices there is no offload."""
        if self.all_at_once:
            return [self.row(model, "resident")]
        found = [self.row(model, source) for source in SOURCES]
        return found if is_cpu(self.device) or model.shards else [*found, self.offloaded(model)]

    def offloaded(self, model: LoadedModel) -> PlanRow:
        """The row of offload: all but the blocks on the device, one block, and the next one on its way."""
        blocks = _weights_by_block(model)
        weights = (blocks.pop(None, 0) + sum(sorted(blocks.values())[-2:])) * model.model.dtype.itemsize
        working, simulated = working_bytes(model, self.scoring, self.needs, "sweep", 1)
        working += self._other_half(model, "sweep")
        hidden = _hidden_bytes(model, self.scoring)
        working = max(0, working - int(OVERHEAD * hidden))
        in_cpu_memory = model.size_bytes - weights + hidden
        fits = weights + working <= SHARE * self.free and in_cpu_memory <= SHARE * self.cpu_bytes
        return PlanRow(
            model.dtype, "offload", weights, working, weights + working, 1, fits, simulated, cpu_bytes=in_cpu_memory
        )

    def row(self, model: LoadedModel, source: str) -> PlanRow:
        """The row of a source of gradients, with the largest batch that fits."""
        room, apart = int(SHARE * self.free) - model.size_bytes, self._other_half(model, source)
        size, working, simulated = batch_that_fits(model, self.scoring, self.needs, source, self.device, room - apart)
        working = max(working + apart, self._kept(model))
        total = self._total(model, working)
        return PlanRow(model.dtype, source, model.size_bytes, working, total, size, working <= room, simulated)

    def least(self, model: LoadedModel) -> PlanRow:
        """The row of the sweep with one sequence at a time."""
        working, simulated = working_bytes(model, self.scoring, self.needs, "sweep", 1)
        working = max(working + self._other_half(model, "sweep"), self._kept(model))
        total = self._total(model, working)
        fits = model.size_bytes + working <= SHARE * self.free
        return PlanRow(model.dtype, "sweep", model.size_bytes, working, total, 1, fits, simulated)

    def _total(self, model: LoadedModel, working: int) -> int:
        return model.size_bytes + working + (IMPORTED_BYTES + KERNELS_BYTES if is_cpu(self.device) else 0)

    def _other_half(self, model: LoadedModel, source: str) -> int:
        return other_half_bytes(model, self.needs, source) if can_be_halved(self.needs, self.scoring) else 0

    def _kept(self, model: LoadedModel) -> int:
        """Bytes of hidden states that are cached while damage is measured, beside the weights; see `resume`."""
        allowed = min(CACHED_SHARE * max(0, self.free - model.size_bytes), WEIGHTS_SHARE * model.size_bytes)
        return min(int(allowed), _hidden_bytes(model, self.evaluation))


def _takes_all_at_once(spec: RunSpec, needs: Needs) -> bool:
    """Whether a run needs the gradients of all weights at once, so that one which asks for a sweep is refused."""
    return bool(spec.fidelity) or Needs.HESSIAN in needs


def other_half_bytes(model: LoadedModel, needs: Needs, source: str) -> int:
    """Bytes of the statistics of the other half of the texts: of all weights, or of the largest block."""
    everything, shards = statistics_bytes(model, needs), _shards_now(model)
    if source == "resident":
        return shards.share_of_fullest(everything) if shards else everything
    block = everything * max(_weights_by_block(model).values()) // model.anatomy.numel
    return shards.share_anywhere(block) if shards else block


def _shards_now(model: LoadedModel) -> Shards | None:
    """Where the blocks of a model lie that is over several devices, with the room that these have now."""
    return model.shards.seen_now(free_bytes) if model.shards and not isinstance(model, FakeModel) else model.shards


def _weights_by_block(model: LoadedModel) -> dict[int | None, int]:
    """Weights of each decoder block; under None those outside of the blocks."""
    blocks: dict[int | None, int] = {}
    for parameter in model.anatomy.parameters.values():
        blocks[parameter.layer] = blocks.get(parameter.layer, 0) + parameter.numel
    return blocks


@dataclass(frozen=True)
class ScoringPlan:
    """The source of gradients and the batch size of a run, with the reason for a note."""

    gradients: str
    batch_size: int
    why: str
    level: str = "info"
    halves: bool = False  # whether the statistics of two halves of the texts are kept apart


def choose(loaded: LoadedModel, spec: RunSpec, sequences: Sequence[TokenSequence]) -> ScoringPlan:
    """How to score: as the spec asks, else as the free memory allows."""
    needs = needs_of(spec.scored_metrics)
    halves = can_be_halved(needs, sequences)
    needed = _needed_at_once(loaded, spec, needs, sequences) if needs.backward else 0
    apart = other_half_bytes(loaded, needs, "resident") if halves else 0  # of the other half
    source, why, level = _source(loaded, spec, needs, needed + apart, sequences)
    halves = halves and (source == "sweep" or needed + apart <= SHARE * _free_of(loaded))
    if spec.batch_size or not needs.backward or loaded.device.type == "cpu":
        return ScoringPlan(source, spec.batch_size or loaded.default_batch_size, why, level, halves)
    room = int(SHARE * _free_of(loaded)) - (other_half_bytes(loaded, needs, source) if halves else 0)
    size = _rough_batch(loaded, sequences, needs, source, int(room * ROUGH_SHARE / SHARE))
    if size < min(ENOUGH_AT_ONCE, len(sequences)):
        size, _, _ = batch_that_fits(loaded, sequences, needs, source, loaded.device.type, room)
    return ScoringPlan(source, size, why, level, halves)


def _rough_batch(loaded: LoadedModel, sequences: Sequence[TokenSequence], needs: Needs, source: str, room: int) -> int:
    """How many sequences fit `room` bytes by a rough estimate, which for most models is too few; 0 where not even one does.

    A model over several devices is not estimated so.
    """
    if loaded.shards:
        return 0
    alone = rough_bytes(loaded, needs, source, 0)
    if source == "sweep" and not loaded.offload:
        alone += _hidden_bytes(loaded, sequences)
    tokens = max(len(sequence.ids) for sequence in sequences)
    each = rough_bytes(loaded, needs, source, tokens) - rough_bytes(loaded, needs, source, 0)
    return max(0, min(MOST_AT_ONCE, len(sequences), (room - alone) // max(1, each)))


def _free_of(loaded: LoadedModel) -> int:
    """Bytes free on the devices of a model; `working_bytes` says how many of them a piece of work needs."""
    return sum(free_bytes(device) for device in loaded.devices)


def can_be_halved(needs: Needs, sequences: Sequence[TokenSequence]) -> bool:
    """Whether statistics of two halves of the texts can be joined, and each half has enough texts for a ranking."""
    return bool(needs) and not needs & ~JOINABLE_NEEDS and len(sequences) >= LEAST_TO_HALVE


def _needed_at_once(loaded: LoadedModel, spec: RunSpec, needs: Needs, sequences: Sequence[TokenSequence]) -> int:
    """Bytes that the gradients of all weights at once take: a rough estimate, or counted if that is not clearly enough."""
    size = spec.batch_size or 1
    needed = rough_bytes(loaded, needs, "resident", size * max(len(s.ids) for s in sequences))
    if shards := _shards_now(loaded):
        needed = shards.needed_as_weights(needed)
    if needed > ROUGH_SHARE * _free_of(loaded):
        needed, _ = working_bytes(loaded, sequences, needs, "resident", size)
    return needed


def _source(
    loaded: LoadedModel, spec: RunSpec, needs: Needs, needed: int, sequences: Sequence[TokenSequence]
) -> tuple[str, str, str]:
    """(source, reason, level of the note). `needed` is the bytes that all gradients take at once."""
    if not needs.backward or _takes_all_at_once(spec, needs):
        return "resident", "", "info"
    if spec.gradients == "resident":
        return "resident", "the gradients of all weights are kept at once, as asked", "info"
    if spec.offload == "cpu":
        return _swept(loaded, "blocks stay in CPU memory and come to the device one at a time, as asked", spec)
    if spec.gradients == "auto":
        free = _free_of(loaded)
        if needed <= SHARE * free:
            return (
                "resident",
                f"the gradients of all weights fit at once: {memory_size(needed)} of {memory_size(free)} free",
                "info",
            )
        why = (
            f"the gradients of one block after the other: all need {memory_size(needed)}, {memory_size(free)} are free"
        )
        least, _ = working_bytes(loaded, sequences, needs, "sweep", spec.batch_size or 1)
        if least > free:
            why += f"; even one block needs {memory_size(least)}: --dtype bfloat16 or a shorter --seq-len takes less"
            return _swept(loaded, why, spec, "warning")
    else:
        why = "the gradients of one block after the other, as asked"
    return _swept(loaded, why, spec)


def _swept(loaded: LoadedModel, why: str, spec: RunSpec, level: str = "info") -> tuple[str, str, str]:
    try:
        chain_of(loaded)
    except NotAChain as reason:
        if spec.offload == "cpu":
            raise InvalidInput(
                f"{spec.model} cannot be analysed block by block: {reason}", hint="leave out --offload"
            ) from reason
        return "resident", f"the gradients of all weights are kept at once: {reason}", "warning"
    return "sweep", why, level


def batch_that_fits(
    model: LoadedModel, sequences: Sequence[TokenSequence], needs: Needs, source: str, device: str, room: int
) -> tuple[int, int, bool]:
    """The largest batch that fits `room` bytes: (sequences, bytes beside the weights, whether the bytes were counted)."""
    one, simulated = working_bytes(model, sequences, needs, source, 1)
    if is_cpu(device):  # one sequence at a time is fastest there
        return 1, one, simulated
    some = min(8, len(sequences))
    eight, _ = working_bytes(model, sequences, needs, source, some)
    each = max(1, (eight - one) // max(1, some - 1))
    size = max(1, min(MOST_AT_ONCE, len(sequences), 1 + (room - one) // each))
    return size, one + (size - 1) * each, simulated


def working_bytes(
    model: LoadedModel, sequences: Sequence[TokenSequence], needs: Needs, source: str, size: int
) -> tuple[int, bool]:
    """Bytes beside the weights at the peak of scoring, and whether they were counted on the model without weights."""

    def count() -> tuple[int, bool]:
        if isinstance(model, FakeModel):
            return _counted(model, sequences, needs, source, size)
        fake = fake_model(model.source, model.model.config, model.tokenizer, model.model.dtype, _shards_now(model))
        return _counted(fake, sequences, needs, source, size)

    if model.shards and not isinstance(model, FakeModel):  # their room changes
        return count()
    # Counting takes ten seconds for the 30 blocks of SmolLM2: once for a model, not with every run of a warm one.
    lengths = tuple((len(sequence.ids), sequence.unscored) for sequence in sequences)
    return model.facts.once(("working bytes", needs, source, size, lengths, tuple(model.anatomy.parameters)), count)


def _counted(
    model: FakeModel, sequences: Sequence[TokenSequence], needs: Needs, source: str, size: int
) -> tuple[int, bool]:
    longest = [sequence for batch in model.batched(sequences, size)[:2] for sequence in batch]

    def score() -> None:
        if source == "resident":
            kept = resident(model, longest, needs, size)
            if Needs.HESSIAN in needs:
                hutchinson_diagonal(model, longest[:1], 2, 0)
            del kept
            return
        for part in sweep(model, longest, needs, size):
            del part

    try:
        counted = None if goes_token_by_token(model) else peak_bytes(model, score)
    except RuntimeError:  # the model branches on values, as with experts
        counted = None
    if counted is None:
        rough = rough_bytes(model, needs, source, size * len(longest[0].ids))
        if model.shards:
            needed = model.shards.needed_as_weights if source == "resident" else model.shards.needed_anywhere
            rough = needed(rough)
        return rough, False
    if source == "sweep":  # the sweep keeps the blocks' inputs of all batches; two batches were run
        more = _hidden_bytes(model, sequences) - _hidden_bytes(model, longest)
        counted += model.shards.share_of_fullest(more) if model.shards else more
    return int(OVERHEAD * counted), True


def _hidden_bytes(model: LoadedModel, sequences: Sequence[TokenSequence]) -> int:
    """Bytes of the inputs of all blocks."""
    embedding = model.model.get_input_embeddings().get_parameter("weight")
    tokens = sum(len(sequence.ids) for sequence in sequences)
    return tokens * embedding.shape[1] * embedding.element_size() * model.anatomy.blocks
