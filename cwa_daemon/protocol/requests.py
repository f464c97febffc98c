"""What clients may ask: one message for each request, checked by pydantic after decoding."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, ValidationInfo, field_validator, model_validator

from cwa_daemon.protocol.job_query import JobKind, JobQuery, check_kinds, check_sort, check_states
from cwa_daemon.protocol.limits import HIGHEST_PRIORITY, MOST_NAME, PIECE_BYTES, PROTOCOL_MAJOR, PROTOCOL_MINOR
from cwa_daemon.protocol.marks import MOST_TAGS, check_note, check_tags
from cwa_daemon.protocol.message import Message
from cwa_engine import __version__
from cwa_engine.base import durations
from cwa_engine.base.errors import InvalidInput
from cwa_engine.base.plain import JsonMap
from cwa_engine.options import ABLATE, LOAD, QUEUE, RUN, Option, check_bounds, naming_field
from cwa_engine.prompt_spec import spec_of_kind
from cwa_engine.spec import RunSpec

_JOBS = (RUN, ABLATE)  # commands that queue a run


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
        str | None,
        Option("Begin only when this run is done.", QUEUE, metavar="RUN_ID", commands=_JOBS, if_empty="at once"),
    ] = Field(default=None, max_length=200)
    wait_for_memory: Annotated[
        bool, Option("Stay queued until the model fits, instead of failing.", QUEUE, commands=(*_JOBS, LOAD))
    ] = False
    no_cache: Annotated[
        bool, Option("Score anew even where an earlier run has these scores.", QUEUE, commands=_JOBS)
    ] = False
    keep_alive: Annotated[
        str | None,
        Option(
            "How long the model stays warm after its last use: 30m, 0, forever.",
            QUEUE,
            commands=(*_JOBS, LOAD),
            choices=("30m", "2h", "forever", "0"),
            if_empty="the daemon's setting",
        ),
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

    _name_the_field = field_validator("*", mode="wrap")(naming_field)  # the last validator encloses those above


class Hello(Request):
    """Who the client is and which version of the protocol it speaks; the first request of a connection."""

    op: Literal["hello"] = "hello"
    major: int = PROTOCOL_MAJOR
    minor: int = PROTOCOL_MINOR
    version: str = __version__


class Submit(Request):
    """Queue a run, or only the loading of its model, its download, the planning, a look at the weights it names, all that can
    be found out about one of them, or a prompt.

    The same client key never queues twice.
    """

    op: Literal["submit"] = "submit"
    kind: JobKind = "run"
    spec: RunSpec
    client_key: str = Field(min_length=8, max_length=64)
    command: str = Field(default="", max_length=20_000)
    access: Access = Access()
    options: JobOptions = JobOptions()

    @field_validator("spec", mode="before")
    @classmethod
    def _of_its_kind(cls, fields: Any, info: ValidationInfo) -> Any:
        """A prompt has options of its own, beside those of a run."""
        return spec_of_kind(info.data.get("kind", ""), fields) if isinstance(fields, dict) else fields


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
    """Queue an ended job again, with the same spec and options."""

    op: Literal["retry"] = "retry"
    run_id: str
    client_key: str = Field(min_length=8, max_length=64)
    access: Access = Access()


class Cancel(Request):
    """Cancel a job that waits or runs, or the copying of a run's files."""

    op: Literal["cancel"] = "cancel"
    run_id: str


class GetJob(Request):
    """One job, by run id, by an unambiguous beginning or ending of it, or "latest": the latest run."""

    op: Literal["job"] = "job"
    run_id: str


class ListJobs(Request):
    """Some jobs, and how many there are in all; fields as in `JobQuery`. `state` and `kind` are those of older clients."""

    op: Literal["jobs"] = "jobs"
    limit: int = Field(default=50, ge=1, le=1000)
    offset: int = Field(default=0, ge=0, lt=2**31)
    states: list[str] = Field(default_factory=list, max_length=20)
    kinds: list[str] = Field(default_factory=list, max_length=20)
    model: str | None = Field(default=None, max_length=1000)
    text: str | None = Field(default=None, max_length=200)
    since: float | None = None
    sort: str = "created"
    descending: bool = True
    tag: str | None = Field(default=None, max_length=200)
    metric: str | None = Field(default=None, max_length=200)
    ratio_above: float | None = None
    state: str | None = None
    kind: str | None = None

    @model_validator(mode="after")
    def _known(self) -> ListJobs:
        check_states(self.query.states)
        check_kinds(self.query.kinds)
        check_sort(self.sort)
        check_tags([] if self.tag is None else [self.tag])
        return self

    @property
    def query(self) -> JobQuery:
        return JobQuery(
            limit=self.limit,
            offset=self.offset,
            states=(*self.states, *([self.state] if self.state else [])),
            kinds=(*self.kinds, *([self.kind] if self.kind else [])),
            model=self.model,
            text=self.text,
            since=self.since,
            sort=self.sort,
            descending=self.descending,
            tag=self.tag,
            metric=self.metric,
            ratio_above=self.ratio_above,
        )


