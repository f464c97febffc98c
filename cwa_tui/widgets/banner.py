"""What is wrong with the connection, as long as something is."""

from __future__ import annotations

from cwa_tui.state import Link, Store
from cwa_tui.visible import words
from cwa_tui.widgets.quiet_static import QuietStatic


class Banner(QuietStatic):
    """Hidden while the daemon answers."""

    def show_link(self, store: Store) -> None:
        self.display = store.link is Link.LOST
        if store.link is Link.LOST and store.trouble:
            hint = f" ({store.trouble.hint})" if store.trouble.hint else ""
            self.say(words(f"daemon not reachable, trying again: {store.trouble.message}{hint}"))
