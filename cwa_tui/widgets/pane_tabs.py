"""The panes of a narrow layout. A key or a click chooses one; the chosen one is in brackets."""

from __future__ import annotations

from textual.content import Content
from textual.reactive import reactive
from textual.widgets import Static

PANES = {  # id -> what it is called
    "topk": "top weights",
    "damage-pane": "damage",
    "profile": "profile",
    "run-log": "log",
    "answers": "answers",
}
FIRST_KEY = 1


class PaneTabs(Static):
    """One line: `[1 top weights]  2 damage   3 profile   4 log   5 answers`."""

    active: reactive[str] = reactive("topk")

    def render(self) -> Content:
        return Content.assemble(*(self._tab(pane, key) for key, pane in enumerate(PANES, FIRST_KEY)))

    def _tab(self, pane: str, key: int) -> Content:
        said = f"{key} {PANES[pane]}"
        chosen = pane == self.active
        tab = Content(f"[{said}]" if chosen else f" {said} ").stylize(f"@click=screen.pane('{pane}')")
        return (tab.stylize("bold reverse") if chosen else tab) + Content(" ")
