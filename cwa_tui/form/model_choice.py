"""Models to choose from, and what is known of a name before anything is asked of the daemon. No Textual in it.

A run of a mistyped model would be queued and fail. So a name is looked up here first: among warm models, on disk, in the
guide, and then at the Hub.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from cwa_daemon.protocol import DeviceMemory, WarmModel
from cwa_engine.base.devices import is_cpu, memory_of
from cwa_engine.base.errors import CwaError, near_names
from cwa_engine.guide.catalog import CatalogModel, catalog, catalog_model
from cwa_engine.hub.sources import HubAccess, SourceKind, name_and_revision, resolve
from cwa_tui.form.places import model_name
from cwa_tui.text import format as fmt

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_ROOMY, _TIGHT = 2.2, 1.2  # times the weights: with all their gradients at once, or with those of one block


class Place(Enum):
    """Where a model is; the nearest first."""

    WARM = "warm"
    DISK = "on disk"
    GUIDE = "guide"


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """One model of the list. Figures are None where they are not known without its files."""

    name: str  # as it is typed
    place: Place
    hub_id: str = ""
    parameters_m: float | None = None
    disk_bytes: int | None = None
    licence: str = ""
    gated: bool = False

    @property
    def facts(self) -> str:
        """`HuggingFaceTB/SmolLM2-135M-Instruct, 135 M weights, Apache-2.0, on disk`."""
        known = [
            self.hub_id or self.name,
            f"{fmt.millions(self.parameters_m)} weights" if self.parameters_m else "",
            self.licence,
            "needs HF_TOKEN" if self.gated else "",
            f"{self.place.value}, {fmt.size(self.disk_bytes)}" if self.disk_bytes else self.place.value,
        ]
        return ", ".join(part for part in known if part)

    def weights_bytes(self, dtype: str, on_accelerator: bool) -> float | None:
        """About what its weights take in memory. `auto` is float32 on a CPU, elsewhere what is stored: two bytes mostly."""
        each = _BYTES.get(dtype, 2 if on_accelerator else 4)
        if self.parameters_m:
            return self.parameters_m * 1e6 * each
        return self.disk_bytes * each / 2 if self.disk_bytes else None


@dataclass(frozen=True, slots=True)
class Room:
    """The memory that a run would find on a device; None where that is not known."""

    device: str = "auto"
    dtype: str = "auto"
    free_bytes: int | None = None

    @classmethod
    def on(cls, device: str, dtype: str, devices: Sequence[DeviceMemory], warm: Sequence[WarmModel]) -> Room:
        """What is free on the device, or would be if its idle models were unloaded. `auto` is the first accelerator."""
        accelerators = [entry for entry in devices if entry.device != "cpu"]
        wanted = {"cuda": "cuda:0", "auto": (accelerators or [*devices])[0].device if devices else ""}.get(
            device, device
        )
        parts = memory_of(wanted)
        found = [entry for entry in devices if entry.device in parts]
        if len(found) < len(parts):
            return cls(wanted or device, dtype)
        idle = sum(model.size_bytes for model in warm if memory_of(model.device) == parts and not model.in_use)
        free = sum(max(0, entry.total_bytes - entry.used_bytes) for entry in found)
        return cls(wanted, dtype, free + idle)

    @property
    def is_accelerator(self) -> bool:
        return not is_cpu(self.device)

    def fits(self, choice: ModelChoice) -> str:
        """`fits`, `tight` or `too large`; empty where it is not known. Roughly, by the size of the weights."""
        needed = choice.weights_bytes(self.dtype, self.is_accelerator)
        if needed is None or self.free_bytes is None:
            return ""
        if needed * _ROOMY <= self.free_bytes:
            return "fits"
        return "tight" if needed * _TIGHT <= self.free_bytes else "too large"

    def said(self, choice: ModelChoice) -> str:
        """The same in a sentence."""
        if not (verdict := self.fits(choice)):
            return ""
        needed = fmt.size(choice.weights_bytes(self.dtype, self.is_accelerator))
        return f"{verdict}: about {needed} of weights, {fmt.size(self.free_bytes)} free on {self.device}"


def model_choices(warm: Sequence[WarmModel], on_disk: Mapping[str, int]) -> list[ModelChoice]:
    """Warm models, models on disk, and the rest of the guide; each once, at the nearest place."""
    found: dict[str, ModelChoice] = {}
    for model in warm:
        entry = catalog_model(model.name)
        found.setdefault(
            entry.name if entry else model.name,
            _choice(model.name, Place.WARM, entry, on_disk.get(model.name), model.parameters / 1e6),
        )
    for hub_id, size_bytes in on_disk.items():
        entry = catalog_model(hub_id)
        found.setdefault(hub_id, _choice(_typed(entry) if entry else hub_id, Place.DISK, entry, size_bytes))
    for entry in catalog():
        found.setdefault(entry.name, _choice(_typed(entry), Place.GUIDE, entry))
    places = list(Place)
    return sorted(found.values(), key=lambda choice: places.index(choice.place))


def _typed(entry: CatalogModel) -> str:
    """The name that is typed for a model of the guide: its Hub id, or the alias of one that a package carries."""
    return entry.alias if entry.gguf_package and entry.alias else entry.name


def _choice(
    name: str,
    place: Place,
    entry: CatalogModel | None,
    disk_bytes: int | None = None,
    parameters_m: float | None = None,
) -> ModelChoice:
    if entry is None:
        return ModelChoice(name, place, name, parameters_m, disk_bytes)
    return ModelChoice(name, place, entry.name, entry.parameters_m, disk_bytes, entry.licence, entry.gated)


class Standing(Enum):
    """What is known of a model's name."""

    HERE = "here"  # warm, on disk, or a path
    THERE = "there"  # left to a daemon on another machine
    DOWNLOAD = "download"  # in the guide
    ASK = "ask"  # the Hub may have it
    WRONG = "wrong"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is known of a name, in a sentence."""

    standing: Standing
    said: str
    hint: str = ""
    repo: str = ""  # the Hub's name for it, where it would be downloaded
    revision: str | None = None


@dataclass(frozen=True)
class KnownModels:
    """What can be known of models from here. With `host` the models are those of another machine."""

    choices: Sequence[ModelChoice] = field(default_factory=lambda: model_choices([], {}))
    access: HubAccess = field(default_factory=HubAccess.from_environment)
    host: str = ""

    def find(self, name: str) -> ModelChoice | None:
        """The model with this name; upper and lower case are the same."""
        entry = catalog_model(name)
        wanted = {name.lower(), entry.name.lower() if entry else ""}
        return next((c for c in self.choices if c.name.lower() in wanted or c.hub_id.lower() in wanted), None)

    def near(self, typed: str, limit: int = 5) -> tuple[str, ...]:
        """Names that hold what is typed, then names that look like it. Nothing is near a path."""
        name = typed.strip().partition("@")[0].rstrip("/")
        if not name or name.startswith(("/", ".", "~")):
            return ()
        names = [choice.name for choice in self.choices if name.lower() in choice.name.lower()]
        names += near_names(name, [choice.name for choice in self.choices])
        return tuple(other for other in dict.fromkeys(names) if other != typed.strip())[:limit]

    def verdict(self, typed: str, revision: str | None = None) -> Verdict:
        """What is known of a name and a revision, without a look at the Hub."""
        try:
            name, revision = name_and_revision(typed, revision)
            name = model_name(name)
            choice = self.find(name)
            if choice and (choice.place is Place.WARM or (choice.place is Place.DISK and self._has(choice, revision))):
                return Verdict(Standing.HERE, choice.facts)
            if self.host:
                return self._elsewhere(choice)
            source = resolve(name)
        except CwaError as error:
            return Verdict(Standing.WRONG, error.message, error.hint)
        if source.kind is not SourceKind.HUB:
            return self._local(Path(source.location), source.kind)
        return self._on_hub(source.location, revision, choice)

    def _has(self, choice: ModelChoice, revision: str | None) -> bool:
        """Whether the cache holds a model's revision."""
        folder = self.access.cache / f"models--{choice.hub_id.replace('/', '--')}"
        return not revision or (folder / "refs" / revision).exists() or (folder / "snapshots" / revision).exists()

    def _elsewhere(self, choice: ModelChoice | None) -> Verdict:
        said = f"{choice.facts}, on {self.host}" if choice else f"not in the guide: looked for on {self.host}"
        return Verdict(Standing.THERE, said)

    def _local(self, path: Path, kind: SourceKind) -> Verdict:
        if kind is SourceKind.FOLDER and not (path / "config.json").exists() and not any(path.glob("*.gguf")):
            return Verdict(Standing.WRONG, f"{path} has no config.json", "give the folder that holds the model's files")
        return Verdict(Standing.HERE, f"the {'folder' if kind is SourceKind.FOLDER else 'GGUF file'} {path}")

    def _on_hub(self, repo: str, revision: str | None, choice: ModelChoice | None) -> Verdict:
        what = f"{repo} with the revision {revision}" if revision else repo
        if self.access.offline:
            return Verdict(Standing.WRONG, f"{what} is not on disk", "HF_HUB_OFFLINE is set: it cannot be downloaded")
        if choice is None:
            said = f"{what} is not on disk, nor in the guide: the Hub is asked before the run starts"
            return Verdict(Standing.ASK, said, repo=repo, revision=revision)
        if choice.gated and not self.access.token:
            hint = f"accept its licence at {self.access.endpoint}/{repo}, then set HF_TOKEN"
            return Verdict(Standing.WRONG, f"{what} is not on disk, and needs a token of the Hub", hint)
        about = f"about {fmt.size((choice.parameters_m or 0) * 2e6)}"  # most are stored in two bytes a weight
        return Verdict(Standing.DOWNLOAD, f"{choice.facts}: will be downloaded, {about}", repo=repo, revision=revision)


def matching(choices: Iterable[ModelChoice], typed: str) -> list[ModelChoice]:
    """The models whose name, licence or place holds every word that is typed."""
    words = typed.lower().split()
    return [
        c for c in choices if all(word in f"{c.name} {c.hub_id} {c.licence} {c.place.value}".lower() for word in words)
    ]
