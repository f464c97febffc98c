"""A run as one row: its model, its texts, what was asked for, its baseline and its versions, side by side. torch-free."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from cwa_engine.base.plain import JsonMap
from cwa_engine.queries.columns import TEXT, columns_of, sql_type
from cwa_engine.records.export import ModelRecord
from cwa_engine.records.run_report import RunReport
from cwa_engine.rows import Baseline, TextUse, to_plain
from cwa_engine.spec import RunSpec

_OWN: Mapping[str, str] = {
    "started": "TIMESTAMP",  # UTC
    "folder": TEXT,
    "fingerprint": TEXT,  # sha256 of SHA256SUMS
    "command": TEXT,
    "layers": "BIGINT",
    "eligible": "BIGINT",
    "numerical_floor": "DOUBLE",  # nats per token
    "gradients": TEXT,
    "batch_size": "BIGINT",
    "peak_memory_bytes": "BIGINT",
    "seconds": "DOUBLE",  # of all stages together
    "versions": sql_type(dict[str, str]),
}
_RENAMED = {"name": "model", "files": "model_files", "notes": "model_notes"}  # fields of ModelRecord
_TEXTS, _BASELINE = "texts_", "baseline_"  # before the fields of TextUse and Baseline
_ASKED = "asked_"  # before an option of which the run tells what it came to: the dtype, the revision


def _model_columns() -> dict[str, str]:
    return {_RENAMED.get(name, name): kind for name, kind in columns_of(ModelRecord).items()}


def _found_columns() -> dict[str, str]:
    texts = {_TEXTS + name: kind for name, kind in columns_of(TextUse).items()}
    baseline = {_BASELINE + name: kind for name, kind in columns_of(Baseline).items()}
    return {**_OWN, **_model_columns(), **texts, **baseline}


_FOUND = _found_columns()
_OPTIONS = {name: sql_type(field.annotation) for name, field in RunSpec.model_fields.items()}
RUN_COLUMNS: Mapping[str, str] = {
    **_FOUND,
    **{_ASKED + name if name in _FOUND else name: kind for name, kind in _OPTIONS.items()},
}


def run_row(report: RunReport) -> Iterable[JsonMap]:
    """The one row of a run, all columns but its run id. What is not finite is None."""
    summary, floor = report.summary, report.floor
    model = {_RENAMED.get(name, name): value for name, value in to_plain(report.model).items()}
    texts = {_TEXTS + name: value for name, value in to_plain(report.texts).items()}
    baseline = {_BASELINE + name: value for name, value in to_plain(report.baseline).items()}
    own: dict[str, Any] = {
        "started": datetime.fromtimestamp(summary.started, UTC).replace(tzinfo=None).isoformat(" "),
        "folder": str(report.folder),
        "fingerprint": report.fingerprint,
        "command": report.command,
        "layers": report.layers,
        "eligible": summary.eligible,
        "numerical_floor": floor.largest if floor else None,
        "gradients": summary.gradients,
        "batch_size": summary.batch_size,
        "peak_memory_bytes": summary.peak_memory_bytes,
        "seconds": sum(summary.timings.values()),
        "versions": dict(report.versions),
    }
    found = {**to_plain(own), **model, **texts, **baseline}
    asked = {name: _as_text(name, value) for name, value in report.spec.model_dump(mode="json").items()}
    return [{**found, **{_ASKED + name if name in found else name: value for name, value in asked.items()}}]


def _as_text(option: str, value: Any) -> Any:
    """An option that may be a number or a word is a text in its column."""
    return str(value) if _OPTIONS[option] == TEXT and value is not None else value
