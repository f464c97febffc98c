"""Figures as Vega-Lite and as pictures: valid, with the table's numbers, as wide as papers want, and without the network."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import re
import struct
import sys
import xml.etree.ElementTree as ET
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pytest

from cwa_engine.base.errors import InvalidInput, OutputError
from cwa_engine.figures.figure import Axis, Figure, Layer, Scale, table_of
from cwa_engine.figures.registry import FIGURE_KINDS
from cwa_engine.reports.drawing import FORMATS, chart, page_script, vega_lite, write_figure
from cwa_engine.reports.looks import Look
from tests.engine import figure_sources as sources

pytest.importorskip("vl_convert", reason="vl-convert is not installed")
LOOKS: tuple[Look, ...] = get_args(Look)


@dataclass(frozen=True)
class Measured:
    x: float
    y: float | None
    series: str
    low: float | None = None
    high: float | None = None


def figure(rows: list[Measured], y: Scale = "linear", **changes: Any) -> Figure:
    layers = (Layer("line"), Layer("interval", low="low", high="high"), Layer("point"), Layer("beyond"))
    asked: dict[str, Any] = {"layers": layers, "colour": Axis("series", "", "category")} | changes
    return Figure(
        "a", "A title", "A caption.", table_of("a", Measured, rows), Axis("x", "k"), Axis("y", "loss", y), **asked
    )


PLAIN = figure(
    [Measured(1, 1, "a", 0.5, 1.5), Measured(2, 2, "a", 1, 3), Measured(1, 3, "b"), Measured(2, math.inf, "b")]
)


@pytest.fixture(scope="module")
def every_figure() -> list[Figure]:
    """The first two of every kind."""
    return [
        each
        for kind in FIGURE_KINDS
        for source in sources.SOURCES[kind.of]()
        for each in itertools.islice(kind.make(source), 2)
        if not each.name.endswith("magnitude")
    ]


def rows_of(layer: dict[str, Any]) -> list[dict[str, str]]:
    """The data of a layer, as a reader of CSV has it."""
    values = layer["data"]["values"]
    return values if isinstance(values, list) else list(csv.DictReader(io.StringIO(values)))


def layer_of(spec: dict[str, Any], mark: str) -> dict[str, Any]:
    return next(layer for layer in spec["layer"] if layer["mark"]["type"] == mark)


def test_every_figure_is_valid_vega_lite_in_every_look(every_figure: list[Figure]) -> None:
    altair = pytest.importorskip("altair")
    for each, look in [*((each, "light") for each in every_figure), *((PLAIN, look) for look in LOOKS)]:
        altair.LayerChart.from_dict(vega_lite(each, look))  # raises for what the schema does not know


def test_the_numbers_of_a_mark_are_those_of_the_table(every_figure: list[Figure]) -> None:
    for each in every_figure:
        names = [axis.field for axis in each.axes]
        table = {tuple(str(getattr(row, name)) for name in names) for row in each.table.rows}
        for layer in vega_lite(each)["layer"]:
            if layer["mark"]["type"] in ("point", "rect", "bar") and layer["mark"].get("shape") != "triangle-up":
                drawn = rows_of(layer)
                assert {tuple(row[name] for name in names) for row in drawn} <= table, each.name


def test_what_is_not_finite_has_no_number_in_a_spec(every_figure: list[Figure]) -> None:
    without_interval = figure([Measured(1, 1, "a", math.nan, math.inf), Measured(math.nan, 1, "a")])
    for each in [*every_figure, without_interval]:
        text = json.dumps(vega_lite(each), allow_nan=False)
        assert not re.search(r"\b(nan|inf|NaN|Infinity)\b", text), each.name


def test_a_line_is_broken_where_the_loss_is_not_finite_and_a_mark_stands_at_the_edge() -> None:
    spec = vega_lite(figure([Measured(1, 1, "a"), Measured(2, math.nan, "a"), Measured(3, 3, "a")]))
    assert [row["y"] for row in rows_of(layer_of(spec, "line"))] == ["1", "", "3"]
    beyond = next(layer for layer in spec["layer"] if layer["mark"].get("shape") == "triangle-up")
    assert [row["x"] for row in rows_of(beyond)] == ["2"] and "field" not in beyond["encoding"]["y"]
    points = next(layer for layer in spec["layer"] if layer["mark"]["type"] == "point" and layer is not beyond)
    assert [row["x"] for row in rows_of(points)] == ["1", "3"]


def test_a_logarithmic_axis_draws_no_zero_and_no_interval_that_reaches_it() -> None:
    spec = vega_lite(figure([Measured(1, 0, "a"), Measured(2, 1, "a", 0, 2), Measured(3, 2, "a", 1, 3)], y="log"))
    assert [row["x"] for row in rows_of(layer_of(spec, "point"))] == ["2", "3"]
    assert [row["x"] for row in rows_of(layer_of(spec, "rule"))] == ["3"]


def test_series_differ_by_marker_and_dash_and_not_by_colour_alone() -> None:
    spec = vega_lite(PLAIN)
    lines = [layer for layer in spec["layer"] if layer["mark"]["type"] == "line"]
    assert len({tuple(layer["mark"]["strokeDash"]) for layer in lines}) == len(lines) == 2
    shapes = layer_of(spec, "point")["encoding"]["shape"]["scale"]["range"]
    assert len(set(shapes)) == 2


def test_pages_have_zoom_and_tooltips_and_papers_have_neither() -> None:
    page, paper = json.dumps(vega_lite(PLAIN)), json.dumps(vega_lite(PLAIN, "one-column"))
    assert '"tooltip"' in page and '"bind": "scales"' in page and '"container"' in page
    assert '"tooltip"' not in paper and '"params"' not in paper


def test_the_dark_look_differs_from_the_light_one_in_colours_alone() -> None:
    light, dark = (vega_lite(PLAIN, look) for look in ("light", "dark"))
    assert light != dark and rows_of(light["layer"][0]) == rows_of(dark["layer"][0])
    assert light["config"]["axis"]["labelFontSize"] == dark["config"]["axis"]["labelFontSize"]
    assert light["config"]["axis"]["labelColor"] != dark["config"]["axis"]["labelColor"]


@pytest.mark.parametrize(
    "name", ['</script><img src=x onerror="alert(1)">', 'a "quote", a comma', "two\nlines", "∆ été 模型"]
)
def test_names_of_any_characters_are_data_and_come_back_as_they_are(name: str, tmp_path: Path) -> None:
    hostile = figure([Measured(1, 1, name), Measured(2, 2, name), Measured(1, 2, "b")])
    assert {row["series"] for row in rows_of(layer_of(vega_lite(hostile), "point"))} == {name, "b"}
    paths = write_figure(hostile, tmp_path, ("svg",))
    root = ET.fromstring(paths[0].read_text())
    assert not [element for element in root.iter() if element.tag.endswith(("script", "image", "img"))]


# pictures


@pytest.mark.parametrize(("width", "inches"), [("one-column", 3.25), ("two-column", 6.75)])
def test_pictures_are_as_wide_as_a_column_and_the_table_is_beside_them(
    width: Any, inches: float, tmp_path: Path
) -> None:
    paths = write_figure(PLAIN, tmp_path / "new", width=width)
    assert [path.name for path in paths] == ["a.svg", "a.pdf", "a.png", "a.csv"]
    assert paths[3].read_bytes() == PLAIN.table.table.to_bytes(PLAIN.table.rows)
    (pixels,) = struct.unpack(">I", paths[2].read_bytes()[16:20])
    assert pixels == pytest.approx(300 * inches, abs=4)
    assert float(ET.fromstring(paths[0].read_text()).attrib["width"]) == pytest.approx(72 * inches, abs=1)
    box = re.search(rb"MediaBox\s*\[\s*([\d. ]+)\]", paths[1].read_bytes())
    assert box and float(box.group(1).split()[2]) == pytest.approx(72 * inches, abs=1)


def test_every_kind_fits_into_its_column(every_figure: list[Figure], tmp_path: Path) -> None:
    for each in every_figure:
        (path, _) = write_figure(each, tmp_path, ("svg",))
        assert float(ET.fromstring(path.read_text()).attrib["width"]) == pytest.approx(72 * 3.25, abs=1.5), each.name


def test_fonts_are_embedded_in_pdf_and_large_enough_to_read(tmp_path: Path) -> None:
    svg, pdf, _ = write_figure(PLAIN, tmp_path, ("svg", "pdf"))
    streams = [_inflated(part) for part in re.findall(rb"stream\r?\n(.*?)\r?\nendstream", pdf.read_bytes(), re.DOTALL)]
    assert b"FontFile" in pdf.read_bytes() + b"".join(streams)
    sizes = {float(size) for size in re.findall(r'font-size="([\d.]+)px"', svg.read_text())}
    assert min(sizes) >= 8


def _inflated(stream: bytes) -> bytes:
    try:
        return zlib.decompress(stream)
    except zlib.error:
        return b""


def test_no_picture_and_no_script_names_an_address_that_is_asked(tmp_path: Path) -> None:
    (svg, _) = write_figure(PLAIN, tmp_path, ("svg",))
    assert set(re.findall(r"https?://[^\"' ]+", svg.read_text())) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    assert "http" not in json.dumps(vega_lite(PLAIN))
    script = page_script()
    assert "vegaEmbed" in script and len(script) < 1_000_000


def test_what_cannot_be_written_is_said_with_what_can(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="'gif'") as refused:
        write_figure(PLAIN, tmp_path, ("gif",))
    assert all(name in refused.value.hint for name in FORMATS)
    with pytest.raises(InvalidInput, match="'wide' wide"):
        write_figure(PLAIN, tmp_path, width="wide")  # type: ignore[arg-type]
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="file"):
        write_figure(PLAIN, tmp_path / "file", ("svg",))


def test_without_the_libraries_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("vl_convert", "altair"):
        monkeypatch.setitem(sys.modules, name, None)
    page_script.cache_clear()
    for call in (page_script, lambda: write_figure(PLAIN, tmp_path, ("png",)), lambda: chart(PLAIN)):
        with pytest.raises(InvalidInput, match="not installed") as refused:
            call()
        assert 'pip install "cwtool[report]"' in refused.value.hint
    assert vega_lite(PLAIN)["layer"]  # which needs neither


def test_a_figure_can_be_changed_further_in_altair() -> None:
    pytest.importorskip("altair")
    assert chart(PLAIN).properties(title="Mine").to_dict()["title"] == "Mine"
