"""The tables of a run as files of other formats, for `cwtool results export`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cwa_daemon.client import Client
from cwa_engine.base.errors import NotFound, OutputError, OutputTaken, did_you_mean
from cwa_engine.base.files import fetch_folder, write_folder
from cwa_engine.base.table import Table, scored_metrics
from cwa_engine.questions import ablation, critical_set, interactions, spike_removal, stability, tasks
from cwa_engine.questions.fidelity import fidelity_table
from cwa_engine.records import tables
from cwa_engine.records.run_report import RunReport, open_run
from cwa_tui.tables.export import SUFFIXES, Cell, Format, export

_TABLES: dict[str, Table[Any]] = {
    table.name: table
    for table in (
        tables.SCORES, tables.PERTURBATION, tables.EVALUATION, tables.CONTROLS, interactions.TABLE, stability.TABLE,
        ablation.TABLE, critical_set.TABLE, spike_removal.SPIKES, spike_removal.TABLE, tasks.TABLE,
    )
}  # fmt: skip
_RANKING, _CSV = "topk_", ".csv"


@contextmanager
def opened(client: Client, run_id: str) -> Iterator[RunReport]:
    """The report of a finished run; the files of one on another machine are copied here for as long as it is open."""
    if not client.host:
        files = client.check(run_id)
        yield open_run(files.folder, files.fingerprint)
        return
    with fetch_folder() as scratch:
        _, fingerprint = client.download(run_id, Path(scratch))
        yield open_run(scratch, fingerprint)


def table_names(report: RunReport) -> list[str]:
    """Names of the run's tables: `perturbation`, `topk_grad_x_weight`."""
    return [name.removesuffix(_CSV) for name in report.hashes]


def text_of(report: RunReport, name: str, form: Format) -> str:
    """One table of a run, each number as the run wrote it. Raises NotFound for a table that the run does not have."""
    names = table_names(report)
    if name.removesuffix(_CSV) not in names:
        raise NotFound(
            f"{report.run_id} has no table '{name}'",
            hint=did_you_mean(name, names) or f"it has {', '.join(names)}",
        )
    file = name.removesuffix(_CSV) + _CSV
    content = report.files.read(file)
    if form == "csv":
        return content.decode("utf-8")
    table = _table(file, content)
    return export(table.columns, _cells(table, content), form)


def write_all(report: RunReport, folder: Path, form: Format) -> list[Path]:
    """Write every table into a new folder, whole or not at all. Raises OutputError for one that is there already."""
    if folder.exists():
        raise OutputTaken(f"{folder} exists", hint="give --output a folder that does not exist yet")
    texts = {f"{name}{SUFFIXES[form]}": text_of(report, name, form) for name in table_names(report)}
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        write_folder(folder, ((name, text.encode("utf-8")) for name, text in texts.items()))
    except OSError as error:
        raise OutputError(f"{folder} cannot be written: {error.strerror}", hint="give another folder") from error
    return [folder / name for name in texts]


def _table(file: str, content: bytes) -> Table[Any]:
    if file in _TABLES:
        return _TABLES[file]
    if file.startswith(_RANKING):
        return tables.topk_table(file.removeprefix(_RANKING).removesuffix(_CSV))
    return fidelity_table(scored_metrics(content))


def _cells(table: Table[Any], content: bytes) -> Iterator[list[Cell]]:
    fixed = [name for name in table.columns if not name.startswith("score_")]
    for row in table.from_bytes(content):
        yield [*(getattr(row, name) for name in fixed), *(row.scores if table.metrics else ())]
