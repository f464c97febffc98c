"""Why the daemon cannot be reached, since when, and which key starts it."""

from __future__ import annotations

from rich.text import Text

from cwa_tui.store.state import Connection, ConnectionState
from cwa_tui.text import format as fmt
from cwa_tui.text.visible import words
from cwa_tui.widgets.quiet_static import QuietStatic


class Banner(QuietStatic):
    """Hidden while the daemon answers."""

    def show_connection(self, connection: Connection, answered_at: float | None = None) -> None:
        self.display = connection.state is ConnectionState.LOST
        if not self.display:
            return
        if connection.starting:
            self.say(Text("the daemon is being started ..."))
            return
        said = Text(no_wrap=True, overflow="ellipsis")
        if connection.can_be_started:
            said.append(" D ", "reverse").append(" starts the daemon · ")
        if trouble := connection.trouble:
            said.append_text(words(trouble.message))
        if answered_at is not None:
            said.append(f" · last answer {fmt.time_of_day(answered_at)}")
        if trouble and trouble.hint and not connection.can_be_started:
            said.append_text(words(f" · {trouble.hint}"))
        self.say(said)
