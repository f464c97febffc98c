"""Runs on Ray, asked for through the same interface as runs in this process and by the daemon."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from cwa_daemon.base.settings import Settings
from cwa_daemon.cluster import store as stores
from cwa_daemon.cluster.home import LOOK_S, Home, OwnRuns, Record
from cwa_daemon.cluster.scheduling import ModelName
from cwa_engine.base.errors import InvalidInput, NotFound, error_from_dict
from cwa_engine.base.event_reader import event_from_plain
from cwa_engine.base.events import Event
from cwa_engine.base.places import state_folder
from cwa_engine.hub.sources import HubAccess
from cwa_engine.records.run_id import new_run_id
from cwa_engine.run_folders import FinishedRun, RunFolders
from cwa_engine.runner import RunHandle, RunState
from cwa_engine.spec import RunSpec

if TYPE_CHECKING:
    from cwa_daemon.cluster.driving import Driving
    from cwa_daemon.cluster.joining import Cluster
    from cwa_engine.records.run_report import RunReport


def _ignore(what: object) -> None: ...


class RayRunner:
    """Runs specs on Ray: each slot has an actor that holds warm models, and run folders come home, where all others are.

    `address`: "" starts a Ray on this machine, or takes that of RAY_ADDRESS; "auto" joins the one that runs here, HOST:PORT
    that one. `slots`: how many runs are under way at once; usually one for each `gpus` GPUs of the cluster, without GPUs one
    for each `cpus` CPUs, which are those of a node. `store`: a folder that all nodes share, or an address such as
    s3://bucket/runs, where the files stay. `home`: the folder of run folders, if not that of the state folder. `say` hears what
    concerns no run alone.

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
    ) -> None:
        _check_counts(slots=slots, gpus=gpus, cpus=cpus)
        self._address, self._slots, self._gpus, self._cpus, self._say = address, slots, gpus, cpus, say
        self._store = stores.store_named(store)
        state = state_folder()
        self._home = Home(state / "ray")
        self._folders = RunFolders(Path(home) if home else state / "runs", self._home.keys)
        self._cluster: Cluster | None = None
        self._driving: Driving | None = None
        self._own: OwnRuns | None = None
        self._closed = False

    @property
    def where(self) -> str:
        """Not at which address: a cluster is started anew each time, and its runs are here."""
        return f"ray {self._store}" if self._store else "ray"

    def submit(self, spec: RunSpec, key: str | None = None) -> RunHandle:
        """Ask for a run. The first one joins or starts Ray, and waits until a slot can be used.

        Raises InvalidInput, ClusterUnreachable, VersionMismatch where the nodes have other code, and DoesNotFit where no node
        has what a slot needs.
        """
        if key is not None and (known := self._known(key)):
            return known
        driving = self._begun()
        assert self._own
        command = self._command(spec)
        with self._home.one_at_a_time():
            if key is not None:
                if known := self._known(key):  # another process asked for the same meanwhile
                    return known
                self._folders.keep_key(key, command.run_id)
            self._own.begin(command.run_id)
        from cwa_daemon.cluster.driving import Queued

        driving.add(Queued(command, ModelName.of(spec)))
        return _RayRun(self, command.run_id)

    def attach(self, run_id: str) -> RunHandle:
        self._record(run_id)  # raises NotFound
        return _RayRun(self, run_id)

    def states(self, run_ids: Sequence[str]) -> Mapping[str, RunState]:
        found = {}
        for run_id in run_ids:
            try:
                found[run_id] = self._record(run_id).seen()
            except NotFound:
                continue
        return found

    def wait_for_room(self) -> None:
        """There is always room: runs wait here."""

    def close(self) -> None:
        """End what has not ended, and leave Ray. Whoever waits for such a run hears that it is gone."""
        self._closed = True
        if self._driving:
            self._driving.close()
        if self._own:
            self._own.driver.release()
            with self._own.changed:
                self._own.changed.notify_all()
        if self._cluster:
            self._cluster.leave()
        self._driving = self._cluster = None

    def __enter__(self) -> RayRunner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # what there is

    def _known(self, key: str) -> RunHandle | None:
        """The run of a key; None for one that was never asked for, or is gone."""
        run_id = self._folders.run_of_key(key)
        try:
            return self.attach(run_id) if run_id else None
        except NotFound:
            return None

    def _record(self, run_id: str) -> Record:
        """Raises NotFound for what is not there, or was lost with its driver."""
        own = self._own.get(run_id) if self._own else None
        record = own if own and (own.ended or not self._closed) else self._home.read(run_id)
        if record.state == "done" and not record.place and not self._folders.folder(run_id):
            raise NotFound(f"the files of {run_id} are gone", hint="resume the study")
        return record

    # Ray

    def _begun(self) -> Driving:
        """The cluster at work."""
        if self._closed:
            raise InvalidInput("this runner is closed", hint="make another one")
        if self._driving is None:
            from cwa_daemon.cluster.driving import Driving
            from cwa_daemon.cluster.joining import join
            from cwa_daemon.cluster.slots import slot_shapes

            self._cluster = join(self._address)
            try:
                shapes = slot_shapes(self._cluster.nodes(), self._slots, self._gpus, self._cpus)
                self._own = OwnRuns(self._home, self._home.new_driver())
                grace_s = Settings().cancel_grace_s
                driving = Driving(self._cluster, shapes, self._own, self._folders.path, self._store, self._say, grace_s)
                self._driving = driving
                driving.begin()
            except BaseException:
                self.close()
                self._closed = False
                raise
        return self._driving

    def _command(self, spec: RunSpec):  # type: ignore[no-untyped-def]
        from cwa_daemon.pipe.messages import Limits, RunJob
        from cwa_daemon.protocol import JobOptions

        return RunJob(
            kind="run",
            run_id=new_run_id(spec.model),
            spec=spec.model_dump(mode="json"),
            command="",
            options=JobOptions().model_dump(),
            access=asdict(HubAccess.from_environment()),
            folder="",
            limits=Limits(**Settings().limits()),
            device="",
        )


