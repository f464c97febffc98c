"""What daemon and clients say to each other: msgpack maps, checked by pydantic after decoding, version first.

A request is `{id, op, ...}`; its reply `{id, ok: true, ...}` or `{id, ok: false, error: {code, message, hint,
retryable}}`. Events come unasked on a subscription, several a message: `{events: [{seq, time, kind, ...}, ...], run_id,
subscription}`; to a client that said hello with a minor version before 3, one a message, as `event`. A reply larger than
PART_BYTES comes in parts, `{id, part, parts, data}`, that joined are the reply; to clients from minor version 4 on.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NoReturn

import msgpack
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, ValidationInfo, field_validator

from cwa_engine import __version__
from cwa_engine.base import durations
from cwa_engine.base.errors import InvalidInput, did_you_mean
from cwa_engine.options import ABLATE, LOAD, QUEUE, RUN, Option, check_bounds
from cwa_engine.spec import RunSpec

PROTOCOL_MAJOR = 1
PROTOCOL_MINOR = 4
SEVERAL_EVENTS_SINCE = 3  # minor version
PARTS_SINCE = 4
MAX_MESSAGE_BYTES = 16 * 2**20
MAX_REQUEST_BYTES = 4 * 2**20  # a spec with fifty thousand weights fits
MAX_REQUEST_ELEMENTS = 100_000  # of all lists and maps in it
MAX_HELLO_BYTES = 4096
MAX_REPLY_BYTES = 64 * 2**20  # all parts together
MAX_REPLY_ELEMENTS = 10_000_000
PART_BYTES = 4 * 2**20
MOST_UNANSWERED = 64  # requests of a connection
MOST_SUBSCRIPTIONS = 256  # of a connection
PIECE_BYTES = 2**20  # of a file that is handed over or fetched; each is a message, and others come in between
MOST_NAME = 200  # characters of a file's name
MAX_DEPTH = 16
HIGHEST_PRIORITY = 100
_JOBS = (RUN, ABLATE)  # commands that queue a run
CREDIT = 128  # events a subscriber may have received without acknowledging them
ACKNOWLEDGE_EVERY = 32  # events; each acknowledgement is a message to answer for a daemon with many followers

_PEEK_BYTES = 128
STATES = ("queued", "paused", "running", "done", "failed", "cancelled", "interrupted")  # of a job
TERMINAL_STATES = frozenset({"done", "failed", "cancelled", "interrupted"})


class Message(BaseModel):
    model_config = ConfigDict(extra="forbid", defer_build=True)  # a client that starts needs few of these


class View(Message):
    """What clients are shown. A field that an older client does not know is left out where it has its default value."""

    model_config = ConfigDict(extra="ignore", defer_build=True)  # what a newer daemon shows beside

    def shown(self, minor: int) -> dict[str, Any]:
        """The view for a client of this minor version."""
        return self.model_dump(exclude_defaults=True, exclude=_SINCE_4 if minor < 4 else None)


_SINCE_4 = {"owner", "copy_error", "deaths", "troubles", "limits"}  # clients before refuse a view with them


class Request(Message):
    id: int = Field(ge=0, lt=2**63)


class Access(Message):
    """How the client's shell reaches the Hub, fields as in `HubAccess`; None: as the daemon's own environment says.

    The token stays in memory until the job has ended, and is never stored.
    """

    token: str | None = Field(default=None, repr=False)
    cache_dir: str | None = None
    offline: bool | None = None
    endpoint: str | None = None
    datasets_cache: str | None = None
    datasets_offline: bool | None = None


class JobOptions(Message):
    """How a job is to be run and where it may write. Nothing here changes what it finds."""

    priority: Annotated[
        int, Option("Higher goes first.", QUEUE, least=-HIGHEST_PRIORITY, most=HIGHEST_PRIORITY, commands=_JOBS)
    ] = 0
    after: Annotated[
        str | None, Option("Begin only when this run is done.", QUEUE, metavar="RUN_ID", commands=_JOBS)
    ] = Field(default=None, max_length=200)
    wait_for_memory: Annotated[
        bool, Option("Stay queued until the model fits, instead of failing.", QUEUE, commands=(*_JOBS, LOAD))
    ] = False
    no_cache: Annotated[
        bool, Option("Score anew even where an earlier run has these scores.", QUEUE, commands=_JOBS)
    ] = False
    keep_alive: Annotated[
        str | None,
        Option("How long the model stays warm after its last use: 30m, 0, forever.", QUEUE, commands=(*_JOBS, LOAD)),
    ] = Field(default=None, max_length=60)  # None: the daemon's setting
    force: Annotated[
        bool, Option("Replace a run's files in the --output folder, whatever else it holds.", commands=_JOBS)
    ] = False
    retries: Annotated[
        int,
        Option("Run again by itself so often, if the worker dies by itself.", QUEUE, least=0, most=100, commands=_JOBS),
    ] = 1  # see `deaths`
    pin: Annotated[bool, Option("Keep it until `cwtool unload`.", commands=(LOAD,))] = False

    @field_validator("*")
    @classmethod
    def _in_bounds(cls, value: Any, info: ValidationInfo) -> Any:
        check_bounds(cls, info.field_name, value)
        return value

    @field_validator("keep_alive")
    @classmethod
    def _span_of_time(cls, text: str | None) -> str | None:
        if text is not None:
            durations.seconds(text)
        return text


class Hello(Request):
    op: Literal["hello"] = "hello"
    major: int = PROTOCOL_MAJOR
    minor: int = PROTOCOL_MINOR
    version: str = __version__


class Submit(Request):
    """Queue a run, or only the loading of its model, or only the planning. The same client key never queues twice."""

    op: Literal["submit"] = "submit"
    kind: Literal["run", "load", "plan"] = "run"
    spec: RunSpec
    client_key: str = Field(min_length=8, max_length=64)
    command: str = Field(default="", max_length=20_000)
    access: Access = Access()
    options: JobOptions = JobOptions()


class KeepTexts(Request):
    """A piece of a file of texts that the daemon cannot open itself. It says how much is `here`, then the file's `path`.

    With empty `data` it is asked what is here already.
    """

    op: Literal["keep_texts"] = "keep_texts"
    name: str = Field(pattern=r"^[^/\x00]*[^/\x00.][^/\x00]*$", max_length=MOST_NAME)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size_bytes: int = Field(ge=1)
    offset: int = Field(ge=0)
    data: bytes = Field(max_length=PIECE_BYTES, repr=False)


class Retry(Request):
    op: Literal["retry"] = "retry"
    run_id: str
    client_key: str = Field(min_length=8, max_length=64)
    access: Access = Access()


class Cancel(Request):
    op: Literal["cancel"] = "cancel"
    run_id: str


class GetJob(Request):
    """One job, by run id, by an unambiguous beginning or ending of it, or "latest"."""

    op: Literal["job"] = "job"
    run_id: str


class ListJobs(Request):
    """The latest jobs, latest first, from `offset` on; `model` is a part of the model's name."""

    op: Literal["jobs"] = "jobs"
    limit: int = Field(default=50, ge=1, le=1000)
    offset: int = Field(default=0, ge=0, lt=2**31)
    state: str | None = None
    kind: str | None = None
    model: str | None = None

    @field_validator("state")
    @classmethod
    def _known_state(cls, state: str | None) -> str | None:
        if state is not None and state not in STATES:
            known = f"a job is {', '.join(STATES[:-1])} or {STATES[-1]}"
            raise InvalidInput(f"no job is ever '{state}'", hint=f"{did_you_mean(state, STATES)} {known}".strip())
        return state


