"""A figure in cells: `chart` draws it, `legend` and `notes` are the lines below, `whole` is all with title and caption."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from cwa_engine.figures.figure import Figure
from cwa_tui.charts.heat import heat_map, shades
from cwa_tui.charts.layout import BEYOND, SEVERAL, Layout, Window, lay_out
from cwa_tui.charts.plot import keys_of_names, plot, wanted_height
from cwa_tui.text.visible import words

HEIGHT = 18  # of a chart, where nothing says how high it is to be


def chart(layout: Layout, width: int, height: int, window: Window | None = None) -> Text:
    """The figure in `width` by `height` cells; a map takes the lines that it needs. `window` is what is in sight."""
    lines = heat_map(layout.figure, width) if layout.is_map else plot(layout, width, height, window)
    return Text("\n", no_wrap=True).join(lines)


def legend(layout: Layout, width: int) -> Text:
    """What markers, shades and numbers of names stand for, in lines of `width`; empty where nothing is to be said."""
    if layout.is_map:
        return in_lines(shades(layout.figure), width)
    said: list[Text] = []
    if len(layout.series) > 1:
        said += [Text(f"{each.marker} ", each.style).append_text(words(each.name, "none")) for each in layout.series]
    if layout.has_points:
        said.append(Text(f"{SEVERAL} several"))
    if any(layer.low for layer in layout.figure.layers):
        said.append(Text("│ interval", "dim"))
    if any(part.layer.mark == "beyond" for part in layout.parts):
        said.append(Text(f"{BEYOND} not finite", "bold"))
    names = [words(f"{number}: {name}") for number, name in keys_of_names(layout, width).items()]
    return Text("\n").join(part for part in (in_lines(said, width), in_lines(names, width)) if part)


def in_lines(parts: Sequence[Text], width: int) -> Text:
    """The parts one after the other, each whole on a line."""
    lines: list[Text] = []
    for part in parts:
        if lines and lines[-1].cell_len + 2 + part.cell_len <= width:
            lines[-1].append("  ").append_text(part)
        else:
            lines.append(Text().append_text(part))
    return Text("\n").join(lines)


def notes(layout: Layout) -> Text:
    """What is not drawn."""
    return words(" · ".join(layout.notes), "bold")


def whole(figure: Figure, width: int, height: int = HEIGHT) -> list[Text]:
    """Title, chart, legend, what is not drawn, and the caption, to print one below the other."""
    layout = lay_out(figure)
    drawn = chart(layout, width, max(height, wanted_height(layout))).split()
    below = [part for part in (legend(layout, width), notes(layout), words(figure.caption, "dim")) if part]
    return [words(figure.title, "bold"), *drawn, *below]
