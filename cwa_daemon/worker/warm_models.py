"""The models that a worker holds warm: found, loaded, checked, unloaded, and reported."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence

import psutil
import torch

from cwa_daemon.pipe.messages import Limits, LoadAgain, Memory, ModelsReport, WarmModelReport
from cwa_daemon.pipe.place import WITHOUT_DEVICE
from cwa_daemon.worker.reporter import RunReporter
from cwa_daemon.worker.residency import ModelKey, Residency, Resident
from cwa_engine.base import events
from cwa_engine.base.devices import is_cpu, memory_of
from cwa_engine.base.errors import CwaError, DoesNotFit, OutOfMemory
from cwa_engine.hub.sources import HubAccess, ModelSource, SourceKind, fingerprint, resolve
from cwa_engine.machine.memory import available_memory
from cwa_engine.machine.memory_limit import memory_limit
from cwa_engine.models.checksum import checksum
from cwa_engine.models.failures import is_out_of_memory
from cwa_engine.models.loading import LoadedModel, load_model
from cwa_engine.models.memory import free_bytes, release, usual_reserve_bytes
from cwa_engine.planning import IMPORTED_BYTES
from cwa_engine.spec import RunSpec

WarmModel = Resident[LoadedModel]


class WarmModels:
    """The warm models of one device. `tell` takes a report whenever which they are has changed."""

    def __init__(self, device: str, tell: Callable[[ModelsReport], None]) -> None:
        self.device = device
        self._tell = tell
        self._residency: Residency[LoadedModel] = Residency()

    def __iter__(self) -> Iterator[WarmModel]:
        return iter(self._residency)

    # found or loaded

    def get(self, spec: RunSpec, access: HubAccess, limits: Limits, report: RunReporter) -> WarmModel:
        """The model of a run: a warm one whose weights are as they were loaded, else loaded now, into the room there is."""
        source = resolve(spec.model)
        key = self._key(spec, source, access)
        resident = self._residency.use(key)
        if resident and self._is_intact(resident, report):
            report.note(f"{spec.model} is warm")
            self._tell(self._report())  # it is the most recently used one now
            return resident
        self._say_why_it_is_loaded(spec, source, key, report)
        loaded = self._load(spec, access, limits, report)
        release()  # what loading took beside the weights
        resident = Resident(
            key, spec.model, loaded, loaded.size_bytes, checksum=checksum(loaded.model), access=access.shown()
        )
        self._residency.add(resident)
        self._tell(self._report())
        return resident

    def _key(self, spec: RunSpec, source: ModelSource, access: HubAccess) -> ModelKey:
        key = ModelKey(source.location, spec.revision, spec.dtype, spec.offload, fingerprint(source))
        if source.kind is SourceKind.HUB:
            key = key._replace(hub=access.place)
        for warm in self:  # a commit may be warm under the name of its branch
            if warm.model.revision == spec.revision and warm.key._replace(revision=spec.revision) == key:
                key = warm.key
        return key

    def _is_intact(self, resident: WarmModel, report: RunReporter) -> bool:
        """Whether a warm model's weights are those that were loaded; after a run that did not end well that is looked at.

        It takes a second for 150 million weights, too long for a user who has cancelled a run.
        """
        why = _doubt(resident) if resident.suspect else ""
        if why:
            self._residency.remove(resident)
            report.note(f"{resident.name} is unloaded: {why}", "warning")
        else:
            resident.suspect = False
        return not why

    def _say_why_it_is_loaded(self, spec: RunSpec, source: ModelSource, key: ModelKey, report: RunReporter) -> None:
        """Where it is warm otherwise: from files that have changed, which are unloaded, or in another dtype for instance."""
        stale = [r for r in self if r.key.location == key.location and r.key.fingerprint != key.fingerprint]
        if stale:
            report.note(f"{spec.model} is loaded again: its files have changed")
            self._residency.drop({source.location})
        elif others := [r for r in self if r.key.location == key.location]:
            report.note(f"{spec.model} is loaded: {_difference(key, others[-1].key)}")

    def _load(self, spec: RunSpec, access: HubAccess, limits: Limits, report: RunReporter) -> LoadedModel:
        with self._load_limit(spec.model, limits.load_bytes):
            return load_model(
                spec.model,
                spec.revision,
                spec.dtype,
                self.device,
                spec.offload == "cpu",
                access,
                say=report.note,
                make_room=lambda size_bytes: self._make_room(spec.model, size_bytes, limits, report),
                read=lambda done, total: report(events.Progress("load", done, total, "byte")),
                trust_remote_code=limits.trust_remote_code,
            )

    @contextlib.contextmanager
    def _load_limit(self, name: str, most_bytes: int | None) -> Iterator[None]:
        """The memory of this machine that a load may take: what was set, else what is available.

        A device's driver reserves memory of this machine as well, nobody knows how much: there only what was set counts.
        """
        if most_bytes is None and not is_cpu(self.device):
            yield
            return
        try:
            with memory_limit(available_memory().free_bytes if most_bytes is None else most_bytes):
                yield
        except OutOfMemory as error:
            if most_bytes is None or isinstance(error, DoesNotFit):
                raise
            raise _beyond_limit(f"loading {name} takes more", most_bytes) from error

    def _make_room(self, name: str, size_bytes: int, limits: Limits, report: RunReporter) -> None:
        """Drop least recently used models until the new one fits. Raises DoesNotFit where that is not enough."""
        if limits.load_bytes is not None and size_bytes > limits.load_bytes:
            raise _beyond_limit(f"{name} takes {size_bytes / 1e9:,.2f} GB", limits.load_bytes)
        devices = self._devices()
        reserve = reserve_bytes(devices, limits)
        budget = len(devices) * limits.budget_bytes if limits.budget_bytes else math.inf

        def free() -> int:
            release()
            return max(0, sum(map(free_bytes, devices)) - reserve)

        for dropped in self._residency.make_room(name, size_bytes, budget, free):
            used = f"last used {time.time() - dropped.last_used:.0f} s ago"
            report.note(f"unloaded {dropped.name} ({used}) to make room for {name}")

    def _devices(self) -> list[torch.device]:
        """The device, or the several ones that its models lie on; whether they are here is seen when a job comes."""
        return [torch.device(name) for name in memory_of(self.device)]

    # unloaded

    def seconds_to_next_expiry(self) -> float | None:
        """How long until `expire` has something to do; None for never."""
        wait_s = self._residency.next_expiry - time.time()
        return None if math.isinf(wait_s) else max(0.0, wait_s)

    def expire(self) -> None:
        """Unload what was not used for longer than it was to be kept, and tell what is warm."""
        expired = self._residency.expire(time.time())
        for resident in expired:
            print(f"unloaded {resident.name}: not used for {resident.keep_alive_s:.0f} s", flush=True)  # into the log
        if expired:
            release()
        self._tell(self._report())

    def unload(self, model: str) -> tuple[str, ...]:
        """Drop a model, by its name or where it lies, pinned or not; gives the names of what was dropped."""
        names = {model}
        with contextlib.suppress(CwaError):  # no model may exist by that name now, but a warm one still carry it
            names.add(resolve(model).location)
        dropped = tuple(resident.name for resident in self._residency.drop(names))
        release()  # the memory comes back before the word does
        self._tell(self._report())
        return dropped

    # reported

    def memory(self) -> Memory | None:
        """The device's memory; None where it is not known."""
        try:
            if self.device.startswith("cuda"):
                if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
                    return None
                held = sum(torch.cuda.memory_reserved(device) for device in self._devices())
            elif self.device in WITHOUT_DEVICE.values():
                return None
            else:
                held = max(0, psutil.Process().memory_info().rss - IMPORTED_BYTES)
            return Memory(free=sum(map(free_bytes, self._devices())), held=held)
        except (
            CwaError,
            RuntimeError,
            OSError,
            MemoryError,
            psutil.Error,
        ):  # the job says so, and the heartbeat goes on
            return None

    def _report(self) -> ModelsReport:
        return ModelsReport(
            memory=self.memory(),
            again=tuple(self._load_again(resident) for resident in self if resident.pinned),
            models=tuple(_reported(resident) for resident in self),
        )

    def _load_again(self, resident: WarmModel) -> LoadAgain:
        key = resident.key
        spec = {"revision": key.revision, "dtype": key.dtype, "offload": key.offload, "device": self.device}
        return LoadAgain(spec={"model": resident.name, **spec}, access=resident.access)


