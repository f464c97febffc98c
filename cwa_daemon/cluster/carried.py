"""What a run needs of this machine that another node may lack: its texts travel, its model must be there, and be the same.

Paths of a spec mean this machine. On another node texts are unpacked, and read from where they lie there; the run's files tell
of the paths that the user knows. A local model is looked for under the same path, and what the run says of its files is
compared with those here; of a model of the Hub all nodes must have the commit that this machine has, or else the same one.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cwa_daemon.client import handover
from cwa_engine.base.errors import CwaError, DataError, InvalidInput, ModelBroken, ModelNotFound
from cwa_engine.base.files import write_whole
from cwa_engine.hub.sources import HubAccess, ModelSource, SourceKind, known_hash, resolve
from cwa_engine.records.run_report import RunReport
from cwa_engine.spec import RunSpec

_SHARED = "put it into a folder that all nodes have under the same path"


@dataclass(frozen=True, slots=True)
class CarriedTexts:
    """A file of texts that travels with a run."""

    content: bytes = field(repr=False)
    sha256: str
    name: str
    shown: str  # as the user knows it
    text_column: str | None


def texts_of(spec: RunSpec, most_bytes: int) -> CarriedTexts | None:
    """The texts of a run that are files of this machine; None where any node has them. Raises DataError."""
    found = handover.prepare(spec, True, most_bytes)
    if found is None:
        return None
    with found.file as file:
        file.seek(0)
        return CarriedTexts(file.read(), found.sha256, found.name, found.shown, found.text_column)


def unpacked(texts: CarriedTexts, folder: Path) -> Path:
    """Where carried texts are on this node now. Raises DataError."""
    path = folder / texts.sha256 / texts.name
    try:
        if not path.is_file():
            if hashlib.sha256(texts.content).hexdigest() != texts.sha256:
                raise DataError(f"the texts of {texts.shown} did not come as they were sent", hint="try again")
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_whole(path, texts.content, 0o600)
    except OSError as error:
        raise DataError(f"the texts of {texts.shown} cannot be kept: {error}", hint="make room on that node") from error
    return path


def read_from(spec: RunSpec, texts: CarriedTexts, path: Path) -> RunSpec:
    """The spec by which a run reads its texts where they were unpacked."""
    read_there = {"data_file": path, "data_name": texts.shown, "dataset": None, "text_column": texts.text_column}
    return spec.model_copy(update=read_there)


def local_model(name: str) -> ModelSource | None:
    """A model that is files of this machine; None for one of the Hub, and for one that only other nodes may have."""
    try:
        source = resolve(name)
    except CwaError:
        return None
    return None if source.kind is SourceKind.HUB else source


def check_paths(spec: RunSpec, model_path: str, host: str) -> None:
    """Raises ModelNotFound and InvalidInput, naming the node, where a path of this machine is not there."""
    if model_path and not Path(model_path).exists():
        raise ModelNotFound(
            f"{host} has no {model_path}, which is {spec.model} on the machine that asks for it",
            hint=f"{_SHARED}, or name the model by its Hub id",
        )
    if spec.task_path is not None and not spec.task_path.exists():
        raise InvalidInput(f"{host} has no {spec.task_path}, which the tasks are read from", hint=_SHARED)


class SameModels:
    """That every node has the same files under a model's name. One for each driver; its methods may be called by any thread."""

    def __init__(self) -> None:
        self._one_at_a_time = threading.Lock()
        self._commits: dict[tuple[str, str | None], str] = {}
        self._files: dict[str, Mapping[str, str]] = {}  # of models that are not here, as the first node has them

    def compare(self, report: RunReport, host: str, away: bool) -> None:
        """Compare what a run says of its model with what is here. Raises ModelBroken, naming the node."""
        model = report.model
        if model.kind != SourceKind.HUB:
            if away:  # else they are the same files
                self._compare_files(report.spec.model, model.files, host)
        elif model.revision:
            self._compare_commit(model.location, report.spec.revision, model.revision, host)

    def _compare_files(self, model: str, files: Mapping[str, str], host: str) -> None:
        """By the name of the model: its path may lead to another place on that node."""
        there = "on this machine"
        with self._one_at_a_time:
            if source := local_model(model):
                path = Path(source.location)
                folder = path if path.is_dir() else path.parent
                here: Mapping[str, str] = {
                    name: known_hash(folder / name) for name in files if (folder / name).is_file()
                }
            else:
                here, there = self._files.setdefault(model, files), "on another node"
        if other := sorted(name for name in files if here.get(name) != files[name]):
            raise ModelBroken(
                f"{', '.join(other)} of {model} is another file on {host} than {there}",
                hint=f"{_SHARED}, or copy the model there anew",
            )

    def _compare_commit(self, repo: str, revision: str | None, commit: str, host: str) -> None:
        with self._one_at_a_time:
            here = HubAccess.from_environment().commit_of(repo, revision or "main")
            expected = self._commits.setdefault((repo, revision), here or commit)
        if expected != commit:
            raise ModelBroken(
                f"{host} has commit {commit[:12]} of {repo}, and other runs or this machine have {expected[:12]}",
                hint=f"give --revision {expected}, or have that node download it anew",
            )
