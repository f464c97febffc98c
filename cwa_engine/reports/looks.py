"""How figures look: sizes, fonts and colours of pages and papers. torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from cwa_engine.base.plain import JsonMap
from cwa_engine.figures.figure import Figure

Width = Literal["one-column", "two-column"]
Look = Literal["light", "dark", "one-column", "two-column"]

# Okabe and Ito's colours, which people of any colour vision tell apart; series differ by marker and dash as well, for grey.
LIGHT = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DARK = ("#56B4E9", "#E69F00", "#2FC79C", "#E79BC6", "#F0E442", "#4C9BE0", "#FFFFFF")
HEAT = "viridis"  # its lightness goes one way, so it reads in grey
DIVERGING = "purpleorange"
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right", "triangle-left")
DASHES = ((1, 0), (4, 2), (1.2, 1.2), (5, 1.5, 1.2, 1.5), (2.5, 2.5), (7, 2.5))  # in widths of a line
# The first is metric-compatible with Arial and comes with vl-convert, so that widths of texts are the same everywhere.
FONT = "Liberation Sans, Arial, Helvetica, sans-serif"
POINTS_PER_INCH = 72


@dataclass(frozen=True, slots=True)
class Style:
    """One look. Lengths are points on paper and pixels on a page."""

    width: float | None  # of the whole figure; None for that of what holds it
    assumed_width: float  # on which columns of legends are counted
    height: float  # of the plot
    step: float  # of a row of cells
    most_height: float  # of all rows of cells, which are lower where they are many
    font_size: float
    stroke: float
    point_size: float  # an area
    ink: str
    faint: str  # grid lines and rules
    colours: tuple[str, ...]
    interactive: bool

    def height_of(self, figure: Figure) -> float:
        """The height of the plot: that of its rows where y has categories."""
        if figure.y.scale != "category":
            return self.height
        rows = len(figure.y.order) or len({getattr(row, figure.y.field) for row in figure.table.rows})
        return min(max(2, rows) * self.step, self.most_height)

    def config(self) -> JsonMap:
        """Vega-Lite's config: fonts, colours, lines."""
        text = {"labelFontSize": self.font_size, "titleFontSize": self.font_size, "titleFontWeight": "normal"}
        ink = {"labelColor": self.ink, "titleColor": self.ink}
        return {
            "background": "transparent" if self.interactive else "white",
            "font": FONT,
            "padding": 2,
            "view": {"stroke": None},
            "axis": {
                **text,
                **ink,
                "domainColor": self.ink,
                "tickColor": self.ink,
                "gridColor": self.faint,
                "gridWidth": 0.5,
                "tickSize": self.font_size / 2,
                "labelPadding": 2,
                "titlePadding": 4,
            },
            "legend": {**text, **ink, "symbolSize": 1.5 * self.point_size, "offset": 4, "rowPadding": 1},
            "mark": {"color": self.colours[0]},
            "range": {"category": list(self.colours)},
            "line": {"strokeWidth": self.stroke},
            "rule": {"strokeWidth": 0.75 * self.stroke, "color": self.colours[0]},
            "point": {"filled": True},
            "text": {"color": self.ink, "fontSize": self.font_size},
        }


def _paper(inches: float, height: float) -> Style:
    width = inches * POINTS_PER_INCH
    return Style(
        width=width, assumed_width=width, height=height, step=12, most_height=560, font_size=8, stroke=1.2, point_size=22,
        ink="#000000", faint="#DDDDDD", colours=LIGHT, interactive=False,
    )  # fmt: skip


def _page(ink: str, faint: str, colours: tuple[str, ...]) -> Style:
    return Style(
        width=None, assumed_width=340, height=280, step=22, most_height=2400, font_size=12, stroke=2, point_size=55, ink=ink,
        faint=faint, colours=colours, interactive=True,
    )  # fmt: skip


LOOKS: Mapping[Look, Style] = {
    "light": _page("#1a1a1a", "#dddddd", LIGHT),
    "dark": _page("#e8e8e8", "#444444", DARK),
    "one-column": _paper(3.25, 140),
    "two-column": _paper(6.75, 190),
}
