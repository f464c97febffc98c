"""Which keys work now, as help and palette list them: those of what has the focus, of the screen, and of the app."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

from textual.app import App
from textual.binding import ActiveBinding, Binding
from textual.dom import DOMNode
from textual.screen import Screen
from textual.widget import Widget


@dataclass(frozen=True, slots=True)
class Command:
    """Something that keys do: `keys` as they are shown, `action` as the node takes it."""

    keys: tuple[str, ...]
    says: str
    action: str
    node: DOMNode
    enabled: bool
    moves: bool  # the cursor or the view, by arrow keys and the like

    async def run(self) -> None:
        await self.node.app.run_action(self.action, self.node)


@dataclass(frozen=True, slots=True)
class CommandGroup:
    """The commands of one node, under its title."""

    node: DOMNode
    title: str
    commands: tuple[Command, ...]


def command_groups(screen: Screen[object]) -> list[CommandGroup]:
    """What keys do on this screen, from what has the focus outwards. A key means what the innermost node says."""
    groups = []
    for node, active in groupby(screen.active_bindings.values(), key=lambda active: active.node):
        if commands := tuple(_commands(node, list(active))):
            groups.append(CommandGroup(node, _title(node), commands))
    return groups


_MOVING = {"up", "down", "left", "right", "home", "end", "pageup", "pagedown", "tab"}


def _commands(node: DOMNode, active: list[ActiveBinding]) -> Iterator[Command]:
    by_action: dict[str, list[ActiveBinding]] = {}
    for one in active:
        by_action.setdefault(one.binding.action, []).append(one)
    for action, several in by_action.items():
        keys = dict.fromkeys(node.app.get_key_display(one.binding) for one in several)
        says = next((said for one in several if (said := _said(one.binding))), "")
        if says:
            moves = not _MOVING.isdisjoint(one.binding.key.rpartition("+")[2] for one in several)
            yield Command(tuple(keys), says, action, node, several[0].enabled, moves)


def _said(binding: Binding) -> str:
    """What a binding does, in words; those of Textual itself come with a capital for each."""
    words = (binding.tooltip or binding.description).strip().rstrip(".").split()
    return " ".join(word.lower() if word.istitle() else word for word in words)


def _title(node: DOMNode) -> str:
    if isinstance(node, App):
        return "everywhere"
    if isinstance(node, Screen):
        return "this screen"
    if isinstance(node, Widget) and node.border_title:
        return re.sub(r"\[.*?\]", "", str(node.border_title)).partition(" · ")[0].strip()
    return re.sub(r"(?<!^)(?=[A-Z])", " ", type(node).__name__).lower()