class Mark(Request):
    """Add and remove tags of a job, and write its note: None leaves it as it is, an empty one removes it."""

    op: Literal["mark"] = "mark"
    run_id: str
    add: list[str] = Field(default_factory=list, max_length=MOST_TAGS)
    remove: list[str] = Field(default_factory=list, max_length=MOST_TAGS)
    note: str | None = None

    @model_validator(mode="after")
    def _in_bounds(self) -> Mark:
        check_tags([*self.add, *self.remove])
        check_note(self.note or "")
        return self


class ListMarks(Request):
    """The tags and notes of all jobs that have any."""

    op: Literal["marks"] = "marks"


class Pause(Request):
    """Keep a queued job, or without a run id all of them, from being begun."""

    op: Literal["pause"] = "pause"
    run_id: str | None = None


class Resume(Request):
    """Let a paused job, or without a run id all of them, take its turn again."""

    op: Literal["resume"] = "resume"
    run_id: str | None = None


class Prune(Request):
    """Forget ended jobs, and with `with_results` remove finished runs."""

    op: Literal["prune"] = "prune"
    older_than_s: float = Field(ge=0)
    with_results: bool = False
    dry_run: bool = False


class Subscribe(Request):
    """Hear of a job's events later than `after_seq`, those that are stored first."""

    op: Literal["subscribe"] = "subscribe"
    run_id: str
    after_seq: int = Field(default=0, ge=0)


class Acknowledge(Request):
    """Events up to `seq` have arrived; there is no reply."""

    op: Literal["acknowledge"] = "acknowledge"
    subscription: int
    seq: int


class Unsubscribe(Request):
    """Hear no more of a job."""

    op: Literal["unsubscribe"] = "unsubscribe"
    subscription: int


class GetStatus(Request):
    """The daemon, its devices, warm models and counts of jobs."""

    op: Literal["status"] = "status"


class Unload(Request):
    """Free the memory of a warm model."""

    op: Literal["unload"] = "unload"
    model: str


class ListResults(Request):
    """Finished runs in short, the latest first."""

    op: Literal["results"] = "results"
    limit: int = Field(default=50, ge=1, le=1000)


class GetResult(Request):
    """The summary of a finished run."""

    op: Literal["result"] = "result"
    run_id: str


class GetTopK(Request):
    """Places of a ranking of a finished run."""

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
    """A piece of a file of a finished run, at most PIECE_BYTES from `offset` on; with the first one the run's fingerprint."""

    op: Literal["file"] = "file"
    run_id: str
    name: str = Field(pattern=r"^[^/\x00.][^/\x00]*$", max_length=MOST_NAME)
    offset: int = Field(default=0, ge=0, lt=2**63)


class Shutdown(Request):
    """Stop; with `when_idle` what runs may end before."""

    op: Literal["shutdown"] = "shutdown"
    when_idle: bool = False


class GetTelemetry(Request):
    """What devices and processes used in the last minutes, later than `after`, seconds since the epoch."""

    op: Literal["telemetry"] = "telemetry"
    after: float = 0.0


AnyRequest = Annotated[
    Hello
    | Submit
    | KeepTexts
    | Retry
    | Cancel
    | GetJob
    | ListJobs
    | Mark
    | ListMarks
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


def parse_request(message: JsonMap) -> Any:
    """The request a decoded map stands for. Raises InvalidInput, naming the field, where it stands for none."""
    try:
        return _REQUEST.validate_python(message)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        hint = "a daemon of another version may be running: `cwtool daemon restart`"
        raise InvalidInput(f"bad request: {where}: {first['msg']}", hint=hint) from error
