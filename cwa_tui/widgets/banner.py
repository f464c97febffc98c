"""Why the daemon cannot be reached, since when, and which key starts it."""

from __future__ import annotations

from rich.text import Text

from cwa_tui import format as fmt
from cwa_tui.state import Connection, ConnectionState
from cwa_tui.visible import words
from cwa_tui.widgets.quiet_static import QuietStatic


class Banner(QuietStatic):
    """Hidden while the daemon answers."""

    def show_connection(self, connection: Connection, answered_at: float | None = None) -> None:
        self.display = connection.state is ConnectionState.LOST
        if self.display and (trouble := connection.trouble):
            since = f", last answer at {fmt.time_of_day(answered_at)}" if answered_at is not None else ""
            if connection.starting:
                self.say(Text("the daemon is being started ..."))
                return
            hint = f" ({trouble.hint})" if trouble.hint else ""
            self.say(Text.assemble(("D starts it", "reverse"), " ").append_text(words(f"{trouble.message}{since}{hint}")))
