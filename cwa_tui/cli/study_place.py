"""Who runs a study: the daemon, or a runner that --on names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cwa_engine.base.errors import InvalidInput
from cwa_tui.cli import completion
from cwa_tui.cli.connection import chosen_host, command_typed, connect
from cwa_tui.cli.output import say

if TYPE_CHECKING:
    from cwa_daemon.client import Client
    from cwa_daemon.protocol import JobOptions
    from cwa_engine.named_runners import NamedRunner
    from cwa_engine.runner import Runner
    from cwa_engine.studies.folder import StudyFolder

On = Annotated[
    str | None,
    typer.Option(
        "--on",
        metavar="ray[:ADDRESS]",
        help="Who runs it; the daemon, if left out. ray starts a Ray of its own on this machine, ray:auto joins the one that "
        "runs here, ray:HOST:6379 that of a cluster.",
        show_default=False,
        autocompletion=completion.one_of("ray", "ray:auto"),
    ),
]
Slots = Annotated[
    int | None,
    typer.Option(
        "--slots",
        min=1,
        help="On Ray: runs at once; if left out, one for each GPU, or for each --gpus N of them; without GPUs one a node.",
        show_default=False,
    ),
]
Gpus = Annotated[
    int | None,
    typer.Option("--gpus", min=0, help="On Ray: GPUs of each slot, over which a model is spread.", show_default=False),
]
Store = Annotated[
    str | None,
    typer.Option(
        "--store",
        metavar="FOLDER|URL",
        help="On Ray: where run folders stay, as a folder that all nodes have, or s3://...; if left out, they come home.",
        show_default=False,
    ),
]


def asked_runner(on: str | None, detach: bool = False, needs_on: bool = True, **options: Any) -> NamedRunner:
    """What was typed of --on and its options; without --on the name is empty. Raises InvalidInput for what makes no sense."""
    from cwa_engine.named_runners import LOCAL, NamedRunner

    asked = NamedRunner(on or "", {name: value for name, value in options.items() if value is not None})
    if not on:
        if needs_on:
            _refuse(asked, "and without --on the daemon runs it", "add --on ray")
        return asked
    if asked.kind == LOCAL:
        raise InvalidInput("a command line runs nothing in its own process", hint="leave out --on: the daemon runs it")
    if host := chosen_host():
        raise InvalidInput(
            f"--on {on} and --host {host} both say where it runs",
            hint="leave out one of them, or type the command on that machine",
        )
    if detach:
        _refuse_detached(asked)
    return asked


def refuse_queue_options(asked: NamedRunner, given: Mapping[str, Any]) -> None:
    """Raise InvalidInput where an option of the daemon's queue is given to a runner that has none."""
    from cwa_daemon.protocol import JobOptions
    from cwa_engine.options import option_fields

    found = next((entry for name, entry in option_fields(JobOptions).items() if name in given), None)
    if asked.name and found:
        raise InvalidInput(f"{found.flag} is of the daemon's queue, and {asked.kind} has none", hint="leave it out")


@dataclass(frozen=True, slots=True)
class Place:
    """The runner of a study. `client` is that of the daemon, `named` a runner that ends with this command; one is None."""

    runner: Runner
    client: Client | None = None
    named: NamedRunner | None = None

    @property
    def cwtool(self) -> str:
        """How a command begins that is about the same place."""
        return f"cwtool --host {self.client.host}" if self.client and self.client.host else "cwtool"


@contextmanager
def opened_place(asked: NamedRunner, options: JobOptions | None = None) -> Iterator[Place]:
    """Where a new study is to run, by what was typed."""
    if not asked.name:
        with connect() as client:
            yield _of_daemon(client, options)
        return
    with closing(asked.open(say, command_typed())) as runner:
        yield Place(runner, named=asked)


def where_of(asked: NamedRunner) -> str:
    """Where the runs of a new study will be, as in `Runner.where`; nothing is started."""
    if not asked.name:
        return chosen_host() or ""
    with closing(asked.open()) as runner:
        return runner.where


@contextmanager
def opened_study(
    study_id: str, asked: NamedRunner | None = None, detach: bool = False
) -> Iterator[tuple[StudyFolder, Place]]:
    """The study of an id, and who runs it. Raises NotFound, and InvalidInput for one whose runs are elsewhere."""
    from cwa_engine.studies.folder import StudyFolder

    folder = StudyFolder.open(study_id)
    with place_of(folder, asked, detach) as place:
        yield folder, place


@contextmanager
def place_of(folder: StudyFolder, asked: NamedRunner | None = None, detach: bool = False) -> Iterator[Place]:
    """Who runs a study that there is: what was typed, else who ran it last. Raises InvalidInput where that is elsewhere."""
    if named := _named(folder, asked):
        if detach:
            _refuse_detached(named)
        with opened_place(named) as place:
            yield place
        return
    with connect() as client:
        check_place(folder, client.host or "")
        yield _of_daemon(client)


def check_place(folder: StudyFolder, host: str) -> None:
    """Raises InvalidInput where the runs of a study are not in the daemon of `host`, which is "" for that of this machine."""
    from cwa_engine.named_runners import named_at

    if folder.where == host:
        return
    if folder.where.startswith(("/", "the memory")):
        hint = "the program that asked for it can go on with it"
    elif named_at(folder.where) or not folder.where:
        hint = "`cwtool study resume` without --host goes on with it"
    else:
        hint = f"`cwtool --host {folder.where} study resume` goes on with it"
    place = folder.where or "the daemon of this machine"
    raise InvalidInput(f"the runs of {folder.id} are in {place}, not in {host or 'the daemon of this machine'}", hint)


class Runners:
    """The runners of several studies, each opened when it is first needed; nothing is run."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._known: dict[str, Runner] = {}

    def __enter__(self) -> Runners:
        return self

    def __exit__(self, *about: Any) -> None:
        self._stack.close()

    def of(self, folder: StudyFolder) -> Runner:
        """Who knows the runs of a study; of one whose runs are elsewhere the daemon, which knows none of them."""
        from cwa_engine.named_runners import NamedRunner, named_at

        named = (None if chosen_host() else named_at(folder.where)) or NamedRunner()
        key = folder.where if named.name else ""
        if key not in self._known:
            self._known[key] = self._stack.enter_context(opened_place(named)).runner
        return self._known[key]


def _named(folder: StudyFolder, asked: NamedRunner | None = None) -> NamedRunner | None:
    """The named runner of a study: what was typed wins over who ran it last. None where the daemon runs it."""
    from cwa_engine.named_runners import NamedRunner

    last, asked = None if chosen_host() else folder.runner, asked or NamedRunner()
    if last is None and not asked.name:
        _refuse(asked, f"and the daemon runs {folder.id}", "leave it out")
        return None
    options = {**(last.options if last else {}), **asked.options}
    return NamedRunner(asked.name or (last.name if last else ""), options)


def _of_daemon(client: Client, options: JobOptions | None = None) -> Place:
    from cwa_daemon.client import DaemonRunner

    return Place(DaemonRunner(client, command_typed(), options), client)


def _refuse(asked: NamedRunner, why: str, hint: str) -> None:
    if asked.options:
        raise InvalidInput(f"--{next(iter(asked.options))} is of --on ray, {why}", hint=hint)


def _refuse_detached(asked: NamedRunner) -> None:
    raise InvalidInput(
        f"a study on {asked.kind} runs as long as its command does, so it cannot be detached",
        hint="leave out --detach, and begin it in tmux or as a batch job; after any end `cwtool study resume` goes on",
    )
