"""A finished run as its files tell it, typed: what command line, notebook and studies read. torch-free.

report = open_run("runs/20261123-143205-gpt2-k7q2")
report.topk("grad_x_weight")[0].target
report.verdicts[0].sentence
report.frame("damage")
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from cwa_engine.base.errors import InvalidInput, NotFound, OutputError, OutputTaken, did_you_mean
from cwa_engine.base.files import user_path, write_folder
from cwa_engine.base.frames import frame_of
from cwa_engine.base.places import runs_folder
from cwa_engine.base.plain import from_plain
from cwa_engine.base.table import Row, Table
from cwa_engine.questions import ablation, critical_set, interactions, spike_removal, stability
from cwa_engine.questions import tasks as harness_tasks
from cwa_engine.questions.ablation import Ablation
from cwa_engine.questions.critical_set import CriticalSet
from cwa_engine.questions.fidelity import Fidelity, Prediction, fidelity_table
from cwa_engine.questions.interactions import Interaction
from cwa_engine.questions.spike_removal import SpikeRemoval
from cwa_engine.questions.stability import Agreement
from cwa_engine.questions.tasks import TaskComparison, TaskScore
from cwa_engine.records import tables
from cwa_engine.records.checksums import MANIFEST, SUMS, altered_error, check_run, read_checked
from cwa_engine.records.export import ModelRecord, RunRecord, run_files
from cwa_engine.records.reading import MANIFEST_KEYS, SUMMARY_KEYS, parse_map, unreadable
from cwa_engine.records.run_summary import RunSummary, summary_from_plain
from cwa_engine.rich_display import RichDisplay
from cwa_engine.rows import (
    Baseline,
    ControlDraw,
    DamagePoint,
    NumericalFloor,
    RankedParameter,
    Ranking,
    ScoreBin,
    Separation,
    SequenceNll,
    Spike,
    StoredParameter,
    TextUse,
    TopWeight,
    Verdict,
)
from cwa_engine.spec import RunSpec, parse_spec

if TYPE_CHECKING:
    import pandas

SUMMARY, LOG = "summary.json", "log.txt"


class FileSource(Protocol):
    """Where the files of a run are."""

    def read(self, name: str) -> bytes:
        """The content of a file, which is what the run wrote. Raises NotFound, and Altered where it is not."""


@dataclass(frozen=True)
class FilesInFolder:
    """The files of a run folder; each is compared with its hash when it is read."""

    folder: Path
    fingerprint: str | None

    def read(self, name: str) -> bytes:
        return read_checked(self.folder, name, self.fingerprint)


@dataclass(frozen=True)
class FilesInMemory:
    """The files of a run that may never have been on a disk."""

    contents: Mapping[str, bytes] = field(repr=False)

    def read(self, name: str) -> bytes:
        try:
            return self.contents[name]
        except KeyError:
            raise NotFound(f"the run has no {name}", hint=f"it has {', '.join(self.contents)}") from None


@dataclass(frozen=True)
class RunReport(RichDisplay):
    """A finished run. Two are equal where all their files are.

    Tables are read when they are first asked for. Those that a run did not ask for are empty. Losses are nats per token.
    """

    summary: RunSummary = field(compare=False)
    spec: RunSpec  # what was asked for
    command: str  # the command line that asked for it, or ""
    versions: Mapping[str, str]  # of cwtool, Python and the libraries
    layers: int  # decoder blocks of the model; 0 in runs of early versions, which do not say
    ranked: tuple[RankedParameter, ...] = field(repr=False)  # what metrics chose from; empty in runs of early versions
    stored: tuple[StoredParameter, ...] = field(
        repr=False
    )  # those with a ranked weight; empty in runs of early versions
    hashes: Mapping[str, str]  # of each table: file name -> sha256
    fingerprint: str | None  # sha256 of SHA256SUMS, which stands for all files; None for a run of an early version
    files: FileSource = field(repr=False, compare=False)
    folder: Path | None = field(default=None, compare=False)  # None for a run that is in memory

    @property
    def run_id(self) -> str:
        return self.summary.run_id

    @property
    def model(self) -> ModelRecord:
        """Which weights were analysed."""
        return self.summary.model

    @property
    def texts(self) -> TextUse:
        """Which texts were used for what."""
        return self.summary.texts

    @property
    def baseline(self) -> Baseline:
        """The intact model on the evaluation texts."""
        return self.summary.baseline

    @property
    def floor(self) -> NumericalFloor | None:
        """Differences below which mean nothing; None where nothing was changed."""
        return self.summary.numerical_floor

    @property
    def separations(self) -> tuple[Separation, ...]:
        """Every critical set beside each of its controls."""
        return self.summary.separations

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """Whether each critical set is distinguishable from its controls."""
        return self.summary.verdicts

    @property
    def fidelity(self) -> tuple[Fidelity, ...]:
        """How well each metric predicts the loss change of zeroing one unit."""
        return self.summary.fidelity

    @cached_property
    def rankings(self) -> tuple[Ranking, ...]:
        """Every ranking, all its places."""
        heads = self.summary.rankings
        return tuple(
            Ranking(head.metric, self._rows(tables.topk_table(head.metric)), structure=head.structure) for head in heads
        )

    @property
    def metrics(self) -> tuple[str, ...]:
        """What the run ranked by."""
        return tuple(head.metric for head in self.summary.rankings)

    def topk(self, metric: str | None = None) -> tuple[TopWeight, ...]:
        """The ranking by a metric, best first; without one the run's first. Raises NotFound where there is none."""
        if not self.metrics or metric not in (None, *self.metrics):
            known = ", ".join(self.metrics) or "none"
            raise NotFound(f"run {self.run_id} has no ranking by '{metric}'", hint=f"it has: {known}")
        return next(ranking.weights for ranking in self.rankings if metric in (None, ranking.metric))

    @cached_property
    def scores(self) -> tuple[ScoreBin, ...]:
        """How many of all units have a score of what size, by metric; empty in runs of early versions."""
        return self._rows(tables.SCORES)

    @cached_property
    def damage(self) -> tuple[DamagePoint, ...]:
        """Every critical set and every draw of a control, measured."""
        return self._rows(tables.PERTURBATION)

    @cached_property
    def evaluations(self) -> tuple[SequenceNll, ...]:
        """The loss of every sequence in every case; the largest of the tables."""
        return self._rows(tables.EVALUATION)

    @cached_property
    def controls(self) -> tuple[ControlDraw, ...]:
        """What each draw of a control consists of."""
        return self._rows(tables.CONTROLS)

    @cached_property
    def interactions(self) -> tuple[Interaction, ...]:
        """Each unit of a critical set alone, and the set without it."""
        return self._rows(interactions.TABLE)

    @cached_property
    def stability(self) -> tuple[Agreement, ...]:
        """How far rankings by other texts agree, pair by pair; `summary.stability` has the means."""
        return self._rows(stability.TABLE)

    @cached_property
    def predictions(self) -> tuple[Prediction, ...]:
        """The sampled units of `fidelity`, with the scores of its metrics."""
        return self._rows(fidelity_table(row.metric for row in self.fidelity))

    @cached_property
    def ablations(self) -> tuple[Ablation, ...]:
        """The candidates of the exact ranking."""
        return self._rows(ablation.TABLE)

    @cached_property
    def critical_set(self) -> CriticalSet | None:
        """The smallest set found that multiplies perplexity by a factor."""
        found = self.summary.critical_set
        return found and dataclasses.replace(found, steps=self._rows(critical_set.TABLE))

    @cached_property
    def spikes(self) -> tuple[Spike, ...]:
        """What each weight of a ranking by spikes makes of its spike."""
        return self._rows(spike_removal.SPIKES)

    @cached_property
    def spike_removal(self) -> SpikeRemoval | None:
        """The weights that were zeroed until no spike was left."""
        found = self.summary.spike_removal
        return found and dataclasses.replace(found, steps=self._rows(spike_removal.TABLE))

    @cached_property
    def task_scores(self) -> tuple[TaskScore, ...]:
        """What every document of every task scores in every case."""
        return self._rows(harness_tasks.TABLE)

    @property
    def task_comparisons(self) -> tuple[TaskComparison, ...]:
        """Every case of every task beside the intact model, and critical sets beside their controls."""
        return self.summary.task_comparisons

    @property
    def log(self) -> tuple[str, ...]:
        """The lines of the run's log."""
        return tuple(self.files.read(LOG).decode().splitlines())

    def frame(self, name: str, metric: str | None = None) -> pandas.DataFrame:
        """Rows as a pandas frame, a column for each field: frame("topk", "grad_x_weight"), frame("damage").

        Names are those of the attributes that hold rows. Raises InvalidInput for another name and where pandas is not
        installed, NotFound where there is no ranking by `metric`.
        """
        if name == "topk":
            return frame_of(TopWeight, self.topk(metric))
        if name not in _FRAMES:
            raise InvalidInput(
                f"a run has no rows called '{name}'",
                hint=did_you_mean(name, _FRAMES) or f"it has: topk, {', '.join(_FRAMES)}",
            )
        frame = frame_of(_FRAMES[name], getattr(self, name))
        if name == "predictions":  # a column for each metric's score, as in fidelity.csv
            for place, row in enumerate(self.fidelity):
                frame[f"score_{row.metric}"] = [prediction.scores[place] for prediction in self.predictions]
            return frame.drop(columns="scores")
        return frame

    def save(self, folder: str | Path) -> Path:
        """Write all files of the run into a new folder, whole or not at all; `open_run` reads them back.

        Raises OutputError for a folder that exists or cannot be written.
        """
        names = [*self.hashes, MANIFEST, LOG, SUMMARY, *([SUMS] if self.fingerprint else [])]
        target = user_path(str(folder), "the folder")
        if target.exists():
            raise OutputTaken(f"{target} exists", hint="give a folder that does not exist yet")
        try:
            write_folder(target, ((name, self.files.read(name)) for name in names))
        except OSError as error:
            raise OutputError(f"{target} cannot be written: {error.strerror}", hint="give another folder") from error
        return target

    def _rows(self, table: Table[Row]) -> tuple[Row, ...]:
        if table.name not in self.hashes:
            return ()
        try:
            return tuple(table.from_bytes(self.files.read(table.name)))
        except ValueError as error:
            raise unreadable(self.folder or Path(self.run_id), table.name, str(error)) from error


