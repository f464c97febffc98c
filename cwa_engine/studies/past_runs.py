"""What runs of this machine have taken: of these the time and the memory of others are estimated. torch-free."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cwa_engine.base.errors import CwaError
from cwa_engine.records.reading import MANIFEST_KEYS, SUMMARY_KEYS, parse_map
from cwa_engine.spec import RunSpec, parse_spec
from cwa_engine.studies.passes import Sequences, passes_of

MOST_READ = 200  # the latest run folders that are looked at
MOST_APART = 5  # times as many weights, up to which time goes about with the number of weights
_NOT_PASSES = ("load", "save")


@dataclass(frozen=True, slots=True)
class PastRun:
    """A finished run: what it did, and what that took."""

    run_id: str
    spec: RunSpec
    model: str
    device: str
    dtype: str
    parameters: int
    sequences: Sequences
    seconds: float  # without loading the model and saving the files
    peak_memory_bytes: int

    @property
    def seconds_a_pass(self) -> float:
        return self.seconds / passes_of(self.spec, self.sequences)


def past_runs(runs: Path) -> list[PastRun]:
    """The latest runs whose time is that of all their passes: those that took scores of others are left out."""
    if not runs.is_dir():
        return []
    folders = sorted((path for path in runs.iterdir() if path.is_dir() and path.name[0] != "."), reverse=True)
    return list(_read(folders[:MOST_READ]))


def _read(folders: Sequence[Path]) -> Iterator[PastRun]:
    for folder in folders:
        try:
            summary = parse_map(folder, "summary.json", (folder / "summary.json").read_text("utf-8"), SUMMARY_KEYS)
            manifest = parse_map(folder, "manifest.json", (folder / "manifest.json").read_text("utf-8"), MANIFEST_KEYS)
            texts, model, timings = summary["texts"], summary["model"], summary["timings"]
            run = PastRun(
                run_id=folder.name,
                spec=parse_spec(manifest["spec"]),
                model=str(model["name"]),
                device=str(model["device"]),
                dtype=str(model["dtype"]),
                parameters=int(model["parameters"]),
                sequences=Sequences(int(texts["scoring"]), int(texts["damage"] or texts["evaluation"])),
                seconds=sum(float(took) for stage, took in timings.items() if stage not in _NOT_PASSES),
                peak_memory_bytes=int(summary["peak_memory_bytes"]),
            )
        except (OSError, CwaError, ValueError, KeyError, TypeError, json.JSONDecodeError):
            continue  # damaged, or of an early version: there is less to estimate from
        if not summary.get("scores_from") and run.seconds > 0 and passes_of(run.spec, run.sequences):
            yield run


@dataclass(frozen=True)
class Pace:
    """Seconds of a pass over one sequence, by the runs that were looked at."""

    runs: Sequence[PastRun]

    def seconds_a_pass(self, model: str, parameters: int | None) -> tuple[float, Sequence[PastRun]] | None:
        """For a model, by its own runs, else by those of others of about its size in proportion to their weights.

        None where neither tells: of models that are far smaller the overhead is measured, and not the passes.
        """
        if own := [run for run in self.runs if run.model == model]:
            return statistics.median(run.seconds_a_pass for run in own), own
        if parameters is None:
            return None
        alike = [run for run in self.runs if parameters / MOST_APART <= run.parameters <= parameters * MOST_APART]
        if not alike:
            return None
        return statistics.median(run.seconds_a_pass / run.parameters for run in alike) * parameters, alike
