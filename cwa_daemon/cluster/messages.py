"""What driver and actors hand each other beside the messages of `pipe`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cwa_engine.base.source_code import code_sha256
from cwa_engine.base.version import __version__
from cwa_engine.records.export import library_versions


@dataclass(frozen=True, slots=True)
class Place:
    """What an actor is told of its slot before anything else."""

    number: int
    gpus: int
    share: float  # the part of its node's memory budget that is this slot's
    cpus: int
    threads: int  # that the user has set; 0 for as many as its CPUs have cores


@dataclass(frozen=True, slots=True)
class About:
    """Where an actor is, and what it computes with."""

    node: str  # Ray's id
    host: str
    pid: int
    device: str
    log: str  # the file on its node that it writes into
    code: Mapping[str, str]  # name -> version or hash, see `code_here`


@dataclass(frozen=True, slots=True)
class Errand:
    """A run, and what an actor must know to do it."""

    command: bytes  # a `RunJob`
    store: str  # where its files are kept; empty for home
    away: bool  # whether the actor is on another node than the driver
    model_path: str  # of a model that is files of the driver's machine; empty for others
    imported: bool = False  # whether the model has a name there that leads to this path


@dataclass(frozen=True, slots=True)
class RunFiles:
    """The files of a run that is done: all of them, or of those that are kept in a store the ones that tell of it."""

    run_id: str
    files: Mapping[str, bytes] = field(repr=False)
    fingerprint: str = ""
    place: str = ""  # where they are kept; empty where they are all here


def code_here() -> dict[str, str]:
    """What results depend on."""
    return {"cwtool": __version__, "the source of cwa_engine": code_sha256(), **library_versions()}


def other_code(there: Mapping[str, str], here: Mapping[str, str]) -> str:
    """What differs between the code of an actor and this one's, in words; empty where it is the same."""
    names = sorted(here.keys() | there.keys())
    wrong = [name for name in names if there.get(name) != here.get(name)]
    return ", ".join(f"{name} is {_short(there.get(name))} there and {_short(here.get(name))} here" for name in wrong)


def _short(version: str | None) -> str:
    return version[:12] if version else "missing"
