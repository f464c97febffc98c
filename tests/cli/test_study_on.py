"""`cwtool study run --on NAME`: a study by another runner than the daemon, and what is asked of it afterwards."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import farm
from tests.conftest import CommandLine

SMALL = ("--models", "gpt2", "--seeds", "0", "1", "--topk", "3", "--eval-limit", "4", "--no-perturbation")


def test_a_study_on_a_named_runner_is_gone_on_with_there_and_its_runs_are_listed_by_the_daemon(
    own_cwtool: CommandLine, tmp_path: Path
) -> None:
    cwtool, opened = own_cwtool, own_cwtool.home / farm.OPENED
    cwtool.env |= farm.install(tmp_path / "site")
    first = cwtool.json("study", "run", *SMALL, "--on", "farm:barn", "--slots", "2")
    runs = [cell["run_id"] for cell in first["cells"]]
    assert [cell["state"] for cell in first["cells"]] == ["done", "done"]
    assert not (cwtool.home / "daemon.json").exists()  # no daemon was asked for
    manifest = json.loads((cwtool.home / "runs" / runs[0] / "manifest.json").read_text())
    assert manifest["command"].startswith("cwtool study run --models gpt2")

    # Nothing is said of where it runs, and it is found: with the address and the options that it had.
    listed = cwtool.json("study", "list")["studies"][0]
    assert (listed["where"], listed["cells"]) == ("farm", {"done": 2})
    opened.unlink()
    assert cwtool.json("study", "resume")["cells"] == first["cells"]
    assert opened.read_text() == "barn 2\n"
    cwtool("study", "resume", "--on", "farm:field")
    opened.unlink()
    cwtool("study", "export", "--output", "exported")
    assert opened.read_text() == "field 2\n" and (cwtool.cwd / "exported" / "cells.csv").exists()
    planned = cwtool.json("study", "run", *SMALL, "--on", "farm", "--slots", "3", "--dry-run")
    assert ([cell["done"] for cell in planned["cells"]], planned["slots"]) == ([True, True], 3)

    # The daemon begins only now, and knows the runs; those that come while it is there it knows at once.
    assert {row["run_id"] for row in cwtool.json("results")["results"]} == set(runs)
    later = cwtool.json("study", "run", *SMALL, "--seeds", "7", "--on", "farm")
    assert cwtool.json("results")["results"][0]["run_id"] == later["cells"][-1]["run_id"]


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (("--on", "rya"), "there is no runner 'rya'"),
        (("--on", "ray", "--detach"), "cannot be detached"),
        (("--on", "ray://10.0.0.1:10001"), "ray://10.0.0.1:10001 is an address of Ray's client"),
        (("--on", "ray:ray://10.0.0.1:10001"), "ray://10.0.0.1:10001 is an address of Ray's client"),
        (("--on", "ray", "--priority", "3"), "--priority is of the daemon's queue"),
        (("--on", "ray", "--slots", "0"), "slots"),
        (("--on", "local"), "a command line runs nothing in its own process"),
        (("--slots", "2"), "--slots is of --on ray"),
    ],
)
def test_what_makes_no_sense_of_a_runner_is_refused_before_anything_begins(
    own_cwtool: CommandLine, typed: tuple[str, ...], said: str
) -> None:
    assert said in own_cwtool("study", "run", *SMALL, *typed, rc=2).stderr
    assert not (own_cwtool.home / "studies").exists()


def test_an_address_at_which_no_ray_listens_ends_the_study_at_once_and_fails_no_cell(own_cwtool: CommandLine) -> None:
    said = own_cwtool("study", "run", *SMALL, "--on", "ray:127.0.0.1:1", rc=3).stderr
    assert "nothing answers at 127.0.0.1:1" in said and "study resume" in said
    assert own_cwtool.json("study", "list")["studies"][0]["cells"] == {"waiting": 2}
