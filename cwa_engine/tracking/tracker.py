"""Finished runs told to trackio or to Weights & Biases, which have the same calls: init, log, finish. torch-free.

Nothing is told unless that was asked for. A run is told after it has ended, from its files: a tracker cannot slow it down or
change what it finds, and where it fails the run is as it was.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePath
from types import ModuleType
from typing import Any

from cwa_engine.base.errors import InvalidInput, TrackingFailed, did_you_mean
from cwa_engine.base.plain import JsonMap
from cwa_engine.records.run_report import RunReport

TRACKERS = {"trackio": 'pip install "cwtool[track]"', "wandb": "pip install wandb"}  # -> how it is installed
PROJECT = "cwtool"


@dataclass(frozen=True, slots=True)
class Tracker:
    """Which library is told, and under which project."""

    library: str  # a name of TRACKERS
    project: str = PROJECT


def tracker_typed(text: str | None) -> Tracker | None:
    """`trackio`, `wandb:PROJECT`; None for nothing. Raises InvalidInput for others, and for one that is not installed."""
    if not text:
        return None
    library, colon, project = text.partition(":")
    if library not in TRACKERS:
        hint = did_you_mean(library, TRACKERS) or f"there are: {', '.join(TRACKERS)}"
        raise InvalidInput(f"'{library}' is no tracker", hint=hint)
    if colon and not project.strip():
        raise InvalidInput(f"'{text}' names no project", hint=f"give {library} or {library}:PROJECT")
    if importlib.util.find_spec(library) is None:
        raise InvalidInput(f"{library} is not installed", hint=f"`{TRACKERS[library]}`")
    return Tracker(library, project.strip() or PROJECT)


def track(report: RunReport, tracker: Tracker, study: str = "") -> None:
    """Tell a tracker of a finished run: spec and circumstances as config, damage at each k as step, numbers and verdicts.

    Raises TrackingFailed with the reason, whatever the library raises.
    """
    try:
        # A library may greet on standard output, where a command prints JSON.
        with contextlib.redirect_stdout(sys.stderr):
            _tell(importlib.import_module(tracker.library), report, tracker.project, study)
    except Exception as error:  # anything may go wrong in a library that calls a server
        raise TrackingFailed(
            f"{tracker.library} was not told of {report.run_id}: {type(error).__name__}: {error}",
            hint="the run is saved all the same",
        ) from error


def _tell(library: ModuleType, report: RunReport, project: str, study: str) -> None:
    library.init(project=project, name=report.run_id, config=config_of(report, study))
    try:
        for k, figures in damage_by_k(report):
            library.log(figures, step=k)
        library.log(numbers_of(report))
    finally:
        library.finish()


def config_of(report: RunReport, study: str = "") -> JsonMap:
    """What the run was asked, and of what: its spec, the model, the texts, versions. Of a path its last part alone."""
    spec = {name: _without_folder(value) for name, value in report.spec.model_dump(mode="json").items()}
    spec.pop("output")
    model, texts = report.model, report.texts
    return {
        **spec,
        "run_id": report.run_id,
        "fingerprint": report.fingerprint,
        "model_revision": model.revision,
        "model_dtype": model.dtype,
        "model_parameters": model.parameters,
        "device_name": model.device_name,
        "texts": _without_folder(texts.source),
        "texts_sha256": texts.sha256,
        "protocol": report.baseline.protocol,
        "versions": dict(report.versions),
        **({"study": study} if study else {}),
    }


def damage_by_k(report: RunReport) -> Iterator[tuple[int, dict[str, float]]]:
    """(k, figures of all critical sets of k weights and of their worst control), in the order of k. Losses in nats per token.

    What is not finite is left out: a tracker has no number for a model that collapsed.
    """
    groups = [group for group in report.summary.damage if group.critical]
    for k in sorted({group.k for group in groups}):
        found: dict[str, float | None] = {}
        for group in (group for group in groups if group.k == k and group.critical):
            point, worst = group.critical, group.worst_control
            assert point is not None
            place = f"{group.metric}/{group.perturbation}"
            found[f"{place}/delta_nll"] = point.delta_nll
            found[f"{place}/delta_nll_low"] = point.delta_low
            found[f"{place}/delta_nll_high"] = point.delta_high
            found[f"{place}/perplexity_ratio"] = point.perplexity_ratio
            found[f"{place}/kl"] = point.kl
            found[f"{place}/worst_control_delta_nll"] = worst.largest if worst else None
        yield k, {name: value for name, value in found.items() if value is not None and _is_finite(value)}


def numbers_of(report: RunReport) -> dict[str, Any]:
    """What a run comes to: the intact model, fidelity, and each verdict in a word and in its sentence."""
    baseline = report.baseline
    found: dict[str, Any] = {"baseline/perplexity": baseline.perplexity, "baseline/nll": baseline.nll}
    for fidelity in report.fidelity:
        found[f"{fidelity.metric}/fidelity_spearman"] = fidelity.spearman
    for verdict in report.verdicts:
        place = f"{verdict.metric}/{verdict.perturbation}/k{verdict.k}"
        found |= {f"{place}/outcome": verdict.outcome, f"{place}/verdict": verdict.sentence}
    return {name: value for name, value in found.items() if isinstance(value, str) or _is_finite(value)}


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _without_folder(value: Any) -> Any:
    return PurePath(value).name if isinstance(value, str) and value.startswith(("/", "~")) else value
