"""What each device did in the last minutes: memory, utilisation and temperature over time, on fixed ranges.

`history_lines` draws one device, `devices_lines` all of them; both are plain functions of the samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.text import Text

from cwa_daemon.protocol import DeviceMemory, Sample
from cwa_tui.text import format as fmt
from cwa_tui.widgets import area_chart
from cwa_tui.widgets.area_chart import Level
from cwa_tui.widgets.quiet_lines import QuietLines

SPAN_S = 240.0  # a chart shows at least this long, if its columns allow that
_COLUMN_S = (1, 2, 3, 4, 5, 6, 10, 12, 15, 20, 30, 60, 120)  # how long a column lasts
REDRAW_S = 2.0  # over a slow link a chart need not come more often
GAP_S = 5.0  # without a sample for so long, nothing is drawn
HOTTEST_C = 100.0  # the top of the temperature's range
NEARLY_FULL = 0.9

_TICKS_S = (15, 30, 60, 120, 300, 600, 1200, 3600)  # between two labels of the time axis
_LABEL_CELLS = 8  # from the beginning of one label to the next, at least
_RANGE_CELLS = 7  # "100 °C" and a space, left of a chart
_BETWEEN = 2  # cells between two charts
_LEAST_CHART = 26  # cells; side by side where there is room for that
_SHORT_TITLES = (24, 9, 6)  # cells of the titles of memory, utilisation and temperature in a single line
_OWN, _OTHERS = "cyan", "magenta"
_LOW, _MIDDLE, _HIGH = "green", "yellow", "red"


class DeviceHistory(QuietLines):
    """`show_history` shows samples; `last_known` greys them out, for they are not of now any more."""

    _shown: tuple[object, ...] = ()

    def show_history(self, samples: Sequence[Sample], last_known: bool = False) -> None:
        size, newest = self.content_size, samples[-1].time if samples else 0.0
        wanted = (size, newest // REDRAW_S, last_known)
        if not size or wanted == self._shown:  # hidden, or nothing new was measured
            return
        self._shown = wanted
        latest = fmt.time_of_day(newest) if last_known else "now"
        self.say(devices_lines(samples, size.width, size.height, latest), last_known)


@dataclass(frozen=True, slots=True)
class _Chart:
    """One chart of a device: its titles from the longest to the shortest, the top of its range, and what a sample says."""

    titles: Sequence[Text]
    top: str
    level: Callable[[DeviceMemory], Level | None]
    style: area_chart.Style


def device_lines_wanted(devices: int, screen_height: int, much_room: bool = False) -> int:
    """Lines for so many devices on a screen: a quarter of it, a third for many devices or where there is `much_room`.

    Each has a line in any case.
    """
    share = screen_height // (3 if much_room or devices > 3 else 4) - (screen_height < 32)
    return max(devices, min(share, 12 * max(1, devices - 1) + (devices > 1)))


def history_lines(samples: Sequence[Sample], device: str, width: int, height: int, latest: str = "now") -> list[Text]:
    """A device in `height` lines of at most `width` cells: a title, charts beside each other, and their time axis.

    With one line there are figures and small charts. The newest sample is at the right, over the label `latest`. A device of
    which nothing is known is said to be so.
    """
    if width < 1 or height < 1:
        return []
    begin = samples[-1].time - 2 * width * column_seconds(2 * width) if samples else 0.0  # no chart shows more
    seen = [
        (sample.time, at) for sample in samples if sample.time > begin for at in sample.devices if at.device == device
    ]
    if not seen:
        return _cut([Text(f"{device}: nothing is known yet")], width, height)
    charts = _charts(device, [at for _, at in seen])
    lines = _one_line(charts, seen, width) if height == 1 else _beside(charts, seen, width, height, latest)
    return _cut(lines, width, height)


def devices_lines(samples: Sequence[Sample], width: int, height: int, latest: str = "now") -> list[Text]:
    """Every device of the newest sample; where there are accelerators the CPU has one line, unless there is much room."""
    if not samples:
        return _cut([Text("no telemetry yet")], width, height)
    devices = [at.device for at in samples[-1].devices]
    accelerators = [device for device in devices if device != "cpu"]
    order = [*accelerators, *(device for device in devices if device == "cpu")]
    heights = _heights(order, height)
    drawn = [
        line
        for device, rows in zip(order, heights, strict=True)
        for line in history_lines(samples, device, width, rows, latest)
    ]
    return _cut(drawn, width, height)


def _heights(devices: Sequence[str], height: int) -> list[int]:
    """Lines for each device, in their order: evenly, but one for the CPU beside accelerators where they need the room."""
    count = len(devices)
    if count > 1 and devices[-1] == "cpu" and height < 7 * count:
        return [max(1, (height - 1) // (count - 1))] * (count - 1) + [1]
    return [max(1, height // count)] * count


# what is shown of a device


def _charts(device: str, seen: Sequence[DeviceMemory]) -> list[_Chart]:
    now = seen[-1]
    charts = [_Chart(_memory_titles(now), fmt.size(now.total_bytes), _memory, _by_owner)]
    if any(at.utilisation is not None for at in seen):
        used = "-" if now.utilisation is None else f"{now.utilisation:.0%}"
        charts.append(_Chart([Text(f"utilisation {used}"), Text(f"util {used}")], "100%", _utilisation, _by_height))
    if any(at.temperature_c is not None for at in seen):
        heat = "-" if now.temperature_c is None else f"{now.temperature_c:.0f} °C"
        titles = [Text(f"temperature {heat}"), Text(heat)]
        charts.append(_Chart(titles, f"{HOTTEST_C:.0f} °C", _temperature, _by_height))
    return charts


def _memory_titles(now: DeviceMemory) -> list[Text]:
    is_full = now.used_bytes >= NEARLY_FULL * now.total_bytes
    name, style = (now.device, "bold"), _HIGH if is_full else ""
    short = Text.assemble(name, (f" {_gigabytes(now.used_bytes)} GB", style))
    used = Text.assemble(name, (f" {_gigabytes(now.used_bytes)}", style), f" of {_gigabytes(now.total_bytes)} GB")
    noted = used + Text(" nearly full", style) if is_full else used
    if now.others_bytes is None:
        return [noted, used, short]
    legend = Text.assemble(
        (f" {area_chart.SOLID}", _OWN),
        f" ours {_gigabytes(max(0, now.used_bytes - now.others_bytes))}",
        (f" {area_chart.SPARSE}", _OTHERS),
        f" others {_gigabytes(now.others_bytes)}",
    )
    return [noted + legend, used + legend, short + legend, noted, used, short]


def _gigabytes(size_bytes: float) -> str:
    """Two to four digits, so that figures of one device can be compared without their unit."""
    gigabytes = size_bytes / 1e9
    return f"{gigabytes:.2f}" if gigabytes < 9.995 else f"{gigabytes:.1f}" if gigabytes < 999.95 else f"{gigabytes:.0f}"


def _memory(at: DeviceMemory) -> Level | None:
    if at.total_bytes <= 0:
        return None
    others = min(at.others_bytes or 0, at.used_bytes)
    return Level(at.used_bytes / at.total_bytes, (at.used_bytes - others) / at.total_bytes)


def _utilisation(at: DeviceMemory) -> Level | None:
    return None if at.utilisation is None else Level(at.utilisation, at.utilisation)


def _temperature(at: DeviceMemory) -> Level | None:
    return None if at.temperature_c is None else Level(at.temperature_c / HOTTEST_C, at.temperature_c / HOTTEST_C)


def _by_owner(height: float, is_own: bool) -> str:
    return _OWN if is_own else _OTHERS


def _by_height(height: float, is_own: bool) -> str:
    return _LOW if height < 0.6 else _MIDDLE if height < 0.85 else _HIGH


# charts


def _one_line(charts: Sequence[_Chart], seen: Sequence[tuple[float, DeviceMemory]], width: int) -> list[Text]:
    """Each chart's short title with a small history behind it, as long as there is room; alike for every device."""
    titles = []
    for place, chart in enumerate(charts):
        title = chart.titles[-1 if place else -2].copy()
        title.pad_right(max(0, _SHORT_TITLES[place] - title.cell_len))
        titles.append(title)
    room = width - sum(cells + 1 for cells in _SHORT_TITLES) - _BETWEEN * (len(_SHORT_TITLES) - 1)
    cells = min(20, room // len(_SHORT_TITLES))
    parts = []
    for chart, title in zip(charts, titles, strict=True):
        small = _area(chart, seen, cells, 1) if cells >= 4 else []
        parts.append(Text(" ").join([title, *small]))
    return [Text(" " * _BETWEEN).join(parts)]


def _beside(
    charts: Sequence[_Chart],
    seen: Sequence[tuple[float, DeviceMemory]],
    width: int,
    height: int,
    latest: str,
) -> list[Text]:
    """Charts beside each other, as many as have room; what is left out is still told in the title of the last one."""
    count = max(1, min(len(charts), (width + _BETWEEN) // (_LEAST_CHART + _BETWEEN)))
    shown = [*charts[:count]]
    if left := charts[count:]:
        told = [Text("  ").join([shown[-1].titles[0], *(chart.titles[-1] for chart in left)])]
        shown[-1] = _Chart([*told, *shown[-1].titles], shown[-1].top, shown[-1].level, shown[-1].style)
    widths = _widths(shown, width)
    blocks = [_block(chart, seen, cells, height, latest) for chart, cells in zip(shown, widths, strict=True)]
    return [_side_by_side([block[row] for block in blocks], widths) for row in range(height)]


def _widths(charts: Sequence[_Chart], width: int) -> list[int]:
    """Evenly, but the first chart takes what its longest title needs while the others keep enough."""
    room = width - _BETWEEN * (len(charts) - 1)
    even = room // len(charts)
    if len(charts) == 1:
        return [room]
    first = min(max(even, charts[0].titles[0].cell_len), room - _LEAST_CHART * (len(charts) - 1))
    rest = (room - first) // (len(charts) - 1)
    return [max(first, 1), *[rest] * (len(charts) - 1)]


def _block(
    chart: _Chart, seen: Sequence[tuple[float, DeviceMemory]], width: int, height: int, latest: str
) -> list[Text]:
    """A title, the chart, and from four lines on a time axis; the range is at its left where there is room."""
    title = next((title for title in chart.titles if title.cell_len <= width), chart.titles[-1])
    has_axis, has_range = height >= 4, width >= _LEAST_CHART
    rows = height - 1 - has_axis
    margin = _RANGE_CELLS if has_range else 0
    area = _area(chart, seen, width - margin, rows)
    labels = [chart.top, *[""] * (rows - 2), "0"] if rows > 1 else [chart.top]
    lines = [
        Text(f"{label:>{margin - 1}} " if margin else "", "dim") + line
        for label, line in zip(labels, area, strict=True)
    ]
    axis = [Text(" " * margin) + time_axis(width - margin, latest)] if has_axis else []
    return [title, *lines, *axis]


def _area(chart: _Chart, seen: Sequence[tuple[float, DeviceMemory]], width: int, height: int) -> list[Text]:
    count = 2 * max(0, width)
    return area_chart.area_chart(_columns(chart.level, seen, count), height, chart.style)


def column_seconds(count: int) -> int:
    """How long each of `count` columns lasts, so that together they show SPAN_S at least."""
    return next((seconds for seconds in _COLUMN_S if seconds * count >= SPAN_S), _COLUMN_S[-1])


def _columns(
    level: Callable[[DeviceMemory], Level | None], seen: Sequence[tuple[float, DeviceMemory]], count: int
) -> list[Level | None]:
    """The levels of `count` columns up to the newest sample, the highest of each column's time; None in a gap.

    Columns begin at whole multiples of their length, so a chart moves by one column at a time and keeps its shape.
    """
    if not count:
        return []
    length = column_seconds(count)
    first = int(seen[-1][0] // length) - count + 1
    columns: list[Level | None] = [None] * count
    before, filled = -GAP_S, 0  # when the sample before was, and its column
    for moment, at in seen:
        place = int(moment // length) - first
        if place < 0 or (now := level(at)) is None:
            continue
        if place > filled + 1 and moment - before <= GAP_S:  # columns shorter than the time between two samples
            columns[filled + 1 : place] = [columns[filled]] * (place - filled - 1)
        known = columns[place]
        if known is None or now > known:
            columns[place] = now
        before, filled = moment, place
    return columns


def time_axis(width: int, latest: str = "now") -> Text:
    """`-4m ── -3m ── ... now`: each label begins in the cell of its age; `latest` stands at the right."""
    cells = ["─"] * width
    if width >= len(latest):
        cells[width - len(latest) :] = latest
    per_cell = 2 * column_seconds(2 * width)
    step = next((tick for tick in _TICKS_S if tick >= _LABEL_CELLS * per_cell), _TICKS_S[-1])
    for age in range(step, per_cell * width, step):
        label = f"-{age}s" if age < 60 else f"-{age // 60}m" if step % 60 == 0 else f"-{age // 60}:{age % 60:02d}"
        begin = width - 1 - age // per_cell
        if begin >= 0 and begin + len(label) < width - len(latest):
            cells[begin : begin + len(label)] = label
    return Text("".join(cells), "dim", no_wrap=True)


# lines


def _side_by_side(parts: Sequence[Text], widths: Sequence[int]) -> Text:
    return Text(" " * _BETWEEN).join(
        _truncated(part, width, pad=True) for part, width in zip(parts, widths, strict=True)
    )


def _cut(lines: Sequence[Text], width: int, height: int) -> list[Text]:
    shown = [_truncated(line, width) for line in lines[:height]]
    for line in shown:
        line.rstrip()
    return shown


def _truncated(line: Text, width: int, pad: bool = False) -> Text:
    cut = line.copy()
    cut.truncate(width, pad=pad)
    return cut
