"""Charts of what devices did: what they say, that they fit, and that time is where the axis says it is."""

from __future__ import annotations

import itertools
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from cwa_daemon.protocol import DeviceMemory, Sample
from cwa_tui.widgets.area_chart import Level, area_chart
from cwa_tui.widgets.device_history import column_seconds, devices_lines, history_lines, time_axis

BEGAN = 1_795_460_700.0
GB = 10**9
_BRAILLE = 0x2800
_LEVEL = {0x40: 0, 0x80: 0, 0x04: 1, 0x20: 1, 0x02: 2, 0x10: 2, 0x01: 3, 0x08: 3}  # a dot's row within its cell
_LEFT_DOTS = 0x47


def sample(age_s: float, *devices: DeviceMemory) -> Sample:
    return Sample(time=BEGAN - age_s, devices=list(devices), processes_bytes=0)


def device(name: str = "cpu", used: float = 0.5, **fields: Any) -> DeviceMemory:
    total = 20 * GB
    return DeviceMemory(device=name, total_bytes=total, used_bytes=int(used * total), **fields)


def dots(lines: list[str], width: int) -> list[set[int]]:
    """Column -> heights of its dots, from the lines of a braille chart; an independent reading of the Unicode table."""
    columns: list[set[int]] = [set() for _ in range(2 * width)]
    for row, line in enumerate(reversed(lines)):
        for cell, character in enumerate(line):
            bits = ord(character) - _BRAILLE if character != " " else 0
            for bit, level in _LEVEL.items():
                if bits & bit:
                    columns[2 * cell + (not bit & _LEFT_DOTS)].add(4 * row + level)
    return columns


def plain(columns: list[Level | None], height: int) -> list[str]:
    return [line.plain for line in area_chart(columns, height, lambda height, solid: "")]


parts = st.floats(0, 1)
levels = st.one_of(st.none(), st.tuples(parts, parts).map(lambda two: Level(max(two), min(two))))


