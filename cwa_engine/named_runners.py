"""Runners by name: "ray", "ray:HOST:6379", "local", "local:FOLDER". torch-free.

Other packages bring runners of their own: each is an entry point of the group `cwtool.runners`, a function
`make(address, *, say, command, **options)` that gives a `Runner` with `close`, and starts nothing before a run is submitted.
Its `where` is its name, or its name, a space and the place where run folders stay, so that runs of a study are found again.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Protocol

from cwa_engine.base.errors import InvalidInput, did_you_mean
from cwa_engine.base.files import user_path
from cwa_engine.base.places import runs_folder
from cwa_engine.runner import Runner

GROUP = "cwtool.runners"
LOCAL = "local"
_EXTRAS = {"ray": "cluster"}  # of cwtool, which installs what a runner needs
Say = Callable[[str], None]


class ClosableRunner(Runner, Protocol):
    """A runner that holds something: a thread, or a connection to a cluster."""

    def close(self) -> None:
        """End what has not ended, and give back what is held."""


def _ignore(text: str) -> None: ...


@dataclass(frozen=True, slots=True)
class NamedRunner:
    """A runner as it is asked for: its name, perhaps with an address, and its options. An empty name is none."""

    name: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """The name without its address."""
        return self.name.partition(":")[0]

    def open(self, say: Say = _ignore, command: str = "") -> ClosableRunner:
        """The runner. `say` hears what it has to tell; `command` is what was typed, for the manifests of its runs.

        "local" runs in this process, and its run folders are in the given folder, else where the daemon has its own. Raises
        InvalidInput for a name that there is not, an option that the runner does not know, and an extra that is not installed.

            with contextlib.closing(NamedRunner("ray", {"slots": 2}).open()) as runner: ...
        """
        if self.kind == LOCAL:
            return self._local()
        found = _entry(self.kind)
        try:
            make: Callable[..., ClosableRunner] = found.load()
        except ImportError as error:
            extra = _EXTRAS.get(self.kind)
            hint = f"`pip install 'cwtool[{extra}]'`" if extra else f"install what {found.value} needs"
            raise InvalidInput(f"'{self.kind}' cannot run anything here: {error}", hint=hint) from error
        try:
            return make(self.name.partition(":")[2], say=say, command=command, **self.options)
        except TypeError as error:
            if "keyword argument" not in str(error):
                raise
            said = f"'{self.kind}' does not take all of {', '.join(self.options)}: {error}"
            raise InvalidInput(said, hint="leave out what it does not know") from error

    def _local(self) -> ClosableRunner:
        if self.options:
            raise InvalidInput(
                f"'{LOCAL}' does not take {', '.join(self.options)}",
                hint="it runs one after the other in this process",
            )
        from cwa_engine.local_runner import LocalRunner  # here, for it imports torch

        folder = self.name.partition(":")[2]
        return LocalRunner(user_path(folder, "the folder of runs") if folder else runs_folder())


def runner_names() -> tuple[str, ...]:
    """The names that there are."""
    return (LOCAL, *sorted(_others()))


def named_at(where: str) -> NamedRunner | None:
    """Who knows the runs that are kept `where`; None where that is no runner with a name. It has no address."""
    kind, _, store = where.partition(" ")
    if kind not in _others():
        return None
    return NamedRunner(kind, {"store": store} if store else {})


@functools.cache
def _others() -> frozenset[str]:
    """The names of runners that packages bring; what is installed is looked up once, for that takes some 10 ms."""
    return frozenset(entry.name for entry in entry_points(group=GROUP))


def _entry(kind: str) -> EntryPoint:
    if found := list(entry_points(group=GROUP, name=kind)):
        return found[0]
    names = runner_names()
    hint = did_you_mean(kind, names) or f"there are {', '.join(names)}; {LOCAL} is for programs alone"
    raise InvalidInput(f"there is no runner '{kind}'", hint=hint)
