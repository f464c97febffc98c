"""The panes of a screen in one line. A key or a click chooses one; the chosen one is in brackets."""

from __future__ import annotations

from collections.abc import Mapping

from textual.content import Content
from textual.reactive import reactive
from textual.widgets import Static


class PaneTabs(Static):
    """`[1 top weights]  2 damage   3 log`, from the names of panes by their ids. A click calls the screen's `pane` action."""

    active: reactive[str] = reactive("")

    def __init__(self, panes: Mapping[str, str], id: str) -> None:
        super().__init__(id=id)
        self._panes = panes

    def render(self) -> Content:
        return Content.assemble(*(self._tab(pane, key) for key, pane in enumerate(self._panes, 1)))

    def _tab(self, pane: str, key: int) -> Content:
        said = f"{key} {self._panes[pane]}"
        chosen = pane == self.active
        tab = Content(f"[{said}]" if chosen else f" {said} ").stylize(f"@click=screen.pane('{pane}')")
        return (tab.stylize("bold reverse") if chosen else tab) + Content(" ")
