"""A run's headline is what its files say of its first metric and largest compared set."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest

from cwa_daemon.control.headlines import read_missing
from cwa_daemon.control.store import Store
from cwa_daemon.protocol import Headline
from tests.conftest import SHORT, CommandLine
from tests.daemon.test_jobs import add


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "perturbation.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_run_that_is_done_has_its_headline_in_the_list_of_jobs(cwtool: CommandLine) -> None:
    metrics = ("--metric", "magnitude", "--metric", "grad_x_weight", "--control-seeds", "2")
    run_id = cwtool.json("run", *SHORT, "--topk", "3", *metrics)["run_id"]
    with cwtool.client() as client:
        (job,) = (job for job in client.jobs() if job.run_id == run_id)
    headline, table = job.headline, rows(cwtool.settings.runs / run_id)
    assert headline is not None
    assert (headline.metric, headline.k, headline.perturbation) == ("magnitude", 5, "zero")
    mine = [row for row in table if (row["metric"], row["k"]) == ("magnitude", "5")]
    (critical,) = [row for row in mine if row["selection"] == "critical"]
    assert headline.ratio == pytest.approx(float(critical["perplexity"]) / baseline(cwtool, run_id))
    whole = [row for row in mine if row["selection"] != "critical" and row["sequences"] == critical["sequences"]]
    worst = max(whole, key=lambda row: abs(float(row["delta_nll"])))
    assert headline.control_ratio == pytest.approx(math.exp(float(worst["delta_nll"])))
    assert headline.sentence in cwtool("logs", run_id).stdout
    assert headline.outcome == "not tested"  # two draws are too few


def baseline(cwtool: CommandLine, run_id: str) -> float:
    summary = json.loads((cwtool.settings.runs / run_id / "summary.json").read_text())
    return float(summary["baseline"]["perplexity"])


async def test_runs_of_before_get_their_headline_once_and_those_without_files_none(
    cwtool: CommandLine, tmp_path: Path
) -> None:
    run_id = cwtool.json("run", *SHORT)["run_id"]
    store = Store(tmp_path / "jobs.sqlite")
    add(store, run_id, state="done", started=1.0)
    add(store, "gone", state="done")
    add(store, "failed", state="failed")
    assert store.without_headline() == ["gone", run_id]
    await read_missing(store, cwtool.settings.runs)
    assert store.without_headline() == []
    with cwtool.client() as client:
        assert Headline.model_validate(_job(store, run_id).headline) == client.job(run_id).headline
    assert _job(store, "gone").headline is None


async def test_the_headline_of_a_run_whose_summary_was_altered_is_not_shown(
    cwtool: CommandLine, tmp_path: Path
) -> None:
    run_id = cwtool.json("run", *SHORT)["run_id"]
    folder = tmp_path / "runs" / run_id
    folder.mkdir(parents=True)
    for path in (cwtool.settings.runs / run_id).iterdir():
        content = path.read_bytes()
        (folder / path.name).write_bytes(content + b" " if path.name == "summary.json" else content)
    store = Store(tmp_path / "jobs.sqlite")
    add(store, run_id, state="done")
    await read_missing(store, tmp_path / "runs")
    assert _job(store, run_id).headline is None


def _job(store: Store, run_id: str) -> Any:
    job = store.job(run_id)
    assert job
    return job
