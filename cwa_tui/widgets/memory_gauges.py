"""How full each device is, on a fixed range from nothing to all it has."""

from __future__ import annotations

from rich.text import Text

from cwa_daemon.protocol import DeviceMemory, StatusView
from cwa_tui import format as fmt
from cwa_tui.widgets.quiet_static import QuietStatic

NEARLY_FULL = 0.9


class MemoryGauges(QuietStatic):
    """One device a line."""

    def show_memory(self, daemon: StatusView | None) -> None:
        lines = [gauge(device, 20) for device in daemon.devices] if daemon else []
        self.say(Text("\n").join(lines))


def gauge(device: DeviceMemory, width: int) -> Text:
    """`cpu ██░░░░░░ 2.7 of 25.3 GB`, with "nearly full" beside it where that is so."""
    full = device.used_bytes >= NEARLY_FULL * device.total_bytes
    bar = fmt.bar(device.used_bytes, device.total_bytes, width)
    used = f"{fmt.size(device.used_bytes)} of {fmt.size(device.total_bytes)}"
    return Text.assemble(f"{device.device} ", (bar, "red" if full else ""), f" {used}", " nearly full" if full else "")
