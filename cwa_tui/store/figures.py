"""The figures of a run, a study or a comparison, read from the daemon. Their data is computed in threads. No Textual in it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from cwa_engine.records.run_report import RunReport
from cwa_tui.store.session import DaemonClient, Session

if TYPE_CHECKING:
    from cwa_engine.figures.figure import Figure, Source


@dataclass(frozen=True)
class FilesOfDaemon:
    """The files of a run, each read when a thread beside the loop asks for it."""

    client: DaemonClient
    run_id: str
    loop: asyncio.AbstractEventLoop

    def read(self, name: str) -> bytes:
        """The content of a file. Raises what `AsyncClient.read_file` raises."""
        return asyncio.run_coroutine_threadsafe(self.client.read_file(self.run_id, name), self.loop).result()


async def read_figures(session: Session, of: Source, ids: Sequence[str]) -> list[Figure]:
    """The figures of a run, a study, or two to four runs that are compared, as `of` says.

    Raises NotFound, Altered, and what `compare` raises for runs that may not be compared.
    """
    from cwa_engine.figures.registry import figures_of  # numpy comes with what some are made of

    if of == "study":
        study = await session.studies.report(ids[0])
        return await asyncio.to_thread(figures_of, study, of)
    reports = [await _report(session.client, run_id) for run_id in ids]
    if of == "run":
        return await asyncio.to_thread(figures_of, reports[0], of)
    return await asyncio.to_thread(_of_comparison, reports)


async def _report(client: DaemonClient, run_id: str) -> RunReport:
    report = await client.report(run_id)
    return replace(report, files=FilesOfDaemon(client, run_id, asyncio.get_running_loop()))


def _of_comparison(reports: Sequence[RunReport]) -> list[Figure]:
    from cwa_engine.figures.registry import figures_of
    from cwa_engine.records.comparison import compare

    return figures_of(compare(*reports), "comparison")
