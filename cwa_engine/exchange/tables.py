"""The tables of a run or a study, by their names, as rows that every format is made of. torch-free."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cwa_engine.base.errors import DataError, NotFound, did_you_mean
from cwa_engine.base.table import Table, scored_metrics
from cwa_engine.base.version import __version__
from cwa_engine.exchange.formats import Cell
from cwa_engine.questions import ablation, critical_set, interactions, spike_removal, stability, tasks
from cwa_engine.questions.fidelity import fidelity_table
from cwa_engine.records import tables
from cwa_engine.records.run_report import RunReport
from cwa_engine.studies.report import StudyReport

Report = RunReport | StudyReport
_CSV, _RANKING, _FIDELITY = ".csv", "topk_", "fidelity.csv"
_TABLES: Mapping[str, Table[Any]] = {
    table.name: table
    for table in (
        tables.SCORES, tables.PERTURBATION, tables.EVALUATION, tables.CONTROLS, interactions.TABLE, stability.TABLE,
        ablation.TABLE, critical_set.TABLE, spike_removal.SPIKES, spike_removal.TABLE, tasks.TABLE,
    )
}  # fmt: skip


@dataclass(frozen=True)
class DataTable:
    """A table of a run or a study. `content` is its CSV file, byte for byte as it was or would be written."""

    name: str  # "perturbation"
    content: bytes
    known: Table[Any] | None  # None for one that this version does not know: it can be copied alone

    @property
    def table(self) -> Table[Any]:
        """What its rows are. Raises DataError where this version does not know it."""
        if self.known is None:
            raise DataError(
                f"cwtool {__version__} does not know the table '{self.name}', which another version wrote",
                hint=f"--format csv --table {self.name} gives it as it is",
            )
        return self.known

    @property
    def rows(self) -> Sequence[Any]:
        return self.table.from_bytes(self.content)

    def cells(self) -> Iterator[list[Cell]]:
        """The cells of each row, in the order of the table's columns."""
        fixed = [name for name in self.table.columns if not name.startswith("score_")]
        for row in self.rows:
            yield [*(getattr(row, name) for name in fixed), *(row.scores if self.table.metrics else ())]


def table_names(report: Report) -> tuple[str, ...]:
    """Names of all tables, in their order: `perturbation`, `topk_grad_x_weight`."""
    return tuple(_readers(report))


def data_table(report: Report, name: str) -> DataTable:
    """The table of this name. Raises NotFound, naming near ones, for one that is not there."""
    readers, bare = _readers(report), name.removesuffix(_CSV)
    if bare not in readers:
        raise NotFound(
            f"{identity(report)} has no table '{name}'",
            hint=did_you_mean(bare, readers) or f"it has {', '.join(readers)}",
        )
    return readers[bare]()


def identity(report: Report) -> str:
    """The id of the run or the study."""
    return report.run_id if isinstance(report, RunReport) else report.folder.id


def _readers(report: Report) -> dict[str, Callable[[], DataTable]]:
    """What reads each table; nothing is read before it is asked for."""
    if isinstance(report, RunReport):
        return {_bare(file): lambda file=file: _of_run(report, file) for file in report.hashes}  # type: ignore[misc]
    return {
        _bare(rows.table.name): lambda rows=rows: DataTable(  # type: ignore[misc]
            _bare(rows.table.name), rows.table.to_bytes(rows.rows), rows.table
        )
        for rows in report.tables()
    }


def _of_run(report: RunReport, file: str) -> DataTable:
    content = report.files.read(file)
    if file.startswith(_RANKING):
        known: Table[Any] | None = tables.topk_table(_bare(file).removeprefix(_RANKING))
    else:
        known = fidelity_table(scored_metrics(content)) if file == _FIDELITY else _TABLES.get(file)
    return DataTable(_bare(file), content, known)


def _bare(file: str) -> str:
    return file.removesuffix(_CSV)
