"""Forgetting jobs that ended long ago."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from cwa_daemon.control.store import Store
from cwa_daemon.protocol import KEEP, Pruned
from cwa_engine.records.export import PRUNED


def prune(store: Store, folders: Path, older_than_s: float, with_results: bool, dry_run: bool) -> Pruned:
    """Forget jobs that ended so long ago: those without a result entirely, finished runs' events.

    `with_results` removes finished runs with their folders, too, but what is in a store stays there; `dry_run` only tells.
    A job that is tagged `keep` stays as it is; one that is removed loses its tags and its note.
    """
    jobs: list[str] = []
    runs: list[str] = []
    events = 0
    ended = store.ended_before(time.time() - older_than_s)
    for job in (job for job in ended if KEEP not in job.tags):
        run_id, folder = job.run_id, folders / job.run_id
        elsewhere = folder.is_symlink()  # into a store, which may not be mounted now: its files are not ours to remove
        has_result = elsewhere or folder.is_dir()
        (runs if has_result else jobs).append(run_id)
        if dry_run:
            continue
        events += store.remove_events(run_id, but_the_end=has_result and not with_results)
        if with_results and has_result:
            if elsewhere:
                folder.unlink()
            else:
                gone = folder.with_name(f".{run_id}{PRUNED}")
                folder.rename(gone)  # at no moment is there half a run
                shutil.rmtree(gone)
        if with_results or not has_result:
            store.remove_job(run_id)
    return Pruned(jobs=jobs, runs=runs, events=events)
