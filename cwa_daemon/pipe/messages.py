"""What control process and workers say to each other: commands one way, reports the other, each one msgpack map.

A command is told from others by its `op`, a report by its `type`. Fields that another version does not know are ignored, for
a worker may be adopted by a daemon of another version.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Generic, Literal, TypeVar

import msgpack

from cwa_engine.base.plain import JsonMap

log = logging.getLogger(__name__)

MOST_BYTES = 256 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the daemon's settings allow a job; None for what the worker is to choose by itself."""

    keep_alive: str
    budget_bytes: int | None = None
    reserve_bytes: int | None = None
    load_bytes: int | None = None
    cache_folder: str
    cache_bytes: int
    trust_remote_code: bool
    share_bytes: int | None = None  # of this machine's memory, where CPU lanes share it


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmModelReport:
    """A warm model, fields as in `protocol.WarmModel`."""

    name: str
    revision: str | None = None
    dtype: str
    device: str
    parameters: int
    size_bytes: int
    loaded: float
    last_used: float
    jobs_served: int
    expires: float | None = None
    pinned: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadAgain:
    """What brings a pinned model back: fields of a RunSpec, and how its files were reached."""

    spec: JsonMap
    access: JsonMap


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes of a device that are free, and that the worker holds there beside its libraries."""

    free: int
    held: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmCopy:
    """A warm model as a plan counts on it."""

    name: str
    dtype: str
    size_bytes: int
    pinned: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanMemory:
    """What a plan must know of its device: what is free when no run is under way, None where nobody knows, and what is warm.

    Of warm models the least recently used come first.
    """

    free_bytes: int | None
    warm: tuple[WarmCopy, ...] = ()
    each: tuple[int, ...] = ()  # of several devices: how what is free is spread over them; nothing where nobody knows


# commands


@dataclass(frozen=True, slots=True, kw_only=True)
class RunJob:
    """Do a job: run an analysis, load a model, plan, download a model, or look at weights."""

    op: Literal["job"] = "job"
    kind: str
    run_id: str
    spec: JsonMap
    command: str
    options: JsonMap  # of `protocol.JobOptions`
    access: JsonMap  # of `HubAccess`
    folder: str  # where a run's files go
    limits: Limits
    device: str
    memory: PlanMemory | None = None  # of a plan alone


@dataclass(frozen=True, slots=True, kw_only=True)
class UnloadModel:
    op: Literal["unload"] = "unload"
    model: str
    request: int  # comes back with the answer


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelJob:
    op: Literal["cancel"] = "cancel"
    run_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """Reports up to this number are written down, and need not be kept any more."""

    op: Literal["heard"] = "heard"
    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EndWorker:
    op: Literal["end"] = "end"


Command = RunJob | UnloadModel | CancelJob | Written | EndWorker


# reports


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """The first report to a daemon that did not start this worker: the job it is at, or has ended last."""

    type: Literal["hello"] = "hello"
    run_id: str | None
    stage: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EventReport:
    """An event of the job, as `events.to_dict` gives it."""

    type: Literal["event"] = "event"
    run_id: str
    event: JsonMap
    number: int = 0
    time: float | None = None  # when it happened, seconds since the epoch; None by a worker of an earlier version

    @property
    def is_progress(self) -> bool:
        return bool(self.event["kind"] == "progress")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """The end of the job, with its error where it has one; `ends` says that the worker ends with it."""

    type: Literal["finished"] = "finished"
    run_id: str
    error: JsonMap | None
    ends: bool
    number: int = 0
    time: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelsReport:
    """Which models are warm now."""

    type: Literal["models"] = "models"
    memory: Memory | None
    again: tuple[LoadAgain, ...] = ()  # those that are pinned
    models: tuple[WarmModelReport, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Unloaded:
    type: Literal["unloaded"] = "unloaded"
    request: int
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    """The worker lives: seconds of processor time that its work has taken, and the device's memory."""

    type: Literal["heartbeat"] = "heartbeat"
    processor_s: float
    memory: Memory | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """The job rightly waits, however long: for room on the disk."""

    type: Literal["waiting"] = "waiting"


Report = Hello | EventReport | Finished | ModelsReport | Unloaded | Heartbeat | Waiting
NumberedReport = EventReport | Finished  # kept by the worker until they are written down

M = TypeVar("M")


class Reader(Generic[M]):
    """Messages out of a stream of bytes; `kinds` is the union of them, told apart by the field `tag`."""

    def __init__(self, kinds: object, tag: str) -> None:
        # Here, as a worker gives its heartbeat before it reads anything, and pydantic takes a while to import.
        from pydantic import Field, TypeAdapter

        tagged: Any = Annotated[kinds, Field(discriminator=tag)]
        self._adapter: TypeAdapter[M] = TypeAdapter(tagged)
        self._unpacker = msgpack.Unpacker(max_buffer_size=MOST_BYTES)

    def feed(self, chunk: bytes) -> Iterator[M]:
        """The messages that are whole with these bytes. One that is none of those above is logged and left out."""
        from pydantic import ValidationError

        self._unpacker.feed(chunk)
        for fields in self._unpacker:
            try:
                yield self._adapter.validate_python(fields)
            except ValidationError as error:
                log.error("a message is not understood: %s", error.errors(include_input=False, include_url=False))


def command_reader() -> Reader[Command]:
    return Reader(Command, "op")


def report_reader() -> Reader[Report]:
    return Reader(Report, "type")


def encode(message: Command | Report) -> bytes:
    """One message as bytes."""
    packed: bytes = msgpack.packb(dataclasses.asdict(message))
    return packed