class Pause(Request):
    """Keep a queued job, or without a run id all of them, from being begun."""

    op: Literal["pause"] = "pause"
    run_id: str | None = None


class Resume(Request):
    op: Literal["resume"] = "resume"
    run_id: str | None = None


class Prune(Request):
    op: Literal["prune"] = "prune"
    older_than_s: float = Field(ge=0)
    with_results: bool = False
    dry_run: bool = False


class Subscribe(Request):
    op: Literal["subscribe"] = "subscribe"
    run_id: str
    after_seq: int = Field(default=0, ge=0)


class Acknowledge(Request):
    """Events up to `seq` have arrived; there is no reply."""

    op: Literal["acknowledge"] = "acknowledge"
    subscription: int
    seq: int


class Unsubscribe(Request):
    op: Literal["unsubscribe"] = "unsubscribe"
    subscription: int


class GetStatus(Request):
    op: Literal["status"] = "status"


class Unload(Request):
    op: Literal["unload"] = "unload"
    model: str


class ListResults(Request):
    op: Literal["results"] = "results"
    limit: int = Field(default=50, ge=1, le=1000)


class GetResult(Request):
    op: Literal["result"] = "result"
    run_id: str


class GetTopK(Request):
    op: Literal["topk"] = "topk"
    run_id: str
    metric: str | None = None
    offset: int = Field(default=0, ge=0)
    limit: int = Field(default=100, ge=1, le=10_000)


class ListFiles(Request):
    """Name -> bytes of every file of a finished run, and whether they are what the run wrote."""

    op: Literal["files"] = "files"
    run_id: str