@given(st.lists(levels, min_size=1, max_size=40), st.integers(1, 6))
def test_a_column_is_as_high_as_what_was_measured_and_a_gap_is_empty(columns: list[Level | None], height: int) -> None:
    found = dots(plain(columns, height), (len(columns) + 1) // 2)
    for column, heights in zip(columns, found, strict=False):
        if column is None:
            assert not heights
        else:
            assert abs(max(heights) + 1 - 4 * height * column.total) <= max(1, 0.5)
            assert min(heights) <= 1


@given(st.lists(parts, min_size=2, max_size=40), st.integers(1, 6))
def test_more_is_never_drawn_lower(totals: list[float], height: int) -> None:
    rising = sorted(totals)
    lines = plain([Level(total, total) for total in rising], height)
    heights = [max(column) for column in dots(lines, (len(rising) + 1) // 2)[: len(rising)]]
    assert heights == sorted(heights)


def test_our_part_is_solid_and_the_rest_is_sparse_so_that_colour_is_not_needed() -> None:
    column = dots(plain([Level(1.0, 0.5)], 4), 1)[0]
    ours, above = set(range(8)), column - set(range(8))
    assert ours <= column and 15 in above and 4 <= len(above) <= 5


moments = st.tuples(
    st.floats(0, 2000),
    st.floats(0, 1.2),
    st.one_of(st.none(), st.floats(0, 1)),
    st.one_of(st.none(), st.floats(-20, 130)),
)


def samples_of(rows: list[tuple[float, float, float | None, float | None]]) -> list[Sample]:
    def both(used: float, busy: float | None, heat: float | None) -> list[DeviceMemory]:
        measured = {"others_bytes": int(used * GB), "utilisation": busy, "temperature_c": heat}
        return [device(name, used, **measured) for name in ("cpu", "cuda:0")]

    return [sample(row[0], *both(*row[1:])) for row in sorted(rows, key=lambda row: -row[0])]


samples = st.lists(moments, max_size=60).map(samples_of)


@given(samples, st.integers(0, 200), st.integers(0, 20))
def test_no_line_is_wider_and_no_device_higher_than_asked(history: list[Sample], width: int, height: int) -> None:
    for lines in (
        history_lines(history, "cuda:0", width, height),
        devices_lines(history, width, height),
    ):
        assert len(lines) <= height
        assert all(line.cell_len <= width for line in lines)


def test_nothing_is_made_up_of_a_device_that_nobody_has_measured() -> None:
    assert history_lines([], "cpu", 80, 6)[0].plain == "cpu: nothing is known yet"
    assert devices_lines([], 80, 6)[0].plain == "no telemetry yet"
    lines = history_lines([sample(0, device())], "cpu", 80, 6)
    assert (
        "utilisation" not in lines[0].plain and "temperature" not in lines[0].plain and "others" not in lines[0].plain
    )


def test_the_title_has_the_figures_of_now_in_one_unit() -> None:
    now = device("cuda:0", 0.95, others_bytes=4 * GB, utilisation=0.5, temperature_c=61.4)
    title = history_lines([sample(0, now)], "cuda:0", 160, 6)[0].plain
    assert "cuda:0 19.0 of 20.0 GB nearly full" in title
    assert "ours 15.0" in title and "others 4.00" in title
    assert "utilisation 50%" in title and "temperature 61 °C" in title
    small = history_lines([sample(0, now)], "cuda:0", 78, 6)[0].plain
    assert "ours 15.0" in small and "61 °C" in small


def test_the_axis_says_when_something_was() -> None:
    """A spike two minutes ago stands over the first cell of the label -2m."""
    quiet, spike = device(utilisation=0.0), device(utilisation=1.0)
    for width in (60, 78, 120, 200):
        history = [sample(age, spike if 120 <= age < 121 else quiet) for age in range(290, -1, -1)]
        lines = [line.plain.ljust(width) for line in history_lines(history, "cpu", width, 6)]
        axis = lines[-1]
        half = axis.index("now") + 3  # where the memory's chart ends
        top = lines[1][half:]
        here = [place for place, cell in enumerate(top) if cell not in " 10%"]
        assert len(here) == 1
        assert abs(here[0] - axis[half:].index("-2")) <= 1


def test_the_axis_ends_now_or_when_it_was_known_last_and_its_labels_do_not_touch() -> None:
    for width, latest in itertools.product((10, 20, 31, 76, 150, 292), ("now", "14:03:22")):
        axis = time_axis(width, latest).plain
        assert len(axis) == width and axis.endswith(latest)
        labels = axis.replace("─", " ").split()
        assert len(labels) == len(set(labels))
        assert column_seconds(2 * width) * 2 * width >= 240


def test_a_time_without_samples_is_a_gap() -> None:
    history = [sample(age, device(used=0.5)) for age in range(290, -1, -1) if not 60 < age < 120]
    chart = [line.plain[7:] for line in history_lines(history, "cpu", 60, 5)[1:-1]]
    heights = dots([line.ljust(53) for line in chart], 53)
    seconds = column_seconds(106)
    empty = sum(not column for column in heights[-(240 // seconds) :])
    assert abs(empty * seconds - 60) <= 2 * seconds


def test_slow_samples_leave_no_gaps_between_them() -> None:
    history = [sample(age, device(used=0.5)) for age in range(288, -1, -4)]
    chart = [line.plain for line in history_lines(history, "cpu", 250, 3)[1:]]
    assert all(len(column) > 0 for column in dots([line[7:].ljust(243) for line in chart], 243)[-200:])


def test_accelerators_come_first_and_the_cpu_has_a_line_below_them() -> None:
    history = [
        sample(age, device("cpu", utilisation=0.1), device("cuda:0"), device("cuda:1")) for age in range(9, -1, -1)
    ]
    lines = [line.plain for line in devices_lines(history, 80, 9)]
    first = [line.split()[0] for line in lines if line and not line.startswith(" ")]
    assert [name for name in first if name in ("cpu", "cuda:0", "cuda:1")] == ["cuda:0", "cuda:1", "cpu"]
    assert lines[-1].startswith("cpu 10.0 of 20.0 GB")


def test_many_devices_have_a_line_each_where_there_is_no_more_room() -> None:
    names = ["cpu", *(f"cuda:{place}" for place in range(8))]
    lines = devices_lines([sample(0, *map(device, names))], 80, 9)
    assert [line.plain.split()[0] for line in lines] == [*names[1:], "cpu"]