class _RayRun:
    """A run, by what is written of it at home."""

    def __init__(self, runner: RayRunner, run_id: str) -> None:
        self._runner, self._run_id = runner, run_id

    @property
    def run_id(self) -> str:
        return self._run_id

    def events(self) -> Iterator[Event]:
        lines = b""
        file = None
        while True:
            over = not self._is_under_way()  # before the last look
            file = file or self._runner._home.open_events(self._run_id)
            lines += file.read() if file else b""
            *whole, lines = lines.split(b"\n")
            for line in whole:
                plain = json.loads(line)
                if event := event_from_plain(plain):
                    yield event
            if over:
                if file:
                    file.close()
                return
            if not whole:
                self._wait()

    def state(self) -> RunState:
        return self._runner._record(self._run_id).seen()

    def report(self) -> RunReport:
        while self._is_under_way():
            self._wait()
        record = self._runner._record(self._run_id)
        if record.error:
            raise error_from_dict(record.error)
        return self._finished(record).report()

    def altered(self) -> tuple[str, ...]:
        return self._finished(self._runner._record(self._run_id)).altered()

    def cancel(self) -> None:
        if not self._is_under_way():
            return
        own = self._runner._own
        if self._runner._driving and own and own.get(self._run_id):
            self._runner._driving.cancel(self._run_id)
        else:
            self._runner._home.ask_to_cancel(self._run_id)

    def _is_under_way(self) -> bool:
        try:
            return not self._runner._record(self._run_id).ended
        except NotFound:  # it died with its driver
            return False

    def _wait(self) -> None:
        """Until something may have changed: at once where this process drives, else after a moment."""
        own = self._runner._own
        if own and own.get(self._run_id):
            with own.changed:
                own.changed.wait(LOOK_S)
        else:
            import time

            time.sleep(LOOK_S)

    def _finished(self, record: Record) -> FinishedRun:
        """The folder of a run that is done, fetched where it is elsewhere."""
        folder = stores.folder_of(record.place) if record.place else self._runner._folders.path / self._run_id
        if folder is None:
            folder = self._runner._folders.path / self._run_id
            if not folder.is_dir():
                from cwa_daemon.cluster.actor import RunFiles
                from cwa_daemon.cluster.driving import _write_folder

                files = stores.fetch_files(record.place)
                _write_folder(folder, RunFiles(self._run_id, files, record.fingerprint))
        return FinishedRun(folder, record.fingerprint)


def ray_runner(address: str = "", **options: object) -> RayRunner:
    """The runner that `ray` and `ray:ADDRESS` name."""
    return RayRunner(address, **options)  # type: ignore[arg-type]


def _check_counts(**counts: float | None) -> None:
    for name, count in counts.items():
        if count is not None and (count < 0 or (name == "slots" and count < 1)):
            raise InvalidInput(f"{name} is {count:g}", hint=f"give {name} a number above 0, or leave it out")