class GetFile(Request):
    """A piece of a file of a finished run, at most PIECE_BYTES from `offset` on."""

    op: Literal["file"] = "file"
    run_id: str
    name: str = Field(pattern=r"^[^/\x00.][^/\x00]*$", max_length=MOST_NAME)
    offset: int = Field(default=0, ge=0, lt=2**63)


class Shutdown(Request):
    """Stop; with `when_idle` what runs may end before."""

    op: Literal["shutdown"] = "shutdown"
    when_idle: bool = False


class GetTelemetry(Request):
    """What devices and processes used in the last minutes."""

    op: Literal["telemetry"] = "telemetry"


AnyRequest = Annotated[
    Hello
    | Submit
    | KeepTexts
    | Retry
    | Cancel
    | GetJob
    | ListJobs
    | Pause
    | Resume
    | Prune
    | Subscribe
    | Acknowledge
    | Unsubscribe
    | GetStatus
    | Unload
    | ListResults
    | GetResult
    | GetTopK
    | ListFiles
    | GetFile
    | GetTelemetry
    | Shutdown,
    Field(discriminator="op"),
]
_REQUEST: TypeAdapter[Any] = TypeAdapter(AnyRequest, config=ConfigDict(defer_build=True))


class StageProgress(Message):
    stage: str
    done: int
    total: int
    unit: str

    @classmethod
    def of(cls, event: Mapping[str, Any]) -> StageProgress:
        """How far a stage is, by an event of kind "progress"."""
        return cls(**{name: event[name] for name in cls.model_fields})


class JobView(View):
    """A job as clients see it. Times are seconds since the epoch."""

    run_id: str
    kind: str
    state: str
    model: str
    spec: dict[str, Any]
    device: str
    created: float
    started: float | None = None
    finished: float | None = None
    error: dict[str, Any] | None = None
    retry_of: str | None = None
    priority: int = 0
    after: str | None = None  # run id of the job that must be done before
    progress: StageProgress | None = None
    folder: str | None = None  # where the files are, once the run is done
    last_seq: int = 0
    copy_error: dict[str, Any] | None = None  # why the files of a run that is done are not in its output folder
    deaths: list[dict[str, Any]] = Field(default_factory=list)  # of workers under this job: reason, cause, stage, time
    owner: str = ""  # name of the key that submitted it; empty for the user of the daemon's machine

    @property
    def ended(self) -> bool:
        return self.state in TERMINAL_STATES

    @property
    def copying(self) -> bool:
        """Whether the files are being copied to the output folder, or will be once there is room."""
        return bool(self.copy_error and self.copy_error["retryable"])


def is_last(event: Mapping[str, Any]) -> bool:
    """Whether nothing follows an event of a job: it has ended, and its files are copied where that was asked for."""
    if event["kind"] == "state":
        return event["state"] in TERMINAL_STATES and not event.get("output")
    return bool(event["kind"] == "copied")


class Pruned(Message):
    """What was removed, or would be: jobs without a result, finished runs (or only their events), and how many events."""

    jobs: list[str]
    runs: list[str]
    events: int


class WarmModel(Message):
    """A model held in memory by a worker."""

    name: str
    revision: str | None = None
    dtype: str
    device: str
    parameters: int
    size_bytes: int
    loaded: float
    last_used: float
    jobs_served: int
    expires: float | None = None  # None: never by itself
    pinned: bool = False
    in_use: bool = False


class WorkerView(Message):
    device: str
    pid: int | None
    state: str
    run_id: str | None = None
    memory_bytes: int | None = None


class DeviceMemory(Message):
    """A device now. `others_bytes` is what processes that are not the daemon's use; None where a figure is not to be had."""

    device: str
    total_bytes: int
    used_bytes: int
    others_bytes: int | None = None
    utilisation: float | None = None  # 0 to 1
    temperature_c: float | None = None


class Sample(Message):
    """Telemetry at one moment."""

    time: float
    devices: list[DeviceMemory]
    processes_bytes: int  # resident memory of the daemon and its workers


class StatusView(View):
    """The daemon now. Jobs are None where the job database cannot be read; `troubles` are sentences."""

    version: str
    pid: int
    uptime_s: float
    home: str
    queued: int | None
    running: int | None
    paused: int | None = 0
    disk_full: bool = False
    troubles: list[str] = Field(default_factory=list)
    limits: dict[str, float | None] = Field(default_factory=dict)  # of a stage in seconds, of a load in bytes
    versions: dict[str, str] = Field(default_factory=dict)  # of the libraries that the workers use
    models: list[WarmModel]
    workers: list[WorkerView]
    devices: list[DeviceMemory]
    memory_bytes: int


