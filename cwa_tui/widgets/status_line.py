"""The first line: the daemon, its jobs, and the memory of the device that computes."""

from __future__ import annotations

from rich.text import Text

from cwa_daemon.protocol import DeviceMemory, StatusView
from cwa_tui.widgets.memory_gauges import gauge
from cwa_tui.widgets.quiet_static import QuietStatic


class StatusLine(QuietStatic):
    """Always there, one line high."""

    def show_status(self, daemon: StatusView | None) -> None:
        if daemon is None:
            self.say(Text("cwtool"))
            return
        warm = f"{len(daemon.models)} warm"
        running, queued = ("?" if jobs is None else jobs for jobs in (daemon.running, daemon.queued))
        trouble = f"{daemon.troubles[0]} · " if daemon.troubles else ""
        said = f"cwtool {daemon.version} · {trouble}{running} running · {queued} queued · {warm} · "
        self.say(Text(said, no_wrap=True, overflow="ellipsis").append_text(gauge(_device(daemon), 8)))


def _device(status: StatusView) -> DeviceMemory:
    """The device most likely to fill: that of a worker, else the last one, which is an accelerator where there is one."""
    by_name = {device.device: device for device in status.devices}
    working = [worker.device for worker in status.workers if worker.pid and worker.device in by_name]
    return by_name[working[0]] if working else status.devices[-1]
