"""The first line: the daemon, its jobs by state, warm models, and what is in trouble."""

from __future__ import annotations

from rich.text import Text

from cwa_daemon.protocol import StatusView
from cwa_tui.text import format as fmt
from cwa_tui.text.visible import words
from cwa_tui.widgets.quiet_lines import LAST_KNOWN
from cwa_tui.widgets.quiet_static import QuietStatic


class StatusLine(QuietStatic):
    """Always there, one line high. `answered_at` is given while the daemon is lost: then it says as of when it is."""

    def show_status(self, daemon: StatusView | None, answered_at: float | None = None) -> None:
        if daemon is None:
            self.say(Text("cwtool"))
            return
        jobs = Text(" · ").join(
            Text(f"{fmt.STATE_SIGNS[state]} {'?' if count is None else count} {state}", fmt.STATE_STYLES.get(state, ""))
            for state, count in (("running", daemon.running), ("queued", daemon.queued), ("paused", daemon.paused))
            if count != 0 or state != "paused"
        )
        said = Text.assemble((f"cwtool {daemon.version}", "bold"), "  ", jobs, f" · {len(daemon.models)} warm")
        if answered_at is not None:
            said = Text(f"as of {fmt.time_of_day(answered_at)}: {said.plain}", LAST_KNOWN)
        else:
            full = ["the disk is full"] if daemon.disk_full else []
            for trouble in [*full, *daemon.troubles][:1]:
                said.append(" · ").append_text(words(trouble, "red"))
        said.no_wrap, said.overflow = True, "ellipsis"
        self.say(said)
