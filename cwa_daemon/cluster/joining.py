"""Ray is joined where it runs, or started on this machine, and left again."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
import shutil
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cwa_daemon.cluster.slots import Node
from cwa_daemon.cluster.temporary import own_prefix, own_temporary
from cwa_engine.base.errors import ClusterUnreachable, InvalidInput
from cwa_engine.machine.memory import allocator_settings
from cwa_engine.machine.processors import granted_processors, thread_settings

log = logging.getLogger(__name__)

_OWN = "ray"  # kind of the temporary folder of a Ray of our own
_LONGEST = 40  # characters of the folder of a Ray of our own: it puts sockets below it, whose paths may have 107
_ANNOUNCED = 6  # lines of an error that announces others
KNOCK_S = 10.0
_OBJECTS_BYTES = 512 * 2**20  # for run folders on their way, of a Ray of our own
_MISSING = "pip install 'cwtool[cluster]' installs it"


@dataclass(frozen=True)
class Cluster:
    """A Ray that this process is connected with."""

    ray: Any  # the module
    node: str  # Ray's id of the node that this process is on
    ours: bool  # whether it was joined here, and is left again with `leave`
    folder: Path | None  # of a Ray of our own

    def nodes(self) -> list[Node]:
        """The nodes that live."""
        alive = [node for node in self.ray.nodes() if node["Alive"]]
        return [
            Node(node["NodeManagerHostname"], node["Resources"].get("CPU", 0.0), node["Resources"].get("GPU", 0.0))
            for node in alive
        ]

    def leave(self) -> None:
        if self.ours:
            self.ray.shutdown()
        if self.folder:
            shutil.rmtree(self.folder, ignore_errors=True)


def refuse_client(address: str) -> None:
    """Raise InvalidInput for an address of Ray's client: `ray://HOST:PORT`, also without its `ray:`, as in `--on ray://...`."""
    if address.startswith(("ray://", "//")):
        raise InvalidInput(
            f"ray://{address.partition('//')[2]} is an address of Ray's client, which hands on no reports while a run computes",
            hint="run cwtool on a machine of the cluster, with --on ray:auto or --on ray:HOST:6379",
        )


def join(address: str) -> Cluster:
    """Connect with the Ray at an address: "" starts one on this machine, or takes that of RAY_ADDRESS, "auto" joins the one
    that runs here. A program that is connected already keeps its Ray.

    Raises InvalidInput where Ray is not installed, and ClusterUnreachable.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anybody unless the user asks for it
    try:
        import ray
    except ImportError as error:
        raise InvalidInput(f"Ray cannot be imported: {error}", hint=_MISSING) from error
    if ray.is_initialized():
        return Cluster(ray, _own_node(ray), ours=False, folder=None)
    address = address or os.environ.get("RAY_ADDRESS", "")
    refuse_client(address)
    _knock(address)
    folder = None if address and address != "local" else own_temporary(_OWN, _LONGEST)
    asked: dict[str, Any] = {"address": address} if folder is None else _own(folder)
    try:
        with _quiet():
            ray.init(namespace="cwtool", log_to_driver=False, logging_level=logging.ERROR, **asked)
    except Exception as error:  # of many kinds, bare ones among them: a node that is slow to start is one
        if folder:
            shutil.rmtree(folder, ignore_errors=True)
        why = first_line(error)
        raise ClusterUnreachable(
            f"a Ray does not start on this machine: {why}" if folder else f"the Ray at {address} is not reached: {why}",
            hint="`ray status` looks at it; cwtool must run on a machine of the cluster, with the same token and Ray version",
        ) from error
    joined: Any = ray._private.worker._global_node  # no public name tells where it has its files
    if folder is None and (owner := owner_of(joined.get_session_dir_path())):
        ray.shutdown()
        raise ClusterUnreachable(
            f"the Ray at {address} is another command's own (process {owner}), and ends with it",
            hint="--on ray starts one for this command; --on ray:HOST:PORT joins that of a cluster",
        )
    _keep_from_standard_output(ray)
    return Cluster(ray, _own_node(ray), ours=True, folder=folder)


def owner_of(session: str) -> int:
    """The process that has started the Ray of a session folder for itself alone; 0 for a Ray that anybody may join."""
    found = re.search(rf"/{own_prefix(_OWN)}(\d+)-", session)
    return int(found[1]) if found else 0


def _knock(address: str) -> None:
    """Raise ClusterUnreachable where nothing listens at HOST:PORT: Ray itself tries for more than five minutes."""
    host, _, port = address.rpartition(":")
    if not (host and port.isdigit()):
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK_S).close()
    except (OSError, OverflowError) as error:
        raise ClusterUnreachable(
            f"nothing answers at {address}: {error}",
            hint="`ray status` on the head node tells its address; --on ray:auto takes the Ray that runs on this machine",
        ) from error


def actor_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Variables of an actor, as the daemon's worker has them. It sees all GPUs of its node, and is told which are its own: a
    process that has begun to compute cannot change which it sees."""
    own = {
        "TOKENIZERS_PARALLELISM": "false",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "PYTHONUTF8": "1",
        "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1",
    }
    threads = {name: value for name, value in thread_settings(environment).items() if name != "OMP_NUM_THREADS"}
    return {**threads, **allocator_settings(environment), **own}


def asked_threads(environment: Mapping[str, str]) -> int:
    """How many threads the user has set for each slot; 0 for as many as its CPUs."""
    given = environment.get("OMP_NUM_THREADS", "").partition(",")[0]
    return int(given) if given.isdigit() else 0


def _own(folder: Path) -> dict[str, Any]:
    """A Ray of this machine alone, for this process alone."""
    return {
        "address": "local",
        "num_cpus": max(math.floor(granted_processors()), 1),
        "include_dashboard": False,
        "object_store_memory": _OBJECTS_BYTES,
        "_temp_dir": str(folder),
        # Usually Ray's workers are nicer than all others, so that a busy machine would starve them; the daemon's are not.
        "_system_config": {"worker_niceness": 0},
    }


def _keep_from_standard_output(ray: Any) -> None:
    """Ray prints what its nodes complain of, a killed actor for instance, to standard output, where data alone belongs. The
    run hears of it; the rest goes to the logging of this module."""
    worker = ray._private.worker
    if hasattr(worker, "print_to_stdstream"):  # no public switch turns it off
        worker.print_to_stdstream = lambda data, **_: log.debug("Ray: %s", "; ".join(data["lines"]))


def _own_node(ray: Any) -> str:
    return str(ray.get_runtime_context().get_node_id())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Ray says on the way that tokens are asked for; that is in our documentation."""
    logger = logging.getLogger("ray")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def first_line(error: BaseException) -> str:
    """What an error of Ray's says first; the rest is often a page. A line that announces others has them with it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if lines and lines[0].endswith(":"):  # as of two versions that do not go together
        return " ".join(lines[:_ANNOUNCED])
    return next(iter(lines), type(error).__name__)
