"""What a study will cost, before it runs: nothing is loaded, and the network is not asked. torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cwa_engine.base.places import runs_folder
from cwa_engine.base.plain import JsonMap
from cwa_engine.guide.catalog import catalog_model
from cwa_engine.named_runners import named_at
from cwa_engine.records.checksums import MANIFEST
from cwa_engine.records.run_id import short_id
from cwa_engine.spec import RunSpec
from cwa_engine.studies.folder import StudyFolder
from cwa_engine.studies.identity import Identity, identity_of
from cwa_engine.studies.passes import Sequences, passes_of, sequences_of
from cwa_engine.studies.past_runs import Pace, PastRun, past_runs
from cwa_engine.studies.registry import with_needs
from cwa_engine.studies.study import Cell, Study, cells_of

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_MOST_NAMED = 3  # runs that an estimate names


@dataclass(frozen=True, slots=True)
class CellPlan:
    """A cell, and what it costs."""

    cell: Cell
    passes: int | None  # forward passes over one sequence; a backward pass counts two. None where texts are not counted
    seconds: float | None  # None where no run of this machine tells
    memory_bytes: int | None  # None where neither a run nor the guide tells
    done: bool  # a finished run of the same content is there


@dataclass(frozen=True, slots=True)
class StudyPlan:
    """All cells, in the order in which they run, and where the figures come from."""

    cells: tuple[CellPlan, ...]
    passes_from: str
    seconds_from: str  # in words: from which runs the time is estimated, or why it is not known
    memory_from: str

    @property
    def passes(self) -> int | None:
        """Of the cells that are not done; None where that of one is not known."""
        found = [entry.passes for entry in self.cells if not entry.done]
        return None if None in found else sum(passes for passes in found if passes is not None)

    @property
    def seconds(self) -> float | None:
        """Of the cells that are not done, one after the other; None where that of one is not known."""
        found = [entry.seconds for entry in self.cells if not entry.done]
        return None if None in found else sum(seconds for seconds in found if seconds is not None)

    def to_plain(self) -> JsonMap:
        cells = [
            {
                "cell": entry.cell.number,
                "label": entry.cell.label,
                "passes": entry.passes,
                "seconds": entry.seconds,
                "memory_bytes": entry.memory_bytes,
                "done": entry.done,
            }
            for entry in self.cells
        ]
        sources = {name: getattr(self, name) for name in ("passes_from", "seconds_from", "memory_from")}
        return {"cells": cells, "passes": self.passes, "seconds": self.seconds, **sources}


def plan_study(
    study: Study, root: Path | None = None, runs: Path | None = None, elsewhere: bool = False, where: str = ""
) -> StudyPlan:
    """What each cell costs, and which are done already.

    `root` is the folder of studies, and `runs` that of the runs that tell of time and memory, if not those of the state
    folder. `elsewhere`: it will run on another machine, of which these tell nothing. `where` its runs will be, as in
    `Runner.where`: a run that was made elsewhere is made again. Raises InvalidInput for a study that
    cannot answer its question, and DataError for texts that cannot be read.
    """
    cells = cells_of(with_needs(study))
    found = [] if elsewhere else past_runs(runs or runs_folder())
    pace = Pace(found)
    done = _Done.read(root, runs or runs_folder(), where)
    counted = _Counted({})
    planned, used = [], dict[str, PastRun]()
    for cell in cells:
        sequences = counted.of(cell.spec)
        passes = passes_of(cell.spec, sequences) if sequences else None
        each = pace.seconds_a_pass(cell.spec.model, _parameters(cell.spec, found))
        if each:
            used |= {run.run_id: run for run in each[1]}
        seconds = passes * each[0] if passes is not None and each else None
        is_done = not elsewhere and done.has(identity_of(cell.spec), study)
        planned.append(CellPlan(cell, passes, seconds, _memory(cell.spec, found), is_done))
    return StudyPlan(tuple(planned), _passes_words(planned), _seconds_words(planned, used, elsewhere), _MEMORY_WORDS)


@dataclass(frozen=True)
class _Counted:
    """How many sequences there are in texts that were counted once."""

    found: dict[object, Sequences | None]

    def of(self, spec: RunSpec) -> Sequences | None:
        damaged_less = spec.fast_perturbation and spec.damages
        texts = (spec.data_file, spec.dataset, spec.text_column, spec.eval_limit, spec.packed, damaged_less)
        if texts not in self.found:
            self.found[texts] = sequences_of(spec)
        return self.found[texts]


@dataclass(frozen=True)
class _Done:
    """What studies have run to the end, by identity. One whose model was not known counts for its own study alone."""

    found: Mapping[Identity, str]  # -> hash of the study

    @classmethod
    def read(cls, root: Path | None, runs: Path, where: str) -> _Done:
        found = {}
        place = Path(where) if where.startswith("/") else runs
        named = named_at(where)
        stays = named is not None and bool(named.options)  # its folders, in a store
        for folder in StudyFolder.all(root):
            if folder.where != where:
                continue
            for submission in folder.journal.read()[0].values():
                is_here = submission.run_id and (place / submission.run_id / MANIFEST).is_file()
                if is_here or (stays and submission.ended == "done"):
                    found[submission.identity] = folder.study.sha256()
        return cls(found)

    def has(self, identity: Identity, study: Study) -> bool:
        known = self.found.get(identity)
        return known is not None and (bool(identity.model) or known == with_needs(study).sha256())


def _parameters(spec: RunSpec, found: Sequence[PastRun]) -> int | None:
    """Of a model by an earlier run of it, else as the guide says; None where neither knows it."""
    own = next((run.parameters for run in found if run.model == spec.model), None)
    entry = catalog_model(spec.model)
    return own or (round(entry.parameters_m * 1e6) if entry else None)


def _memory(spec: RunSpec, found: Sequence[PastRun]) -> int | None:
    """The largest that runs of the model took in this dtype, else its weights alone."""
    own = [run for run in found if run.model == spec.model and spec.dtype in ("auto", run.dtype)]
    if own:
        return max(run.peak_memory_bytes for run in own)
    parameters = _parameters(spec, found)
    return parameters * _BYTES.get(spec.dtype, 4) if parameters else None


def _passes_words(planned: Sequence[CellPlan]) -> str:
    said = (
        "over one sequence, a backward pass as two, of baseline, scoring and damage with its controls; "
        "questions beside are not counted, and kept scores take none"
    )
    if any(entry.passes is None for entry in planned):
        said += "; unknown where the number of sequences needs a dataset or the tokenizer"
    return said


def _seconds_words(planned: Sequence[CellPlan], used: Mapping[str, PastRun], elsewhere: bool) -> str:
    if elsewhere:
        return "unknown: runs of this machine tell nothing of another one"
    if not used:
        return "unknown: no finished run of this machine is of these models, or of others of about their size"
    named = ", ".join(short_id(run_id) for run_id in list(used)[:_MOST_NAMED])
    more = f" and {len(used) - _MOST_NAMED} more" if len(used) > _MOST_NAMED else ""
    models = {entry.cell.spec.model for entry in planned if entry.seconds is not None}
    others = models - {run.model for run in used.values()}
    way = "; of models without a run by those of about their size, in proportion to the weights" if others else ""
    return (
        f"the median of {len(used)} finished runs of this machine ({named}{more}) by pass{way}; longer texts take longer, "
        "loading is not counted"
    )


_MEMORY_WORDS = (
    "the largest that a finished run of the model took, else its weights alone; `cwtool plan` counts it exactly"
)
