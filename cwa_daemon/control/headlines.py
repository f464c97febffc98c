"""The headlines of runs, for the list of jobs: read once from summary.json and kept in the database."""

from __future__ import annotations

import asyncio
import json
import logging
import math
from pathlib import Path

from cwa_daemon.control.store import Store
from cwa_daemon.protocol import Headline
from cwa_engine.base.errors import CwaError
from cwa_engine.records.reading import read_summary
from cwa_engine.records.run_summary import summary_from_plain
from cwa_engine.rows import exp

log = logging.getLogger(__name__)


def headline_of(folder: Path, fingerprint: str | None = None) -> Headline | None:
    """The headline of a finished run; None for one without damage. Raises NotFound, Altered and ValueError."""
    found = summary_from_plain(read_summary(folder, fingerprint)).headline
    if found is None or found.critical is None:
        return None
    control = found.worst_control
    return Headline(
        metric=found.metric,
        k=found.k,
        perturbation=found.perturbation,
        ratio=_finite(found.critical.perplexity_ratio),
        control_ratio=_finite(exp(control.largest)) if control and control.largest is not None else None,
        control_collapsed=control is not None and control.largest is None,
        collapsed=found.critical.collapsed_at is not None,
        outcome=found.outcome or "",
        sentence=found.verdict or "",
    )


def kept_headline(folder: Path, fingerprint: str | None = None) -> str:
    """The headline as the database keeps it: JSON, "null" for a run that has none, or whose files cannot be read."""
    try:
        headline = headline_of(folder, fingerprint)
    except (CwaError, ValueError) as error:
        log.warning("the headline of %s cannot be read: %s", folder.name, error)
        headline = None
    return json.dumps(headline.model_dump() if headline else None, allow_nan=False)


async def read_missing(store: Store, runs: Path) -> None:
    """Read the headlines of runs that an earlier version has made."""
    for run_id in store.without_headline():
        headline = await asyncio.to_thread(kept_headline, runs / run_id, store.fingerprint(run_id))
        store.update_job(run_id, headline=headline)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
