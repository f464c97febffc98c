"""A screen whose keys send requests to the daemon. It asks the user first where that matters, and says what came of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.screen import Screen

from cwa_daemon.protocol import WarmModel
from cwa_engine.base.errors import CwaError
from cwa_tui import format as fmt
from cwa_tui.draft import Draft
from cwa_tui.plan_job import made_plan
from cwa_tui.screens.confirm import ConfirmScreen
from cwa_tui.screens.new_run import FormDoors, NewRunScreen
from cwa_tui.session import Session

Request = Callable[[], Awaitable[object]]


class RequestScreen(Screen[None]):
    """Start a run; cancel or retry the selected one; unload a model."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("n", "new_run", "New run"),
        Binding("c", "cancel_run", "Cancel"),
        Binding("r", "retry", "Retry"),
        Binding("u", "unload", "Unload"),
    ]

    def __init__(self, session: Session) -> None:
        super().__init__()
        self._session = session
        self._store = session.store
        self._draft = Draft()

    @property
    def chosen_model(self) -> WarmModel | None:
        """The warm model that would be unloaded."""
        return next(iter(self._store.warm_models), None)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """None greys a key out that has nothing to act on."""
        job = self._store.job_list.job
        match action:
            case "cancel_run":
                return True if job and not job.ended else None
            case "retry":
                return True if job and job.ended else None
            case "unload":
                return True if self.chosen_model else None
        return True

    def action_new_run(self) -> None:
        def keep(draft: Draft) -> None:
            self._draft = draft

        doors = FormDoors(
            self._session.submit,
            plan=lambda spec, say: made_plan(self._session.client, spec, say),
            keep=keep,
            warm=lambda: self._store.warm_models,
            devices=lambda: self._store.daemon.devices if self._store.daemon else [],
            runs=lambda: [job.run_id for job in self._store.job_list.jobs],
        )
        form = NewRunScreen(doors, self._draft)
        self.app.push_screen(form, lambda run_id: self._tell(f"{run_id} is queued") if run_id else None)

    def action_cancel_run(self) -> None:
        if (job := self._store.job_list.job) is None:
            return
        run_id, done = job.run_id, "is being cancelled; it ends between two batches"
        question = ConfirmScreen("cancel this run?", f"{run_id}\n{job.model} · {job.state}", "cancel it", "keep it")
        self._confirm(question, lambda: self._session.cancel(run_id), f"{run_id} {done}")

    def action_retry(self) -> None:
        if job := self._store.job_list.job:
            self._ask(lambda: self._session.retry(job.run_id), f"{job.run_id} runs again as a new job")

    def action_unload(self) -> None:
        if (model := self.chosen_model) is None:
            return
        about = f"{model.name} · {model.dtype} on {model.device} · frees {fmt.size(model.size_bytes)}"
        question = ConfirmScreen("unload this model?", about, "unload it", "keep it")
        self._confirm(question, lambda: self._session.unload(model.name), f"{model.name} is unloaded")

    def explain(self, error: Exception) -> None:
        """Say what failed, and what to do about it."""
        hint = f"\n{error.hint}" if isinstance(error, CwaError) and error.hint else ""
        said = str(error) if isinstance(error, CwaError) else f"{type(error).__name__}: {error}"
        self.notify(f"{said}{hint}", severity="error", timeout=10, markup=False)

    def _confirm(self, question: ConfirmScreen, request: Request, done: str) -> None:
        """Send a request if the user answers yes."""
        self.app.push_screen(question, lambda yes: self._ask(request, done) if yes else None)

    def _ask(self, request: Request, done: str) -> None:
        """Send a request; when it is done, notify the user with the text `done`."""

        async def ask() -> None:
            try:
                await request()
            except Exception as error:
                self.explain(error)
            else:
                self._tell(done)

        self.run_worker(ask(), group="requests")

    def _tell(self, text: str) -> None:
        self.notify(text, markup=False)