def reserve_bytes(devices: Sequence[torch.device], limits: Limits) -> int:
    """Bytes to leave free on these devices together."""
    if limits.reserve_bytes is not None:
        return len(devices) * int(limits.reserve_bytes)
    return sum(usual_reserve_bytes(device) for device in devices)


def _reported(resident: WarmModel) -> WarmModelReport:
    return WarmModelReport(
        name=resident.name,
        revision=resident.model.revision,
        dtype=resident.model.dtype,
        device=resident.model.device_name,
        parameters=resident.model.anatomy.numel,
        size_bytes=resident.size_bytes,
        loaded=resident.loaded,
        last_used=resident.last_used,
        jobs_served=resident.jobs_served,
        expires=None if math.isinf(resident.expires) else resident.expires,
        pinned=resident.pinned,
    )


def _beyond_limit(what: str, most_bytes: int) -> DoesNotFit:
    return DoesNotFit(
        f"{what}, and a load may take {most_bytes / 1e9:,.2f} GB",
        hint="CWTOOL_LOAD_MEMORY_GB, where the daemon runs, sets how much that is",
    )


def _difference(asked: ModelKey, warm: ModelKey) -> str:
    """Why a warm copy does not serve: "dtype float16 asked, auto is warm"."""
    differences = [
        f"{name} {getattr(asked, name) or 'default'} asked, {getattr(warm, name) or 'default'} is warm"
        for name in ("revision", "dtype", "offload", "hub")
        if getattr(asked, name) != getattr(warm, name)
    ]
    return "; ".join(differences)


def _doubt(resident: WarmModel) -> str:
    """Why the weights may not be those that were loaded; empty where they are."""
    try:
        return "" if checksum(resident.model.model) == resident.checksum else "its weights are not as they were loaded"
    except (MemoryError, RuntimeError) as failure:
        if not is_out_of_memory(failure):
            raise
        return "no memory is left to see whether its weights are as they were loaded"


@torch.no_grad()
def still_computes(loaded: LoadedModel) -> bool:
    """Whether a model still computes something after memory ran out: one token, forward. It need not have room for it."""
    release()
    try:
        token = torch.zeros(1, 1, dtype=torch.long, device=loaded.device)
        return bool(torch.isfinite(loaded.model(input_ids=token, use_cache=False).logits).all())
    except (RuntimeError, MemoryError) as failure:
        return is_out_of_memory(failure)
