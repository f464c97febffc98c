"""Draw the figures of the tutorial and of docs/method.md, of the run of the tutorial: `python -m docs.explained`.

The run takes some minutes in this process. With the folder of a run as its argument, the figures are those of that run.
"""

from __future__ import annotations

import sys
from pathlib import Path

import cwa_engine as cwa
from cwa_engine.figures.registry import figures_of
from cwa_engine.reports.drawing import write_figure

FOLDER = Path(__file__).parent / "pictures/figures"
WANTED = (
    "damage_curve_grad_x_weight_zero", "heat_map_grad_x_weight", "depth_profile_grad_x_weight", "half_agreement"
)  # fmt: skip


def main(folder: str | None = None) -> None:
    report = cwa.open_run(folder) if folder else cwa.analyze("smollm2-135m", topk=[1, 10], eval_limit=32)
    for figure in figures_of(report, "run"):
        if figure.name in WANTED:
            write_figure(figure, FOLDER, ("svg",), "two-column")
            print(figure.name, figure.caption, sep="\n", end="\n\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
