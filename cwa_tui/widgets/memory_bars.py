"""How a device's memory is shared out: each warm model, what else is ours, what others use, and what is free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.text import Text

from cwa_daemon.protocol import DeviceMemory, StatusView, WarmModel, WorkerView
from cwa_engine.base.devices import memory_of
from cwa_engine.records.run_id import short_id
from cwa_tui.text.visible import visible
from cwa_tui.widgets.quiet_lines import QuietLines

_STYLES = ("cyan", "green", "blue", "yellow")  # of models beside each other
_OTHERS, _FREE = "magenta", "dim"
_BORDER = "▏"
LEAST_SHARE = 3  # cells of a part that is there at all, its border included


@dataclass(frozen=True, slots=True)
class Share:
    """A part of a device's memory."""

    name: str
    size_bytes: int
    style: str
    fill: str  # the cells that its label leaves

    @property
    def label(self) -> str:
        return f"{self.name} {self.size_bytes / 1e9:.2f}"


_NOTHING_WARM = "no model is warm: the first run of a model loads it, and it stays warm"


class MemoryBars(QuietLines):
    """A bar for each device that holds a model; where there is little room none. Where no model is warm it says so.

    Of several lanes it says what each does.
    """

    def show_memory(self, daemon: StatusView | None, has_little_room: bool, last_known: bool = False) -> None:
        if daemon is None or (has_little_room and daemon.models):
            self.say([])
            return
        lanes = lanes_line(daemon.lanes)
        if not daemon.models:
            self.say([Text(_NOTHING_WARM, "dim"), *lanes])
            return
        held = {device.device: _parts_on(device.device, daemon.models) for device in daemon.devices}
        width = self.content_size.width
        bars = [memory_bar(device, models, width) for device in daemon.devices if (models := held[device.device])]
        self.say([*bars, *lanes], last_known)


def _parts_on(device: str, models: Sequence[WarmModel]) -> list[WarmModel]:
    """The models of a device; one that lies over several is shared out evenly."""
    found = [(model, memory_of(model.device)) for model in models]
    return [
        model.model_copy(update={"size_bytes": model.size_bytes // len(parts)})
        for model, parts in found
        if device in parts
    ]


def lanes_line(lanes: Sequence[WorkerView]) -> list[Text]:
    """`lanes cpu:0 k7q2 · cpu:1 idle`; nothing where there is one lane alone."""
    if len(lanes) < 2:
        return []
    line = Text("lanes ", "dim")
    for place, lane in enumerate(lanes):
        line.append(" · " if place else "", "dim").append(f"{lane.device} ")
        line.append(short_id(lane.run_id) if lane.run_id else "idle" if lane.pid else "no worker", "dim")
    return [line]


def memory_bar(device: DeviceMemory, models: Sequence[WarmModel], width: int) -> Text:
    """`cpu |smollm2 0.54|other ours 0.30|others 8.10|free 15.1 of 25.0 GB|`, each part as wide as its share of the memory.

    A part whose label does not fit keeps what fits of it.
    """
    name = f"{device.device} "
    shares = [share for share in _shares(device, models) if share.size_bytes > 0]
    room = width - len(name) - 1
    if room < LEAST_SHARE * len(shares):
        return Text(name.strip()[: max(0, width)])
    bar = Text(name, no_wrap=True)
    for share, cells in zip(shares, _cells([share.size_bytes for share in shares], room), strict=True):
        label = share.label if len(share.label) < cells else share.name[: cells - 1]
        bar.append(_BORDER, "dim").append(label + share.fill * (cells - 1 - len(label)), share.style)
    return bar.append(_BORDER, "dim")


def _shares(device: DeviceMemory, models: Sequence[WarmModel]) -> list[Share]:
    others = device.others_bytes or 0
    warm = sum(model.size_bytes for model in models)
    beside = max(0, device.used_bytes - others - warm)
    free = max(0, device.total_bytes - max(device.used_bytes, warm + others))
    unknown = device.others_bytes is None
    return [
        *(
            Share(_short(model.name), model.size_bytes, _STYLES[place % len(_STYLES)], "█")
            for place, model in enumerate(models)
        ),
        Share("used" if unknown else "other ours", beside, "", "█"),
        Share("others", others, _OTHERS, "░"),
        Share("free", free, _FREE, " "),
    ]


def _short(name: str) -> str:
    return visible(name.rstrip("/").rpartition("/")[2])


def _cells(sizes: Sequence[int], room: int) -> list[int]:
    """Cells of each part: by its share, but LEAST_SHARE at least, and all of the room together."""
    total = sum(sizes)
    cells = [max(LEAST_SHARE, int(room * size / total)) for size in sizes]
    while sum(cells) != room:
        widest = max(range(len(cells)), key=lambda place: cells[place])
        cells[widest] += 1 if sum(cells) < room else -1
    return cells
