"""Why the daemon cannot be reached."""

from __future__ import annotations

from cwa_tui.state import Connection, ConnectionState
from cwa_tui.visible import words
from cwa_tui.widgets.quiet_static import QuietStatic


class Banner(QuietStatic):
    """Hidden while the daemon answers."""

    def show_connection(self, connection: Connection) -> None:
        self.display = connection.state is ConnectionState.LOST
        if self.display and (trouble := connection.trouble):
            hint = f" ({trouble.hint})" if trouble.hint else ""
            self.say(words(f"daemon not reachable, trying again: {trouble.message}{hint}"))
