"""The command palette: every key of the screen, every run, every theme, beside what Textual has there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

from textual.command import DiscoveryHit, Hit, Hits, Provider
from textual.content import Content
from textual.screen import Screen
from textual.types import IgnoreReturnCallbackType

from cwa_daemon.protocol import JobView
from cwa_tui.terminal.keys import CommandGroup, command_groups
from cwa_tui.text import format as fmt
from cwa_tui.text.visible import visible


class OpensRuns(Protocol):
    """The app, as far as the palette needs it."""

    @property
    def known_runs(self) -> Sequence[JobView]: ...

    def open_run(self, run_id: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Offer:
    """One line of the palette: the title, by which it is found, and what stands beside it."""

    title: str
    beside: str
    run: IgnoreReturnCallbackType


class _Offers(Provider):
    """Finds among `offers`; before anything is typed all are listed where `LISTED` says so."""

    LISTED = True

    def offers(self) -> Iterator[Offer]:
        raise NotImplementedError

    async def discover(self) -> Hits:
        if self.LISTED:
            for offer in self.offers():
                yield DiscoveryHit(_line(Content(offer.title), offer.beside), offer.run, text=offer.title)

    async def search(self, query: str) -> Hits:
        matcher = self.matcher(query)
        for offer in self.offers():
            if (score := matcher.match(offer.title)) > 0:
                yield Hit(score, _line(matcher.highlight(offer.title), offer.beside), offer.run, text=offer.title)


def _line(title: Content, beside: str) -> Content:
    return Content.assemble(title, (f"  {beside}", "dim")) if beside else title


class KeyCommands(_Offers):
    """What keys do on the screen below, with the keys, so that the palette teaches them. Moving about is left out."""

    def offers(self) -> Iterator[Offer]:
        of_screen: list[CommandGroup] = []
        others: list[CommandGroup] = []
        for group in command_groups(self.screen):
            (of_screen if isinstance(group.node, Screen) else others).append(group)
        for group in (*of_screen, *others):
            for command in group.commands:
                if command.enabled and not command.moves:
                    yield Offer(command.says, " ".join(command.keys), command.run)


class RunCommands(_Offers):
    """Open a run, found by its id, model or state."""

    LISTED = False  # there may be thousands

    def offers(self) -> Iterator[Offer]:
        app = cast(OpensRuns, self.app)
        for job in app.known_runs:
            title = visible(f"open {job.run_id} {job.model}")
            yield Offer(title, fmt.signed(job.state), _opening(app, job.run_id))


class ThemeCommands(_Offers):
    """Change the colours."""

    LISTED = False

    def offers(self) -> Iterator[Offer]:
        for name in sorted(self.app.available_themes, key=lambda name: (not name.startswith("cwtool"), name)):
            yield Offer(f"theme {name}", "", _colouring(self, name))


def _opening(app: OpensRuns, run_id: str) -> Callable[[], None]:
    return lambda: app.open_run(run_id)


def _colouring(provider: Provider, name: str) -> Callable[[], None]:
    return lambda: setattr(provider.app, "theme", name)


PALETTE = frozenset({KeyCommands, RunCommands, ThemeCommands})
