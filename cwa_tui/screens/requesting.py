"""A screen that asks the daemon for something: it confirms first where that matters, and says how it went."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from textual.screen import Screen

from cwa_engine.base.errors import CwaError
from cwa_tui.screens.confirm import ConfirmScreen

Request = Callable[[], Awaitable[object]]


class RequestingScreen(Screen[None]):
    """`ask` and `confirm` start a request, and notify the user when it is done or refused."""

    def ask(self, request: Request, done: str) -> None:
        """Start a request, and say `done` when it is."""

        async def run() -> None:
            try:
                await request()
            except Exception as error:
                self.explain(error)
            else:
                self.tell(done)

        self.run_worker(run(), group="requests")

    def confirm(self, question: ConfirmScreen, request: Request, done: str) -> None:
        """Ask the user first."""
        self.app.push_screen(question, lambda yes: self.ask(request, done) if yes else None)

    def tell(self, text: str) -> None:
        self.notify(text, markup=False)

    def explain(self, error: Exception) -> None:
        """Say what failed, and what to do about it."""
        hint = f"\n{error.hint}" if isinstance(error, CwaError) and error.hint else ""
        said = str(error) if isinstance(error, CwaError) else f"{type(error).__name__}: {error}"
        self.notify(f"{said}{hint}", severity="error", timeout=10, markup=False)
