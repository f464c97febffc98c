"""What the report prints of a ranking."""

from __future__ import annotations

import io

from rich.console import Console

from cwa_engine.rows import TopWeight
from cwa_tui.cli.report import topk_table


def printed(*errors: float | None) -> str:
    rows = [
        TopWeight(place, "a.weight", 7, 0, 7, 0.5, 2.5, None, "up", None, "a.weight[0,7]", standard_error=error)
        for place, error in enumerate(errors, start=1)
    ]
    console = Console(file=io.StringIO(), width=120)
    console.print(topk_table("hutchinson_diag", rows))
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_an_estimated_score_has_its_standard_error_beside_it_and_an_exact_one_says_so() -> None:
    heading, *lines = [
        line.split() for line in printed(0.0, 0.25).splitlines() if "score" in line or "a.weight" in line
    ]
    assert heading[3:6] == ["score", "standard", "error"]
    assert (lines[0][4], lines[1][4]) == ("exact", "0.25")
    assert "standard error" not in printed(None, None)
