"""A tiny model's whole run, made once: its events, its report and its files, for a daemon made of lists."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

from cwa_engine.base.events import Event, Inspected, to_dict
from cwa_engine.inspection import weight_facts
from cwa_engine.models.loading import LoadedModel
from cwa_engine.pipeline import analyze
from cwa_engine.records.export import ModelRecord, RunRecord, run_files
from cwa_engine.records.run_report import RunReport, report_of
from cwa_engine.spec import RunSpec
from tests.engine.conftest import TEXTS, wrap
from tests.models import tiny_model
from tests.tui.fake_client import FakeDaemon

RUN_ID = "20261123-180000-tiny-k7q2"


@functools.cache
def tiny() -> LoadedModel:
    return wrap(tiny_model("llama"))


@functools.cache
def _made() -> tuple[RunSpec, list[dict[str, Any]], RunReport, dict[str, bytes]]:
    texts = Path(tempfile.mkdtemp()) / "texts.txt"
    texts.write_text("\n\n".join(TEXTS) + "\n")
    spec = RunSpec(
        model="tiny", data_file=texts, metrics=("grad_x_weight", "magnitude"), topk=(1, 4), individually=True, control_seeds=2,
        stability="halves", fidelity=4, controls=("random", "random_matched"), dtype="float32", device="cpu",
    )  # fmt: skip
    told: list[Event] = []
    result = analyze(tiny(), spec, told.append)
    model = ModelRecord("tiny", "/nowhere", "folder", None, {}, "float32", "cpu", "", result.parameters, ())
    record = RunRecord(RUN_ID, spec, "cwtool run", model, result, 1.5, ["one line"])
    return spec, [to_dict(event) for event in told], report_of(record), dict(run_files(record))


def finished(daemon: FakeDaemon, run_id: str = RUN_ID) -> RunReport:
    """Let the daemon have the run as one that is done."""
    spec, events, report, files = _made()
    daemon.run(run_id, spec)
    for event in events:
        daemon.say(run_id, **event)
    daemon.reports[run_id] = report
    daemon.files |= {(run_id, name): content for name, content in files.items()}
    daemon.end(run_id)
    return report


def looked_at(daemon: FakeDaemon, run_id: str, target: str) -> None:
    """Let a job that was asked to look at a weight tell what is there."""
    daemon.say(run_id, "state", state="running", error=None)
    daemon.say(run_id, **to_dict(Inspected(weight_facts(tiny(), target))))
    daemon.end(run_id)
