"""Runs on Ray, asked for through the same interface as runs in this process and by the daemon."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from cwa_daemon.base.settings import Settings
from cwa_daemon.cluster.home import Home, OwnRuns
from cwa_daemon.cluster.joining import refuse_client
from cwa_daemon.cluster.runs import KnownRuns, RayRun
from cwa_daemon.cluster.store import make_store, store_named
from cwa_engine.base.errors import ClusterUnreachable, DoesNotFit, InvalidInput, NotFound
from cwa_engine.base.files import is_read_once
from cwa_engine.base.places import state_folder
from cwa_engine.hub.sources import HubAccess
from cwa_engine.records.run_id import new_run_id
from cwa_engine.run_folders import RunFolders
from cwa_engine.runner import RunHandle, RunState, states_of
from cwa_engine.spec import RunSpec

if TYPE_CHECKING:
    from cwa_daemon.cluster.board import Queued
    from cwa_daemon.cluster.driving import Driving
    from cwa_daemon.cluster.joining import Cluster


def _ignore(said: str) -> None: ...


class RayRunner:
    """Runs specs on Ray: each slot has an actor that holds warm models, and run folders come home, where all others are.

    `address`: "" starts a Ray on this machine, or takes that of RAY_ADDRESS; "auto" joins the one that runs here, HOST:PORT
    that one. `slots`: how many runs are under way at once; usually one for each `gpus` GPUs of the cluster, without GPUs one
    for each `cpus` CPUs, which are those of a node. `store`: a folder that all nodes share, or an address such as
    s3://bucket/runs, where the files stay. `home`: the folder of run folders, if not that of the state folder. `say` hears what
    concerns no run alone. `command` is written into the manifest of every run.

    Nothing is started before the first run that is not there already. Runs do not outlive this process: those that have not
    ended are gone with it, and a study that is resumed asks for them again.

    with RayRunner(slots=2) as runner:
        print(runner.submit(RunSpec(model="gpt2", topk=(10,))).report().verdicts)
    """

    elsewhere = False

    def __init__(
        self,
        address: str = "",
        *,
        slots: int | None = None,
        gpus: int | None = None,
        cpus: float | None = None,
        store: str = "",
        home: Path | None = None,
        say: Callable[[str], None] = _ignore,
        command: str = "",
    ) -> None:
        _check_counts(slots, gpus, cpus)
        refuse_client(address)
        self._address, self._slots, self._gpus, self._cpus = address, slots, gpus, cpus
        self._say, self._command = say, command
        self._store = store_named(store)
        state = state_folder()
        kept = Home(state / "ray")
        self._known = KnownRuns(kept, RunFolders(Path(home) if home else state / "runs", kept.keys))
        self._cluster: Cluster | None = None
        self._driving: Driving | None = None

    @property
    def where(self) -> str:
        """Where its runs are kept, which is here: at which address they were computed says nothing of that."""
        return f"ray {self._store}" if self._store else "ray"

    def submit(self, spec: RunSpec, key: str | None = None) -> RunHandle:
        """Ask for a run. The first one joins or starts Ray, and waits until a slot can be used.

        Raises InvalidInput for a spec that is of one machine, VersionMismatch where the nodes have other code, StateNotWritten,
        and ClusterUnreachable for whatever else keeps all runs from beginning: Ray is not installed or not reached, or no node
        has what a slot needs.
        """
        _check_spec(spec)
        if key is not None and (there := self._run_of(key)):
            return there
        driving, own = self._begun()
        _check_device(spec, driving.has_gpus)
        run = self._queued(spec)
        with self._known.home.one_at_a_time():
            if key is not None:
                if there := self._run_of(key):  # another process asked for the same meanwhile
                    return there
                self._known.keep_key(key, run.run_id)
            own.begin(run.run_id)
        driving.add(run)
        return RayRun(self._known, run.run_id)

    def attach(self, run_id: str) -> RunHandle:
        self._known.record(run_id)  # raises NotFound
        return RayRun(self._known, run_id)

    def states(self, run_ids: Sequence[str]) -> Mapping[str, RunState]:
        return states_of(run_ids, lambda run_id: self._known.record(run_id).seen())

    def wait_for_room(self) -> None:
        """There is always room: runs wait here."""

    def close(self) -> None:
        """End what has not ended, and leave Ray. Whoever waits for such a run hears that it is gone."""
        if self._driving:
            self._driving.close()
        own, self._known.own, self._known.cancel = self._known.own, None, None
        if own:
            own.driver.release()
            with own.changed:
                own.changed.notify_all()
        if self._cluster:
            self._cluster.leave()
        self._driving = self._cluster = None

    def __enter__(self) -> RayRunner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run_of(self, key: str) -> RunHandle | None:
        """The run of a key; None for one that was never asked for, or is gone."""
        run_id = self._known.folders.run_of_key(key)
        try:
            return self.attach(run_id) if run_id else None
        except NotFound:
            return None

    def _begun(self) -> tuple[Driving, OwnRuns]:
        """The cluster at work, and what is written of its runs."""
        if self._driving is None:
            from cwa_daemon.cluster.driving import Driving
            from cwa_daemon.cluster.joining import join
            from cwa_daemon.cluster.slots import slot_shapes

            known = self._known
            try:
                make_store(self._store)
                self._cluster = join(self._address)
                shapes = slot_shapes(self._cluster.nodes(), self._slots, self._gpus, self._cpus)
                with known.home.one_at_a_time():
                    known.own = OwnRuns(known.home, known.home.new_driver(), self._say)
                self._driving = Driving(
                    self._cluster, shapes, known.own, known.folders.path, self._store, self._say
                )  # fmt: skip
                self._driving.begin()
                known.cancel = self._driving.cancel
            except BaseException as error:
                self.close()
                if isinstance(error, (InvalidInput, DoesNotFit)):  # of no run: no other one would fare better
                    raise ClusterUnreachable(error.message, hint=error.hint) from error
                raise
        assert self._known.own
        return self._driving, self._known.own

    def _queued(self, spec: RunSpec) -> Queued:
        from cwa_daemon.cluster.board import Queued
        from cwa_daemon.pipe.messages import Limits, RunJob
        from cwa_daemon.protocol import JobOptions

        command = RunJob(
            kind="run",
            run_id=new_run_id(spec.model),
            spec=spec.model_dump(mode="json"),
            command=self._command,
            options=JobOptions().model_dump(),
            access=asdict(HubAccess.from_environment()),
            folder="",
            limits=Limits(**Settings().limits()),
            device="",
        )
        return Queued(command, spec)


def ray_runner(address: str = "", **options: object) -> RayRunner:
    """The runner that `ray` and `ray:ADDRESS` name."""
    return RayRunner(address, **options)  # type: ignore[arg-type]


def _check_counts(slots: int | None, gpus: int | None, cpus: float | None) -> None:
    wrong = {"slots": slots is not None and slots < 1, "gpus": (gpus or 0) < 0, "cpus": cpus is not None and cpus <= 0}
    for name, bad in wrong.items():
        if bad:
            raise InvalidInput(f"{name} must be above 0", hint=f"give {name} a larger number, or leave it out")


def _check_spec(spec: RunSpec) -> None:
    """Raises InvalidInput for what means one machine alone."""
    if spec.output:
        raise InvalidInput(
            f"a run on Ray does not write to {spec.output}",
            hint="leave out `output`: the files come home, see `cwtool results`",
        )
    path = spec.data_file
    if path and is_read_once(path):
        raise InvalidInput(
            f"{path} is a pipe, and a run that is lost reads its texts again", hint="write them into a file"
        )
    if spec.device not in ("auto", "cpu", "cuda"):
        raise InvalidInput(
            f"device {spec.device} is one of a single machine",
            hint="each slot has devices of its own: give auto, or cpu or cuda for slots of one kind, and --gpus for how many",
        )


def _check_device(spec: RunSpec, has_gpus: bool) -> None:
    """Raises InvalidInput where no slot has the kind of device that was asked for."""
    if spec.device == "cpu" and has_gpus:
        raise InvalidInput("device cpu was asked for, and the slots have GPUs", hint="give --gpus 0 for slots without")
    if spec.device == "cuda" and not has_gpus:
        raise InvalidInput(
            "device cuda was asked for, and the slots have no GPUs", hint="give --gpus 1 where nodes have some"
        )
