"""A screen that sends requests to the daemon. It can ask the user first, and says what came of a request."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from textual.screen import Screen

from cwa_engine.base.errors import CwaError
from cwa_tui.screens.confirm import ConfirmScreen

Request = Callable[[], Awaitable[object]]


class RequestingScreen(Screen[None]):
    """`ask` and `confirm` start a request, and notify the user when it is done or has failed."""

    def ask(self, request: Request, done: str) -> None:
        """Start a request; when it is done, notify the user with the text `done`."""

        async def run() -> None:
            try:
                await request()
            except Exception as error:
                self.explain(error)
            else:
                self.tell(done)

        self.run_worker(run(), group="requests")

    def confirm(self, question: ConfirmScreen, request: Request, done: str) -> None:
        """Start a request if the user answers yes."""
        self.app.push_screen(question, lambda yes: self.ask(request, done) if yes else None)

    def tell(self, text: str) -> None:
        self.notify(text, markup=False)

    def explain(self, error: Exception) -> None:
        """Say what failed, and what to do about it."""
        hint = f"\n{error.hint}" if isinstance(error, CwaError) and error.hint else ""
        said = str(error) if isinstance(error, CwaError) else f"{type(error).__name__}: {error}"
        self.notify(f"{said}{hint}", severity="error", timeout=10, markup=False)
