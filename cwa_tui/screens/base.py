"""What all screens share: they draw the store, send requests after a question where that matters, and tell the outcome."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, cast

from textual import on
from textual.binding import Binding, BindingType
from textual.screen import Screen

from cwa_daemon.protocol import JobView
from cwa_engine.base.errors import CwaError
from cwa_engine.exchange.formats import FORMATS, SUFFIXES, Format, export
from cwa_engine.records.run_id import short_id
from cwa_tui.screens.choose import ChooseScreen
from cwa_tui.screens.columns import ColumnsScreen
from cwa_tui.screens.confirm import ConfirmScreen
from cwa_tui.screens.marks import MarksChange, MarksScreen
from cwa_tui.store.state import ConnectionState
from cwa_tui.tables.export import export_folder, write_export
from cwa_tui.widgets.row_table import RowTable

if TYPE_CHECKING:
    from cwa_tui.screens.navigation import Navigation
    from cwa_tui.store.preferences import PreferenceFile
    from cwa_tui.store.session import Session

Request = Callable[[], Awaitable[object]]


class StoreScreen(Screen[None]):
    """`draw` is called when the store has changed, at most twice a second, and when the screen is shown again.

    `run_in_view` is the run that keys like cancel are about.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("n", "new_run", "New run"),
        Binding("N", "new_run_like", "New run like this", show=False),
        Binding("c", "cancel_run", "Cancel"),
        Binding("r", "retry", "Retry"),
        Binding("T", "edit_marks", "Tags and note", show=False),
        Binding("D", "start_daemon", "Start the daemon", show=False),
        Binding("question_mark", "help", "Help", key_display="?"),
        Binding("q", "app.quit", "Quit"),
    ]

    def __init__(self, session: Session, preferences: PreferenceFile) -> None:
        super().__init__()
        self.session = session
        self.store = session.store
        self.preferences = preferences
        self._drawn = -1  # version of the store that is on screen
        self._keys: list[bool | None] = []  # which keys can be used, as the footer shows them

    # drawing

    def draw(self) -> None:
        """Show the store."""
        raise NotImplementedError

    def on_mount(self) -> None:
        for table in self.query(RowTable):
            table.choose_look(self.preferences.table(str(table.id)))
        self._draw_if_changed()
        self.set_interval(self.session.pace.redraw_s, self._draw_if_changed)

    def on_screen_resume(self) -> None:
        if self.is_mounted:  # it is told so before it has widgets, too
            self._draw_if_changed()

    def redraw(self) -> None:
        """Show the store now, for what is chosen on this screen has changed."""
        self._drawn = self.store.version
        self.draw()
        self._draw_keys()

    def _draw_if_changed(self) -> None:
        if self.is_seen and self.store.version != self._drawn:
            self.redraw()

    @property
    def is_seen(self) -> bool:
        """Whether this screen is on top, or below others that let it through.

        Textual's `is_current` is true of the screen below an opaque one as well, and whatever changes there has the screen
        on top drawn anew: 40 kB a second during a run.
        """
        above = takewhile(lambda screen: screen is not self, reversed(self.app.screen_stack))
        return self.is_current and all(screen.styles.background.a < 1 for screen in above)

    def _draw_keys(self) -> None:
        keys = [self.check_action(action, ()) for action in self.changing_keys]
        if keys != self._keys:  # the footer would be rebuilt each second otherwise
            self._keys = keys
            self.refresh_bindings()

    # what keys are about

    changing_keys: ClassVar[tuple[str, ...]] = ("cancel_run", "retry", "new_run_like", "edit_marks", "start_daemon")

    @property
    def navigation(self) -> Navigation:
        """Opens other screens: the app does."""
        return cast("Navigation", self.app)

    @property
    def run_in_view(self) -> str | None:
        """Run id of the job that cancel, retry and the like are about."""
        return None

    @property
    def exported_of(self) -> str:
        """Id of what tables are about, for the names of exported files; empty for none."""
        return self.run_in_view or ""

    @property
    def job_in_view(self) -> JobView | None:
        return self.store.job(self.run_in_view) if self.run_in_view else None

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """None greys a key out that has nothing to act on."""
        job = self.job_in_view
        match action:
            case "cancel_run":
                return True if job and not job.ended else None
            case "retry":
                return True if job and job.ended else None
            case "new_run_like":
                return True if job and job.kind == "run" else None
            case "edit_marks":
                return True if job else None
            case "start_daemon":
                return True if self.store.connection.state is ConnectionState.LOST else None
        return True

    # actions

    def action_new_run(self) -> None:
        self.navigation.open_form(None)

    def action_new_run_like(self) -> None:
        self.navigation.open_form(self.job_in_view)

    def action_help(self) -> None:
        self.navigation.open_help()

    def action_start_daemon(self) -> None:
        self.session.start_daemon()

    def action_cancel_run(self) -> None:
        if (job := self.job_in_view) is None or job.ended:
            return
        run_id, done = job.run_id, "is being cancelled; it ends between two batches"
        question = ConfirmScreen("cancel this job?", f"{run_id}\n{job.model} · {job.state}", "cancel it", "keep it")
        self.confirm(question, lambda: self.session.cancel(run_id), f"{short_id(run_id)} {done}")

    def action_retry(self) -> None:
        if (job := self.job_in_view) and job.ended:
            run_id = job.run_id
            self.ask(lambda: self.session.retry(run_id), f"{short_id(run_id)} runs again as a new job")

    def action_edit_marks(self) -> None:
        if (job := self.job_in_view) is None:
            return
        run_id = job.run_id

        def edited(change: MarksChange | None) -> None:
            if change is not None:
                done = f"tags and note of {short_id(run_id)} are kept"
                self.ask(lambda: self.session.mark(run_id, change.add, change.remove, change.note), done)

        self.app.push_screen(MarksScreen(job), edited)

    # requests

    def explain(self, error: Exception) -> None:
        """Say what failed, and what to do about it."""
        hint = f"\n{error.hint}" if isinstance(error, CwaError) and error.hint else ""
        said = str(error) if isinstance(error, CwaError) else f"{type(error).__name__}: {error}"
        self.notify(f"{said}{hint}", severity="error", timeout=10, markup=False)

    def tell(self, text: str) -> None:
        self.notify(text, markup=False)

    def confirm(self, question: ConfirmScreen, request: Request, done: str) -> None:
        """Send a request if the user answers yes."""
        self.app.push_screen(question, lambda yes: self.ask(request, done) if yes else None)

    def ask(self, request: Request, done: str) -> None:
        """Send a request; when it is done, tell the user `done`."""

        async def asked() -> None:
            try:
                await request()
            except Exception as error:
                self.explain(error)
            else:
                self.tell(done)

        self.run_worker(asked(), group="requests")

    # what tables ask for

    @on(RowTable.Copied)
    def _copy(self, message: RowTable.Copied) -> None:
        self.navigation.copy_text(message.text)

    @on(RowTable.TooManyMarks)
    def _refuse_mark(self, message: RowTable.TooManyMarks) -> None:
        self.notify(f"at most {message.most} can be marked; space takes a mark away", severity="warning", markup=False)

    @on(RowTable.LookChanged)
    def _keep_look(self, message: RowTable.LookChanged) -> None:
        self.preferences.change_table(str(message.table.id), message.look)

    @on(RowTable.ColumnsAsked)
    def _choose_columns(self, message: RowTable.ColumnsAsked) -> None:
        table = message.table

        def chosen(keys: tuple[str, ...] | None) -> None:
            if keys is not None:
                table.choose_columns(keys)

        self.app.push_screen(ColumnsScreen(table.all_columns, [c.key for c in table.shown_columns]), chosen)

    @on(RowTable.ExportAsked)
    def _choose_format(self, message: RowTable.ExportAsked) -> None:
        table = message.table

        def chosen(form: str | None) -> None:
            if form is not None:
                self._export(table, cast("Format", form))

        self.app.push_screen(ChooseScreen("export what is seen as", FORMATS), chosen)

    def _export(self, table: RowTable, form: Format) -> None:
        """Write what is seen to a file, beside the loop: 100,000 rows take seconds."""
        columns, source = [column.key for column in table.chosen_columns], table.source
        name = "-".join(part for part in (short_id(self.exported_of), str(table.id)) if part)

        def written() -> Path:
            rows = (source.row(place).exact for place in range(len(source)))
            text = export(columns, ([row.get(column) for column in columns] for row in rows), form)
            return write_export(export_folder(), name + SUFFIXES[form], text)

        async def exported() -> None:
            try:
                path = await asyncio.to_thread(written)
            except CwaError as error:
                self.explain(error)
            else:
                self.tell(f"{len(source):,} rows are in {path}")

        self.run_worker(exported(), group="export")
