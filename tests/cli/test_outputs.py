"""What runs leave behind: output folders that are nobody else's, results that others' damage does not hide."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import stat
from pathlib import Path

import pytest

from cwa_daemon.base.security import state_folder
from cwa_engine.base.errors import DaemonNotStartable
from tests.conftest import LONG, SHORT, CommandLine

RANK_ONLY = (*SHORT, "--no-perturbation")


def test_an_output_folder_takes_the_same_run_again_and_no_other_unless_forced(cwtool: CommandLine) -> None:
    first = cwtool.json("run", *SHORT, "--output", "out")
    again = cwtool.json("run", *SHORT, "--output", "out")
    assert first["run_id"] != again["run_id"]
    assert json.loads((cwtool.cwd / "out/summary.json").read_text())["run_id"] == again["run_id"]
    before = {path.name: path.read_bytes() for path in (cwtool.cwd / "out").iterdir()}

    refused = cwtool("run", *RANK_ONLY, "--output", "out", rc=2).stderr
    assert "holds a run with other perturbations" in " ".join(refused.split()) and "--force" in refused
    assert {path.name: path.read_bytes() for path in (cwtool.cwd / "out").iterdir()} == before
    assert cwtool.json("jobs", "show")["run_id"] == again["run_id"]  # nothing was computed, nor queued

    cwtool("run", *RANK_ONLY, "--output", "out", "--force")
    assert "holds a run with other perturbations" in cwtool("jobs", "retry", first["run_id"], rc=2).stderr
    names = {path.name for path in (cwtool.cwd / "out").iterdir()}
    assert names == {
        "summary.json", "manifest.json", "log.txt", "topk_grad_x_weight.csv", "topk_grad_x_weight_matrices.csv",
        "scores.csv", "SHA256SUMS",
    }  # fmt: skip


def test_a_summary_of_another_program_is_not_overwritten(cwtool: CommandLine) -> None:
    (cwtool.cwd / "out").mkdir()
    (cwtool.cwd / "out" / "summary.json").write_text("mine")
    said = cwtool.json("run", *RANK_ONLY, "--output", "out", rc=2)["error"]
    assert said["code"] == "output_taken" and "summary.json" in said["message"]
    assert (cwtool.cwd / "out" / "summary.json").read_text() == "mine"


def test_a_folder_that_a_waiting_job_will_fill_takes_no_other_run(cwtool: CommandLine) -> None:
    first = cwtool("run", *LONG, "--output", "out", "--detach").stdout.strip()
    said = cwtool("run", *RANK_ONLY, "--output", "out", "--detach", rc=2).stderr
    assert first in said and "--force" in said
    cwtool("jobs", "cancel", first)


def test_a_clock_put_back_makes_no_run_the_latest_and_a_broken_summary_hides_no_other(own_cwtool: CommandLine) -> None:
    first = own_cwtool.json("run", *RANK_ONLY)["run_id"]
    with contextlib.closing(sqlite3.connect(own_cwtool.settings.database)) as database, database:
        for moment in ("created", "started", "finished"):  # it was submitted when the clock was ten years ahead
            database.execute(f"UPDATE jobs SET {moment} = {moment} + 315360000")
    second = own_cwtool.json("run", *RANK_ONLY)["run_id"]
    assert [job["run_id"] for job in own_cwtool.json("jobs")["jobs"]] == [second, first]
    for command in (["jobs", "show"], ["results", "show"]):
        assert own_cwtool.json(*command)["run_id"] == second

    (own_cwtool.home / "runs" / first / "summary.json").write_text("{")
    shown = " ".join(own_cwtool("results").stdout.split())
    assert second[-4:] in shown and first[-4:] in shown and "summary.json is altered" in shown
    listed = own_cwtool.json("results")["results"]
    assert [entry["run_id"] for entry in listed] == [second, first]
    assert "summary.json is altered" in listed[1]["unreadable"]
    assert "summary.json is altered" in own_cwtool("results", "show", first, rc=1).stderr


@pytest.mark.parametrize("mode", [0o700, 0o755, 0o750])
def test_a_state_folder_that_was_there_keeps_its_mode(tmp_path: Path, mode: int) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state").chmod(mode)
    assert stat.S_IMODE(state_folder(tmp_path / "state").stat().st_mode) == mode
    assert stat.S_IMODE(state_folder(tmp_path / "new").stat().st_mode) == 0o700


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o757])
def test_a_state_folder_that_others_may_write_to_is_refused_and_left_as_it_is(tmp_path: Path, mode: int) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(mode)
    with pytest.raises(DaemonNotStartable, match=rf"others may write .* \(mode {mode:o}\)") as caught:
        state_folder(tmp_path / "shared")
    assert "CWTOOL_HOME" in caught.value.hint
    assert stat.S_IMODE((tmp_path / "shared").stat().st_mode) == mode


def test_a_shared_state_folder_is_named_by_the_command_that_needs_it(own_cwtool: CommandLine) -> None:
    own_cwtool.home.mkdir()
    own_cwtool.home.chmod(0o777)
    said = " ".join(own_cwtool("jobs", rc=4).stderr.split())
    assert f"others may write to {own_cwtool.home}" in said
    own_cwtool.home.chmod(0o755)
    own_cwtool("jobs")
    inside = {path.name: stat.S_IMODE(path.stat().st_mode) for path in own_cwtool.home.iterdir()}
    assert not [name for name, mode in inside.items() if mode & 0o077 and name != "ballast"], inside


def test_a_bundle_overwrites_no_file(cwtool: CommandLine) -> None:
    (cwtool.cwd / "notes.txt").write_text("mine")
    assert "notes.txt is there already" in cwtool("doctor", "--bundle", "notes.txt", rc=2).stderr
    assert (cwtool.cwd / "notes.txt").read_text() == "mine"
    assert "there is no folder" in cwtool("doctor", "--bundle", "no/such/folder.zip", rc=2).stderr
