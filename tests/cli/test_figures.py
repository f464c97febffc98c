"""`cwtool figures`: a run's figures are listed, drawn, printed as tables and written to files."""

from __future__ import annotations

import csv
import io

import pytest

from tests.conftest import SHORT, CommandLine

CURVE = "damage_curve_grad_x_weight_zero"


@pytest.fixture
def run(cwtool: CommandLine) -> str:
    return str(cwtool.json("run", *SHORT, "--output", "one")["run_id"])


def test_figures_are_listed_and_drawn_by_id_and_by_folder(cwtool: CommandLine, run: str) -> None:
    listed = cwtool.json("figures", run)
    assert listed["of"] == run and {CURVE, "heat_map_grad_x_weight"} <= {one["name"] for one in listed["figures"]}
    assert listed == cwtool.json("figures") == cwtool.json("figures", "./one")
    drawn = cwtool("figures", "./one", CURVE).stdout
    assert drawn.startswith("Change of the loss") and "● critical" in drawn and "weights changed, k" in drawn
    assert "\x1b" not in drawn and all(len(line) <= int(cwtool.env["COLUMNS"]) for line in drawn.splitlines())
    assert cwtool("figures", "./one", CURVE, PYTHONIOENCODING="ascii").stdout.isascii()
    assert cwtool("figures", "./one", "heat_map").stdout.count("component down, layer across") == 2  # all that begin so

    table = cwtool("figures", "./one", CURVE, "--csv").stdout
    rows = list(csv.DictReader(io.StringIO(table)))
    (found,) = cwtool.json("figures", "./one", CURVE)["figures"]
    assert [float(row["change"]) for row in rows] == [row["change"] for row in found["rows"]]
    assert (found["x"]["field"], found["y"]["field"]) == ("k", "change")

    pytest.importorskip("vl_convert", reason="the extra `report` writes pictures")
    cwtool("figures", "./one", CURVE, "-o", "curve.svg")
    assert (cwtool.cwd / "curve.svg").read_text().startswith("<svg")
    assert (cwtool.cwd / "curve.csv").read_text() == table
    assert "--force replaces it" in cwtool("figures", "./one", CURVE, "-o", "curve.svg", rc=2).stderr


def test_what_there_is_not_is_said_with_the_next_step(cwtool: CommandLine, run: str) -> None:
    assert "did you mean 'heat_map_grad_x_weight'" in cwtool("figures", run, "heatmap_grad_x_weight", rc=6).stderr
    assert "begin with 'heat'" in cwtool("figures", run, "heat", "--csv", rc=2).stderr
    assert "no figure is named" in cwtool("figures", run, "--csv", rc=2).stderr
    assert "end it in .svg" in cwtool("figures", run, CURVE, "--output", "a.jpg", rc=2).stderr
    assert "there is no run" in cwtool("figures", "nothing-like-this", rc=6).stderr
