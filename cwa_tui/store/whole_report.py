"""The report of a finished run with the tables that a comparison reads, which come one by one from the daemon."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

from cwa_engine.records.run_report import FilesInMemory, RunReport
from cwa_engine.records.tables import EVALUATION, topk_table


class Files(Protocol):
    """What is needed of a client of the daemon."""

    async def report(self, run_id: str) -> RunReport: ...
    async def read_file(self, run_id: str, name: str) -> bytes: ...


async def whole_report(client: Files, run_id: str) -> RunReport:
    """A run's report with its rankings and the losses of its texts. Raises NotFound, and Altered for an altered file."""
    report = await client.report(run_id)
    names = [*(topk_table(metric).name for metric in report.metrics), EVALUATION.name]
    contents = {name: await client.read_file(run_id, name) for name in names if name in report.hashes}
    return replace(report, files=FilesInMemory(contents))
