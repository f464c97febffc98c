"""A figure in cells: `chart` draws it, `legend` and `notes` are the lines below, `whole` is all with title and caption."""

from __future__ import annotations

from rich.text import Text

from cwa_engine.figures.figure import Figure
from cwa_tui.charts.heat import heat_map, shades
from cwa_tui.charts.layout import BEYOND, Layout, Window, lay_out
from cwa_tui.charts.plot import keys_of_names, plot
from cwa_tui.text.visible import words

HEIGHT = 18  # of a chart, where nothing says how high it is to be


def chart(layout: Layout, width: int, height: int, window: Window | None = None) -> Text:
    """The figure in `width` by `height` cells; a map takes the lines that it needs. `window` is what is in sight."""
    lines = heat_map(layout.figure, width) if layout.is_map else plot(layout, width, height, window)
    return Text("\n", no_wrap=True).join(lines)


def legend(layout: Layout, width: int) -> Text:
    """What markers, shades and numbers of names stand for; empty where nothing is to be said."""
    if layout.is_map:
        return shades(layout.figure)
    said = Text()
    if len(layout.series) > 1:
        for series in layout.series:
            said.append(f"{series.marker} ", series.style).append_text(words(f"{series.name}  "))
    if any(layer.low for layer in layout.figure.layers):
        said.append("│ interval  ", "dim")
    if any(part.layer.mark == "beyond" for part in layout.parts):
        said.append(f"{BEYOND} not finite", "bold")
    if keys := keys_of_names(layout, width):
        said.append("\n" if said else "")
        said.append_text(words("  ".join(f"{number}: {name}" for number, name in keys.items())))
    said.rstrip()
    return said


def notes(layout: Layout) -> Text:
    """What is not drawn."""
    return words(" · ".join(layout.notes), "bold")


def whole(figure: Figure, width: int, height: int = HEIGHT) -> list[Text]:
    """Title, chart, legend, what is not drawn, and the caption, to print one below the other."""
    layout = lay_out(figure)
    below = (legend(layout, width), notes(layout), words(figure.caption, "dim"))
    return [words(figure.title, "bold"), *chart(layout, width, height).split(), *(part for part in below if part)]