def encode(message: dict[str, Any], most_bytes: int = MAX_MESSAGE_BYTES, unicode_errors: str = "strict") -> bytes:
    """A message as msgpack. Raises InvalidInput where it is too large to be accepted, or holds what cannot be sent."""
    try:
        frame: bytes = msgpack.packb(message, unicode_errors=unicode_errors)
    except (ValueError, TypeError, OverflowError) as error:  # of a surrogate, an object, a number of more than 64 bits
        raise InvalidInput(f"a message cannot be sent: {error}") from error
    _check_size(len(frame), most_bytes)
    return frame


def parts(frame: bytes, request_id: Any) -> list[bytes]:
    """A reply as it is sent to a client that joins parts: whole, or in parts that are messages of their own."""
    if len(frame) <= PART_BYTES:
        return [frame]
    pieces = [frame[offset : offset + PART_BYTES] for offset in range(0, len(frame), PART_BYTES)]
    count = len(pieces)
    return [encode({"id": request_id, "part": n, "parts": count, "data": piece}) for n, piece in enumerate(pieces)]


def decode(
    frame: bytes, most_bytes: int = MAX_MESSAGE_BYTES, most_elements: int = MAX_REQUEST_ELEMENTS
) -> dict[str, Any]:
    """The map in a frame. Raises InvalidInput for anything but a sane one: size, depth, types and numbers are bounded.

    What is cheap to write may cost a lot to read: a byte is an empty list. So elements are counted while they are read.
    """
    _check_size(len(frame), most_bytes)
    counted = _Counted(most_elements)
    try:
        message = msgpack.unpackb(
            frame,
            strict_map_key=True,
            ext_hook=_refuse_extension,
            timestamp=0,
            list_hook=counted.as_list,
            object_pairs_hook=counted.as_map,
            max_array_len=min(len(frame), most_elements),
            max_map_len=min(len(frame), most_elements),
        )
    except (ValueError, msgpack.exceptions.UnpackException, RecursionError) as error:
        raise InvalidInput(f"not a msgpack message: {error}") from error
    if not isinstance(message, dict):
        raise InvalidInput(f"a message is a map, not {type(message).__name__}")
    _check(message, MAX_DEPTH)
    return message


def peek(frame: bytes) -> tuple[str | None, int | None]:
    """(op, id) of a message that begins with them, as those of clients do, without a look at the rest; None for the others."""
    unpacker = msgpack.Unpacker()
    unpacker.feed(frame[:_PEEK_BYTES])
    found: dict[Any, Any] = {}
    with contextlib.suppress(ValueError, TypeError, msgpack.exceptions.UnpackException):
        for _ in range(min(2, unpacker.read_map_header())):
            key = unpacker.unpack()
            found[key] = unpacker.unpack()
    op, number = found.get("op"), found.get("id")
    return op if isinstance(op, str) else None, number if type(number) is int else None


class _Counted:
    """Builds the lists and maps of a message, as long as there are not too many elements in them."""

    def __init__(self, most: int) -> None:
        self._left = most

    def as_list(self, items: list[Any]) -> list[Any]:
        self._count(len(items) + 1)
        return items

    def as_map(self, pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
        self._count(len(pairs) + 1)
        return dict(pairs)

    def _count(self, elements: int) -> None:
        self._left -= elements
        if self._left < 0:
            raise ValueError("it has too many elements")


def _check_size(size_bytes: int, most_bytes: int) -> None:
    if size_bytes > most_bytes:
        raise InvalidInput(f"a message of {size_bytes:,} bytes exceeds {most_bytes:,}")


def parse_request(message: dict[str, Any]) -> Any:
    """The request a decoded map stands for. Raises InvalidInput, naming the field, where it stands for none."""
    try:
        return _REQUEST.validate_python(message)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        hint = "a daemon of another version may be running: `cwtool daemon restart`"
        raise InvalidInput(f"bad request: {where}: {first['msg']}", hint=hint) from error


def _refuse_extension(code: int, data: bytes) -> NoReturn:
    raise ValueError(f"extension type {code} is not used here")


def _check(value: object, depth: int) -> None:
    if depth < 0:
        raise InvalidInput(f"a message is nested deeper than {MAX_DEPTH}")
    if isinstance(value, dict):
        for key, entry in value.items():
            if not isinstance(key, str):
                raise InvalidInput("keys of a message are strings")
            _check(entry, depth - 1)
    elif isinstance(value, list):
        for entry in value:
            _check(entry, depth - 1)
    elif isinstance(value, float) and not math.isfinite(value):
        raise InvalidInput("numbers of a message are finite")
    elif not isinstance(value, (str, bytes, int, float, type(None))):
        raise InvalidInput(f"a message holds no {type(value).__name__}")
