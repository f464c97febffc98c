"""Figures as Vega-Lite, for pages and notebooks, and as SVG, PDF and PNG for papers. No browser and no network is needed.

write_figure(figure, Path("figures"), ("pdf",), "one-column")
vega_lite(figure, "dark")

Specs are plain maps: Altair takes 20 ms to build one, and a page of a run with 100 rankings has hundreds. `chart` gives
the Altair chart of a figure to those who want to change it.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from cwa_engine.base.errors import InvalidInput, OutputError
from cwa_engine.base.files import write_whole
from cwa_engine.base.plain import JsonMap
from cwa_engine.figures.figure import Figure
from cwa_engine.reports.encodings import layers_of
from cwa_engine.reports.looks import LOOKS, Look, Width

if TYPE_CHECKING:
    import altair

FORMATS = ("svg", "pdf", "png")
WIDTHS: tuple[Width, ...] = get_args(Width)
PNG_DPI = 300
HOW_TO_LOOK = "Drag to move, Ctrl and the wheel to zoom, double click for all; point at a mark for its numbers."


def vega_lite(figure: Figure, look: Look = "light") -> JsonMap:
    """The figure as a Vega-Lite spec with its data: no address outside is in it.

    The looks "light" and "dark" are for pages: as wide as what holds them, with zoom and tooltips. "one-column" and
    "two-column" are for papers. The title stands in no picture: a page has a heading, a paper a caption; it is the description
    that screen readers say.
    """
    style = LOOKS[look]
    return {
        "description": f"{figure.title}. {figure.caption}",
        "width": style.width or "container",
        "height": style.height_of(figure),
        "autosize": {"type": "fit-x", "contains": "padding"},
        "layer": layers_of(figure, style),
        "config": style.config(),
    }


def chart(figure: Figure, look: Look = "light") -> altair.LayerChart:
    """The figure as an Altair chart, to be changed further. Raises InvalidInput where Altair is not installed."""
    try:
        import altair
    except ImportError as error:
        raise _missing("altair") from error
    return altair.LayerChart.from_dict({**vega_lite(figure, look), "width": 480})


def write_figure(
    figure: Figure, folder: Path, formats: Sequence[str] = FORMATS, width: Width = "one-column"
) -> list[Path]:
    """Write a figure as papers want it, and its table beside it: the paths of NAME.svg, NAME.pdf, NAME.png and NAME.csv.

    "one-column" is 3.25 inches wide, "two-column" 6.75. PNG has 300 dots per inch; fonts are embedded in PDF. Raises
    InvalidInput for another format or width and where vl-convert is not installed, OutputError where the folder cannot be
    written.
    """
    if width not in WIDTHS:
        raise InvalidInput(f"a figure cannot be '{width}' wide", hint=f"give one of: {', '.join(WIDTHS)}")
    for name in formats:
        if name not in FORMATS:
            raise InvalidInput(f"a figure cannot be written as '{name}'", hint=f"give some of: {', '.join(FORMATS)}")
    spec = vega_lite(figure, width)
    contents = {name: _picture(spec, name) for name in dict.fromkeys(formats)}
    contents["csv"] = figure.table.table.to_bytes(figure.table.rows)
    written = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for ending, content in contents.items():
            path = folder / f"{figure.name}.{ending}"
            write_whole(path, content)
            written.append(path)
    except OSError as error:
        raise OutputError(
            f"figures cannot be written to {folder}: {error.strerror}", hint="give a folder you may write"
        ) from error
    return written


def svg(figure: Figure, width: Width = "one-column") -> str:
    """The figure as papers want it, as an SVG text. Raises InvalidInput where vl-convert is not installed."""
    return _picture(vega_lite(figure, width), "svg").decode()


@functools.cache
def page_script() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script, which sets `window.vegaEmbed`; it asks for nothing from outside.

    Raises InvalidInput where vl-convert is not installed.
    """
    return str(_vl_convert().javascript_bundle())


def _picture(spec: JsonMap, ending: str) -> bytes:
    convert = _vl_convert()
    if ending == "svg":
        return str(convert.vegalite_to_svg(spec, allowed_base_urls=[])).encode()
    if ending == "pdf":
        return bytes(convert.vegalite_to_pdf(spec, allowed_base_urls=[]))
    return bytes(convert.vegalite_to_png(spec, ppi=PNG_DPI, allowed_base_urls=[]))


def _vl_convert() -> Any:
    try:
        import vl_convert
    except ImportError as error:
        raise _missing("vl-convert") from error
    return vl_convert


def _missing(library: str) -> InvalidInput:
    return InvalidInput(f"{library} is not installed, which draws figures", hint='pip install "cwtool[report]"')
