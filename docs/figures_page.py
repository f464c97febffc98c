"""docs/figures.md: what can be drawn, from the registry of figures."""

from __future__ import annotations

from cwa_engine.figures.figure import FigureKind
from cwa_engine.figures.registry import FIGURE_KINDS
from cwa_engine.reports.drawing import HOW_TO_LOOK

_BEGINNING = """\
# Figures

Made from the registry of figures by `make docs`; do not edit.

A figure is a small table and what is drawn of its columns. The same definition gives the figures of a page, of a paper
and of the terminal, so they cannot differ. The numbers are those of the run's own files, and the table is saved as CSV
beside every picture.

    cwtool figures latest                       # what there is
    cwtool figures latest damage_curve          # drawn in the terminal
    cwtool figures latest heat_map_taylor --output heat.pdf --width one-column
    cwtool report latest --figures figures --format pdf,png

Pictures need the extra `report`: `pip install "cwtool[report]"`. Neither a browser nor the network is needed. In a
notebook a figure shows itself, and `figure.frame()` is its table; `cwa_engine.reports.drawing.chart(figure)` is an
Altair chart that can be changed.
"""

_HEADINGS = {
    "run": "Of a run",
    "study": "Of a study",
    "comparison": "Of runs that are compared",
    "weight": "Of the card of a weight",
}

_END = f"""\
Figures of which nothing was measured are left out: `score_distribution` needs a run that counted its scores, `bit_map`
one with `--perturb bit_flip --bit all`, `dose_response` one with `--dose`, `fidelity` one with `--fidelity`,
`rank_stability` one with `--stability` or halves of the scoring texts.

## How they read

- **Changes of the loss** are on an axis that is logarithmic in both directions and linear around 0 (symlog), as damage
  spans many orders of magnitude and may be negative. The linear part ends at the run's numerical floor, or at 0.001
  nats where that is more.
- **Intervals** are those of the tables, 95 %. **Controls** stand beside critical sets: of each the leading draw,
  ahead of the others, with its interval, and the median of all draws, which has no interval and no number of texts.
- **A loss that is not finite** has no number. A hollow triangle stands at the edge of the figure, or in the cell of a
  map; lines are broken there, and the caption counts the rows without a mark.
- **Captions** say the model and its dtype, which texts were scored or measured, the protocol and k.
- Series differ by marker and dash as well as by colour, and maps by lightness (viridis), so that all can be read in
  grey. Colours are those of Okabe and Ito, which people of any colour vision tell apart.

## Sizes and formats

| | one column | two columns |
|---|---|---|
| `--width` | `one-column` | `two-column` |
| width | 3.25 inches | 6.75 inches |
| smallest font | 8 pt | 8 pt |
| PNG | 975 pixels, 300 dpi | 2,025 pixels, 300 dpi |

SVG and PDF scale without loss; PDF has its fonts embedded. The title stands in no picture, for a paper has a caption:
title and caption are given with the figure, and pages show both. On a page figures are as wide as their place, in a
light and a dark look.
{HOW_TO_LOOK}

## Your own figure

A figure is made of rows, each a frozen dataclass, two axes and some layers:

```python
from dataclasses import dataclass
from pathlib import Path

from cwa_engine.figures.figure import Axis, Figure, Layer, table_of
from cwa_engine.reports.drawing import write_figure


@dataclass(frozen=True)
class Damaged:
    k: int
    change: float
    low: float
    high: float


rows = [Damaged(1, 0.02, 0.01, 0.03), Damaged(10, 0.5, 0.4, 0.6), Damaged(100, 3.1, 2.7, 3.5)]
figure = Figure(
    "my_curve",
    "Damage by k",
    "gpt2, 64 texts, 95 % intervals.",
    table_of("my_curve", Damaged, rows),
    x=Axis("k", "weights zeroed", "log"),
    y=Axis("change", "change of the loss (nats per token)"),
    layers=(Layer("line"), Layer("interval", low="low", high="high"), Layer("point")),
)
write_figure(figure, Path("figures"), ("pdf",), "one-column")
```

Scales are `linear`, `log`, `symlog`, `category` and, for colours, `diverging`. Marks are `line`, `step`, `point`,
`bar`, `interval`, `cell`, `text`, `rule`, `diagonal` and `beyond`; `cwa_engine/figures/figure.py` says what each draws.
A kind that every run or study has is one function in a module of its own, see [extending.md](extending.md#a-figure).
"""


def figures_page() -> str:
    """docs/figures.md: the prose above, and a table of kinds for each source."""
    lines = [_BEGINNING]
    for of, heading in _HEADINGS.items():
        kinds = sorted((kind for kind in FIGURE_KINDS if kind.of == of), key=lambda kind: kind.place)
        lines += [f"## {heading}", "", "| figure | shows |", "|---|---|", *map(_row, kinds), ""]
    return "\n".join([*lines, _END])


def _row(kind: FigureKind) -> str:
    return f"| `{kind.name}` | {kind.shows} |"
