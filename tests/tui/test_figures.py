"""Figures in cells: marks stand where their numbers are, nothing is dropped without a word, and all reads without colour."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from cwa_engine.figures.figure import Axis, Figure, Layer, table_of
from cwa_tui.charts.drawing import whole
from cwa_tui.charts.heat import BELOW, SHADES
from cwa_tui.charts.layout import FILLS, MARKERS
from cwa_tui.terminal.characters import in_ascii


@dataclass(frozen=True, slots=True)
class Row:
    x: float | None
    y: float | None
    series: str = "critical"
    low: float | None = None
    high: float | None = None
    collapsed: bool = False


def figure(rows: list[Row], *layers: Layer, x: str = "linear", y: str = "linear", several: bool = False) -> Figure:
    return Figure(
        name="figure",
        title="a title",
        caption="a caption",
        table=table_of("figure", Row, rows),
        x=Axis("x", "k", x),  # type: ignore[arg-type]
        y=Axis("y", "change", y),  # type: ignore[arg-type]
        colour=Axis("series", "", "category") if several else None,
        layers=layers or (Layer("point"),),
    )


def drawn(shown: Figure, width: int = 80, height: int = 23) -> list[str]:
    return [line for part in whole(shown, width, height) for line in part.plain.split("\n")]


def places(lines: list[str], marker: str) -> list[tuple[int, int]]:
    """Column and line of every marker in the plot, from the left."""
    axis = next(at for at, line in enumerate(lines) if "└" in line)
    found = [(column, row) for row, line in enumerate(lines[:axis]) for column, at in enumerate(line) if at == marker]
    return sorted(found)


def ticks(lines: list[str]) -> tuple[dict[float, int], dict[float, int]]:
    """Value -> column of the ticks along x, and value -> line of those along y, as they are printed."""
    axis = next(at for at, line in enumerate(lines) if "└" in line)
    columns = [column for column, at in enumerate(lines[axis]) if at == "┬"]
    along_x = dict(zip(map(float, lines[axis + 1].split()), columns, strict=True))
    along_y = {float(line.split("┤")[0]): row for row, line in enumerate(lines[:axis]) if "┤" in line}
    return along_x, along_y


def between(known: dict[float, int], value: float) -> float:
    """Where a value stands among ticks, by the two outermost of them."""
    low, high = min(known), max(known)
    return known[low] + (known[high] - known[low]) * (value - low) / (high - low)


def test_points_stand_where_the_ticks_say_that_their_numbers_are() -> None:
    given = [(0.0, 0.0), (3.0, 7.5), (10.0, 10.0)]
    lines = drawn(figure([Row(x, y) for x, y in given]))
    along_x, along_y = ticks(lines)
    for (x, y), (column, row) in zip(given, places(lines, "●"), strict=True):
        assert abs(column - between(along_x, x)) <= 1 and abs(row - between(along_y, y)) <= 1


def test_each_decade_of_a_logarithmic_axis_is_as_wide_as_the_others() -> None:
    lines = drawn(figure([Row(1, 0.001), Row(10, 0.1), Row(100, 10.0)], x="log", y="log"))
    columns, rows = zip(*places(lines, "●"), strict=True)
    assert abs((columns[1] - columns[0]) - (columns[2] - columns[1])) <= 1
    assert abs((rows[0] - rows[1]) - (rows[1] - rows[2])) <= 1
    assert any("change, logarithmic" in line for line in lines)


def test_changes_of_both_signs_stand_on_both_sides_of_zero_on_a_symlog_axis() -> None:
    lines = drawn(figure([Row(1, -10.0), Row(2, 0.0), Row(3, 10.0)], y="symlog"))
    low, middle, high = (row for _, row in places(lines, "●"))
    assert abs((low - middle) - (middle - high)) <= 1 and low > middle > high


def test_an_interval_goes_from_its_low_to_its_high_end() -> None:
    rows = [Row(0, 0.0), Row(1, 5.0, low=2.0, high=8.0), Row(2, 10.0)]
    lines = drawn(figure(rows, Layer("point"), Layer("interval", "low", "high")))
    _, along_y = ticks(lines)
    axis = min(column for column, _ in places(lines, "│"))
    covered = [row for column, row in places(lines, "│") if column > axis]
    assert abs(min(covered) - between(along_y, 8.0)) <= 1 and abs(max(covered) - between(along_y, 2.0)) <= 1


def test_a_row_without_a_finite_number_is_named_and_a_line_is_interrupted_there() -> None:
    rows = [Row(1, 1.0), Row(2, 1.0), Row(3, math.nan), Row(4, 1.0), Row(5, 1.0), Row(6, None)]
    lines = drawn(figure(rows, Layer("line")))
    assert any("not drawn: 2 of 6 rows, whose y is missing or not finite: x 3; x 6" in line for line in lines)
    along_x, _ = ticks(lines)
    line = next(line for line in lines if sum("\u2800" < at < "\u28ff" for at in line) > 9)
    gap = range(math.ceil(between(along_x, 2.0)) + 1, math.floor(between(along_x, 4.0)))
    assert len(gap) > 10 and not line[gap.start : gap.stop].strip()


def test_a_model_that_collapsed_stands_at_the_upper_edge_and_is_not_counted_as_missing() -> None:
    rows = [Row(1, 1.0), Row(2, 2.0), Row(3, None, collapsed=True)]
    lines = drawn(figure(rows, Layer("point"), Layer("beyond", where=(("collapsed", True),))))
    ((column, row),) = places(lines, "▲")
    assert row == 2 and column > places(lines, "●")[1][0]  # below title and name of the axis
    assert not any("not drawn" in line for line in lines) and any("▲ not finite" in line for line in lines)


def test_series_are_told_apart_by_markers_and_points_in_one_cell_are_not_hidden() -> None:
    lines = drawn(figure([Row(1, 1.0, "a"), Row(2, 2.0, "a"), Row(1, 1.0, "b"), Row(2, 3.0, "b")], several=True))
    assert len(places(lines, "●")) == 1 and len(places(lines, "○")) == 1 and len(places(lines, "&")) == 1
    assert any(line.startswith("● a  ○ b  & several") for line in lines)


def test_every_marker_and_shade_is_another_character_in_ascii() -> None:
    assert len(set(in_ascii(MARKERS + "▲&"))) == len(MARKERS) + 2
    for signs in (FILLS, SHADES + BELOW + "·?×"):
        assert len(set(in_ascii(signs))) == len(signs)


def test_more_series_than_markers_are_counted() -> None:
    rows = [Row(at, 1.0, f"s{at}") for at in range(len(MARKERS) + 3)]
    assert any("3 more series are in the table" in line for line in drawn(figure(rows, several=True)))


def test_bars_are_as_long_as_their_numbers_on_both_sides_of_zero() -> None:
    lines = drawn(replace(figure([Row(1, 4.0), Row(2, -2.0)], Layer("bar")), x=Axis("x", "k", "category")))
    _, along_y = ticks(lines)
    zero = along_y[0.0]
    left = [row for row, line in enumerate(lines) if "█" in line[:45]]
    right = [row for row, line in enumerate(lines) if "█" in line[45:]]
    per_unit = (along_y[0.0] - along_y[4.0]) / 4
    assert max(left) == zero and abs(len(left) - 4 * per_unit) <= 1
    assert min(right) == zero + 1 and abs(len(right) - 2 * per_unit) <= 1


def test_names_without_room_below_an_axis_become_numbers_that_are_explained() -> None:
    names = [f"EleutherAI/pythia-{size}m-deduplicated" for size in (70, 160, 410)]
    rows = [Row(1, at, name) for at, name in enumerate(names)]
    said = "\n".join(drawn(replace(figure(rows), x=Axis("series", "model", "category"))))
    assert all(f"{number}: {name}" in said for number, name in enumerate(names, 1))


@pytest.mark.parametrize("width", range(40, 120, 7))
def test_every_name_along_x_can_be_read_in_full(width: int) -> None:
    names = ["pythia-70m", "pythia-160m", "pythia-410m", "gpt2"]
    rows = [Row(1, 1000.0 * at, name) for at, name in enumerate(names)]
    lines = drawn(replace(figure(rows), x=Axis("series", "model", "category")), width)
    axis = next(at for at, line in enumerate(lines) if "└" in line)
    numbered = lines[axis + 1].split() == ["1", "2", "3", "4"]
    assert numbered or lines[axis + 1].split() == names
    assert all(any(f"{at}: {name}" in line for line in lines) for at, name in enumerate(names, 1)) == numbered


def test_a_figure_of_one_series_with_a_collapse_has_no_legend_of_series() -> None:
    rows = [Row(1, 1.0), Row(2, None, collapsed=True)]
    lines = drawn(figure(rows, Layer("point"), Layer("beyond", where=(("collapsed", True),))))
    assert "▲ not finite" in lines


@dataclass(frozen=True, slots=True)
class Cell:
    layer: int
    part: str
    number: float | None


def heat(cells: list[Cell]) -> Figure:
    return Figure(
        "map", "a map", "", table_of("map", Cell, cells), Axis("layer", "layer"), Axis("part", "part", "category"),
        (Layer("cell"),), Axis("number", "weights", "diverging"),
    )  # fmt: skip


def test_a_map_tells_zero_not_measured_not_finite_and_no_cell_apart() -> None:
    cells = [Cell(0, "q", 3.0), Cell(1, "q", 0.0), Cell(0, "up", None), Cell(1, "up", math.inf), Cell(2, "q", -1.0)]
    lines = drawn(heat(cells))
    rows = {line.split()[0]: line.split()[1:] for line in lines if line.split()[:1] in (["q"], ["up"])}
    assert rows == {"q": ["█3", "·", "=-1"], "up": ["?", "×"]}
    assert any("· 0" in line and "? not measured" in line and "× not finite" in line for line in lines)


@pytest.mark.parametrize("width", [40, 80])
def test_a_map_without_room_for_numbers_has_a_sign_for_each_cell(width: int) -> None:
    cells = [Cell(layer, part, float(layer)) for layer in range(30) for part in ("q", "up")]
    row = next(line for line in drawn(heat(cells), width) if line.strip().startswith("q"))
    assert len(row.split(maxsplit=1)[1].replace(" ", "")) == 30


NUMBER = (
    st.none()
    | st.floats(-1e300, 1e300)
    | st.just(math.nan)
    | st.just(math.inf)
    | st.integers(-(10**9), 10**9).map(float)
)
ROW = st.builds(
    Row, NUMBER, NUMBER, st.sampled_from(["a", "b", "\x1b[31mred", "c" * 90]), NUMBER, NUMBER, st.booleans()
)
SCALES = st.sampled_from(["linear", "log", "symlog", "category"])
LAYERS = st.lists(
    st.sampled_from(
        [
            Layer("point"), Layer("line", dashed=True), Layer("step"), Layer("bar"), Layer("interval", "low", "high"),
            Layer("rule", at=0.0), Layer("rule", at=1.0, upright=True), Layer("diagonal"),
            Layer("beyond", where=(("collapsed", True),)),
        ]
    ),
    min_size=1, max_size=4,
)  # fmt: skip


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(ROW, max_size=12), LAYERS, SCALES, SCALES, st.booleans(), st.integers(20, 160))
def test_any_chart_is_drawn_within_its_width_and_without_control_characters(
    rows: list[Row], layers: list[Layer], x: Any, y: Any, several: bool, width: int
) -> None:
    parts = whole(figure(rows, *layers, x=x, y=y, several=several), width)
    last = max(at for at, part in enumerate(parts) if "└" in part.plain) + 2  # names below a chart may be any length
    for at, part in enumerate(parts):
        assert all(line.isprintable() for line in part.plain.split("\n"))
        assert at > last or cell_len(part.plain) <= max(width, 40)
