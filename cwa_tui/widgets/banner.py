"""What is wrong with the connection, as long as something is."""

from __future__ import annotations

from rich.text import Text
from textual.widgets import Static

from cwa_tui.state import Link, Store


class Banner(Static):
    """Hidden while the daemon answers."""

    def show_link(self, store: Store) -> None:
        self.display = store.link is Link.LOST
        if store.link is Link.LOST and store.trouble:
            hint = f" ({store.trouble.hint})" if store.trouble.hint else ""
            self.update(Text(f"daemon not reachable, trying again: {store.trouble.message}{hint}"))