def open_run(run: str | Path, fingerprint: str | None = None) -> RunReport:
    """A finished run, by its folder or by its run id among those of the state folder.

    Every file is compared with its hash in SHA256SUMS, and that list with `fingerprint` where it is given: the sha256 of
    SHA256SUMS as it was published. Raises NotFound where there is no such run, and Altered for one of which a file is not
    what the run wrote.

        report = open_run("results/gpt2")
        report.topk()[0].target
    """
    folder = _folder_of(run)
    check = check_run(folder, fingerprint)
    if MANIFEST not in check.hashes and SUMMARY not in check.hashes:
        raise NotFound(f"{folder} holds no run", hint="give a run id, or a folder with the files of a run")
    if check.altered:
        raise altered_error(folder.name, check.altered)
    return report_from(FilesInFolder(folder, check.fingerprint), check.fingerprint, folder)


def report_of(record: RunRecord) -> RunReport:
    """The report of a run that has just ended: what `open_run` gives of the files it would write."""
    contents = dict(run_files(record))
    return report_from(FilesInMemory(contents), hashlib.sha256(contents[SUMS]).hexdigest())


def report_from(files: FileSource, fingerprint: str | None, folder: Path | None = None) -> RunReport:
    """A report made of summary.json and manifest.json; all else is read when it is asked for. Raises NotFound, Altered."""
    place = folder or Path()
    manifest = parse_map(place, MANIFEST, files.read(MANIFEST).decode("utf-8", "replace"), MANIFEST_KEYS)
    summary = parse_map(place, SUMMARY, files.read(SUMMARY).decode("utf-8", "replace"), SUMMARY_KEYS)
    try:
        return RunReport(
            summary=summary_from_plain(summary),
            spec=parse_spec(manifest["spec"]),
            command=str(manifest.get("command", "")),
            versions=from_plain(dict[str, str], manifest.get("versions", {})),
            layers=from_plain(int, manifest.get("layers", 0)),
            ranked=from_plain(tuple[RankedParameter, ...], manifest.get("ranked", [])),
            stored=from_plain(tuple[StoredParameter, ...], manifest.get("stored", [])),
            hashes=from_plain(dict[str, str], manifest["tables"]),
            fingerprint=fingerprint,
            files=files,
            folder=folder,
        )
    except ValueError as error:
        raise unreadable(place, f"{SUMMARY} or {MANIFEST}", str(error)) from error


def _folder_of(run: str | Path) -> Path:
    """A folder that is there, or that of a run id."""
    given = user_path(str(run), "the run")
    if given.is_dir():
        return given
    runs = runs_folder()
    if (runs / str(run)).is_dir() and "/" not in str(run):
        return runs / str(run)
    known = [entry.name for entry in runs.iterdir() if entry.is_dir()] if runs.is_dir() else []
    hint = did_you_mean(str(run), known) or f"runs are in {runs}; `cwtool results` lists them"
    raise NotFound(f"there is no folder and no run '{run}'", hint=hint)


_FRAMES: Mapping[str, type] = {
    "scores": ScoreBin,
    "damage": DamagePoint,
    "separations": Separation,
    "verdicts": Verdict,
    "evaluations": SequenceNll,
    "controls": ControlDraw,
    "interactions": Interaction,
    "stability": Agreement,
    "fidelity": Fidelity,
    "predictions": Prediction,
    "ablations": Ablation,
    "spikes": Spike,
    "task_scores": TaskScore,
    "task_comparisons": TaskComparison,
}
