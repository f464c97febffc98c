"""All studies: how far each is, and what those that have ended came to."""

from __future__ import annotations

from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets import Footer

from cwa_engine.records.run_id import short_id
from cwa_tui.screens.base import StoreScreen
from cwa_tui.screens.confirm import ConfirmScreen
from cwa_tui.store.state import ConnectionState
from cwa_tui.store.studies import KnownStudy
from cwa_tui.text.visible import words
from cwa_tui.widgets.banner import Banner
from cwa_tui.widgets.quiet_static import QuietStatic
from cwa_tui.widgets.row_table import RowTable
from cwa_tui.widgets.studies_table import StudiesTable, cells_in_short


class OfStudies(StoreScreen):
    """A screen whose keys are about a study: c cancels it, r goes on with it, n begins another."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "app.pop_screen", "Back"),
        Binding("n", "new_study", "New study"),
        Binding("c", "cancel_study", "Cancel"),
        Binding("r", "resume_study", "Resume", tooltip="queue what is not queued yet, and again what failed"),
    ]
    changing_keys: ClassVar[tuple[str, ...]] = ("cancel_study", "resume_study", "start_daemon")

    @property
    def study_in_view(self) -> KnownStudy | None:
        raise NotImplementedError

    def on_unmount(self) -> None:
        self.session.studies.unwatch(self)
        self.session.unwatch(self)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        study = self.study_in_view
        match action:
            case "cancel_study":
                return True if study and study.count("running", "queued", "waiting") else None
            case "resume_study":
                return True if study and study.count("waiting", "failed", "cancelled") else None
            case "new_run_like":
                return False
        return super().check_action(action, parameters)

    def action_new_study(self) -> None:
        self.navigation.open_study_form()

    def action_cancel_study(self) -> None:
        if study := self.study_in_view:
            left = study.count("running", "queued", "waiting")
            about = f"{study.id}\n{left} of {len(study.progress)} cells have not ended; what is done stays"
            question = ConfirmScreen("cancel this study?", about, "cancel it", "keep it")
            done = f"{short_id(study.id)} is being cancelled; r goes on with it"
            self.confirm(question, lambda: self.session.cancel_study(study.id), done)

    def action_resume_study(self) -> None:
        if study := self.study_in_view:
            done = f"{short_id(study.id)} goes on; what is done is not run again"
            self.ask(lambda: self.session.resume_study(study.id), done)


class StudiesScreen(OfStudies):
    """Enter opens a study."""

    AUTO_FOCUS = "#studies"
    DEFAULT_CSS = """
    StudiesScreen {
        #studies { height: 1fr; }
        #study-preview { height: auto; max-height: 4; padding: 0 1; color: $text-muted; }
    }
    StudiesScreen.-lost RowTable { text-style: dim; }
    """

    def compose(self) -> ComposeResult:
        yield Banner(id="banner")
        yield StudiesTable("studies", title="studies")
        yield QuietStatic(id="study-preview")
        yield Footer()

    def on_mount(self) -> None:
        self.session.studies.watch(self)

    @property
    def study_in_view(self) -> KnownStudy | None:
        key = self.query_one(StudiesTable).cursor_key if self.is_mounted else None
        return self.store.study(key) if key else None

    def draw(self) -> None:
        store = self.store
        self.query_one(Banner).show_connection(store.connection, store.answered_at)
        self.set_class(store.connection.state is ConnectionState.LOST, "-lost")
        nothing = "reading studies ..." if store.studies is None else "no studies yet: press n for a new one"
        table = self.query_one(StudiesTable)
        table.show_studies(store.studies or (), store.now(), nothing)
        table.retitle(f"studies · {len(store.studies or ())}")
        self._draw_preview()

    def _draw_preview(self) -> None:
        study = self.study_in_view
        said = ""
        if study:
            answer = study.answer.sentence if study.answer else study.why_no_answer or "no answer yet"
            models = ", ".join(dict.fromkeys(entry.cell.spec.model for entry in study.progress))
            on = f" · on {study.on}" if study.on else ""
            said = f"{study.id}{on} · {cells_in_short(study)} · {models}\n{answer}"
        self.query_one("#study-preview", QuietStatic).say(words(said))

    @on(RowTable.Highlighted, "#studies")
    def _highlighted(self) -> None:
        self._draw_preview()
        self._draw_keys()

    @on(RowTable.Opened, "#studies")
    def _open(self, message: RowTable.Opened) -> None:
        self.navigation.open_study(message.key)
