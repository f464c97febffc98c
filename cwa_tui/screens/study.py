"""One study: its answer, its grid as it fills, the tables and the figure of the answer, and what failed."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container, Vertical, VerticalScroll
from textual.widgets import Footer

from cwa_engine.figures.kinds.study_answer import answer_figure
from cwa_engine.records.run_id import short_id
from cwa_engine.studies.answer import Answer
from cwa_engine.studies.progress import CellProgress
from cwa_tui.screens.studies import OfStudies
from cwa_tui.store.job_facts import newest
from cwa_tui.store.state import ConnectionState
from cwa_tui.store.studies import KnownStudy
from cwa_tui.tables.rows import Rows
from cwa_tui.tables.study import LEGEND, Stage, counted, failures, left_out, study_grid
from cwa_tui.tables.study_answer import answer_table
from cwa_tui.text import format as fmt
from cwa_tui.text.visible import words
from cwa_tui.widgets.banner import Banner
from cwa_tui.widgets.figure_chart import FigureChart
from cwa_tui.widgets.pane_tabs import PaneTabs
from cwa_tui.widgets.quiet_static import QuietStatic
from cwa_tui.widgets.row_table import RowTable

if TYPE_CHECKING:
    from cwa_tui.store.preferences import PreferenceFile
    from cwa_tui.store.session import Session

PANES = {"grid-pane": "grid", "answer": "answer", "table-pane": "tables", "figure": "figure", "failed": "failures"}
_FOCUS = {"grid-pane": "study-grid", "table-pane": "answer-table"}  # pane -> what takes keys in it
MOST_FOLLOWED = 4  # runs whose events are told as they come


class StudyGrid(RowTable):
    """Up to four cells can be marked, to be compared."""

    MARKS = 4


class StudyScreen(OfStudies):
    """Enter opens the run of a cell. m shows the answer's next table. A narrow terminal shows one pane at a time."""

    AUTO_FOCUS = "#study-grid"
    DEFAULT_CSS = """
    StudyScreen {
        #study-head { height: auto; max-height: 5; padding: 0 1; }
        #study-tabs { height: 1; }
        #study-body { height: 1fr; }
        #answer, #failed { padding: 0 1; scrollbar-size-vertical: 1; }
        #answer-text, #failed-text { height: auto; }
        #study-grid, #answer-table { height: 1fr; }
        #grid-note, #table-note { height: auto; max-height: 3; padding: 0 1; color: $text-muted; }
        #figure { padding: 0 1; }
    }
    StudyScreen.-lost RowTable { text-style: dim; }
    StudyScreen.-narrow {
        #grid-pane, #answer, #table-pane, #figure, #failed { display: none; height: 1fr; }
        #answer, #figure, #failed { border-top: solid $surface-lighten-2; }
        #answer:focus, #failed:focus, #figure:focus-within { border-top: heavy $accent; }
        #grid-pane.-active, #answer.-active, #table-pane.-active, #figure.-active, #failed.-active { display: block; }
    }
    StudyScreen.-wide {
        #study-body { layout: grid; grid-size: 2 2; grid-rows: 1fr 1fr; grid-columns: 3fr 2fr; grid-gutter: 0 1; }
        #grid-pane, #answer, #table-pane, #figure, #failed { height: 100%; }
        #answer, #failed, #figure { border: round $surface-lighten-2; border-title-color: $text; }
        #answer:focus, #failed:focus, #figure:focus-within { border: heavy $accent; }
        #failed { display: none; }
        #failed.-active { display: block; }
        #answer.-hidden { display: none; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("equals_sign", "compare", "Compare", key_display="=", tooltip="compare the runs of marked cells"),
        Binding("m", "next_table", "Next table", show=False),
        Binding("F", "figures", "Figures"),
        *(Binding(str(key), f"pane('{pane}')", show=False) for key, pane in enumerate(PANES, 1)),
    ]
    changing_keys = (*OfStudies.changing_keys, "compare", "next_table", "figures")

    def __init__(self, session: Session, preferences: PreferenceFile, study_id: str) -> None:
        super().__init__(session, preferences)
        self.study_id = study_id
        self._table = 0  # which of the answer's tables is shown
        self._answered: Answer | None = None  # what is drawn
        self._gridded: tuple[object, ...] = ()

    def compose(self) -> ComposeResult:
        yield Banner(id="banner")
        yield QuietStatic(id="study-head")
        yield PaneTabs(PANES, id="study-tabs")
        with Container(id="study-body"):
            with Vertical(id="grid-pane"):
                yield StudyGrid("study-grid")
                yield QuietStatic(id="grid-note")
            with VerticalScroll(id="answer", can_focus=True):
                yield QuietStatic(id="answer-text")
            with VerticalScroll(id="failed", can_focus=True):
                yield QuietStatic(id="failed-text")
            with Vertical(id="table-pane"):
                yield RowTable("answer-table")
                yield QuietStatic(id="table-note")
            with Vertical(id="figure"):
                yield FigureChart("study-chart")
        yield Footer()

    def on_mount(self) -> None:
        for pane in ("answer", "failed", "figure"):
            self.query_one(f"#{pane}").border_title = PANES[pane]
        self._show_pane("grid-pane")
        self.session.studies.watch(self, self.study_id)

    @property
    def study_in_view(self) -> KnownStudy | None:
        return self.store.study(self.study_id)

    @property
    def run_in_view(self) -> str | None:
        return self._run_of(self.query_one(StudyGrid).cursor_key) if self.is_mounted else None

    @property
    def exported_of(self) -> str:
        return self.study_id

    def _run_of(self, key: str | None) -> str | None:
        """Run id of the cell in a row."""
        return next((entry.run_id for entry in self._progress if str(entry.cell.number) == key), "") or None

    # drawing

    def draw(self) -> None:
        store, study = self.store, self.study_in_view
        self.query_one(Banner).show_connection(store.connection, store.answered_at)
        self.set_class(store.connection.state is ConnectionState.LOST, "-lost")
        if study is None:
            said = f"reading {self.study_id}" if store.studies is None else f"{self.study_id} is not there any more"
            self.query_one("#study-head", QuietStatic).say(words(said, "bold"))
            return
        running = [entry.run_id for entry in study.progress if entry.state == "running"]
        self.session.watch(self, [] if study.on else running[:MOST_FOLLOWED])
        self.query_one("#study-head", QuietStatic).say(_head(study, store.now()))
        self._draw_grid(study)
        self._draw_failures(study)
        if study.answer is not self._answered or study.answer is None:
            self._answered = study.answer
            self._draw_answer(study)

    def _draw_grid(self, study: KnownStudy) -> None:
        running = [entry.run_id for entry in study.progress if entry.state == "running"]
        stages = study.stages if study.on else {run_id: self._stage(run_id) for run_id in running}
        grid = self.query_one(StudyGrid)
        if (study, stages, grid.room) == self._gridded:
            return
        self._gridded = study, stages, grid.room
        table = study_grid(study.progress, study.summaries, stages)
        grid.show(Rows(table.columns, table.rows))
        grid.retitle(f"grid · {counted(study.progress)}")
        missing = left_out(table, grid.room) if not grid.look.columns and grid.room > 0 else []
        legend = f"times the perplexity of the intact model, at the largest k compared · {LEGEND}"
        more = [f"right shows {len(missing)} more: {', '.join(missing)}"] if missing else []
        more += ["5 says why"] if study.count("failed") else []
        note = words("\n".join(filter(None, (" · ".join(more), legend))))
        self.query_one("#grid-note", QuietStatic).say(note)

    def _stage(self, run_id: str) -> Stage | None:
        job = self.store.job(run_id)
        return newest(job, self.store.followed_run(run_id)).progress if job else None

    def _draw_answer(self, study: KnownStudy) -> None:
        answer = study.answer
        self.query_one("#answer-text", QuietStatic).say(_answer(study, answer))
        self._draw_table(answer)
        figure = answer_figure(answer.tables) if answer else None
        why = "the answer has no figures with intervals" if answer else "the figure is drawn when there is an answer"
        self.query_one(FigureChart).show_figure(figure, why)

    def _draw_table(self, answer: Answer | None) -> None:
        table, note = self.query_one("#answer-table", RowTable), self.query_one("#table-note", QuietStatic)
        tables = answer.tables if answer else ()
        if not tables:
            table.show(Rows((), ()), nothing="tables are here when there is an answer")
            table.retitle("tables")
            note.say(Text(""))
            return
        self._table %= len(tables)
        shown = answer_table(tables[self._table])
        table.show(Rows(shown.columns, shown.rows), nothing="this table has no rows")
        table.retitle(f"{self._table + 1} of {len(tables)}: {shown.title}")
        missing = left_out(shown, table.room) if not table.look.columns and table.room > 0 else []
        more = [f"m: table {(self._table + 1) % len(tables) + 1}"] if len(tables) > 1 else []
        more += [f"right shows {len(missing)} more: {', '.join(missing)}"] if missing else []
        note.say(words(" · ".join(more)))

    def _draw_failures(self, study: KnownStudy) -> None:
        lines = failures(study.progress)
        said = Text("\n").join(words(f"✗ {line}") for line in lines) if lines else Text("nothing failed")
        if lines and study.count("failed"):
            said.append("\n\nr queues them again", "dim")
        self.query_one("#failed-text", QuietStatic).say(said)

    def on_resize(self) -> None:
        if self.is_mounted:
            self._answered = None  # what fits is another
            self.call_after_refresh(self.redraw)

    # keys

    @on(RowTable.Opened, "#study-grid")
    def _open_run(self, message: RowTable.Opened) -> None:
        study, run_id = self.study_in_view, self._run_of(message.key)
        if run_id and study and study.on and run_id not in study.done_runs:
            self.tell(f"it is on {study.on}: the daemon lists it when it is done")
        elif run_id:
            self.navigation.open_run(run_id)
        else:
            self.tell("this cell has no run yet")

    @on(RowTable.Marked, "#study-grid")
    @on(RowTable.Highlighted, "#study-grid")
    def _chosen(self) -> None:
        self._draw_keys()

    @property
    def _marked_runs(self) -> list[str]:
        """The done runs of the cells that are marked."""
        marks = self.query_one(StudyGrid).marks if self.is_mounted else ()
        done = {str(entry.cell.number): entry.run_id for entry in self._progress if entry.state == "done"}
        return [done[key] for key in marks if key in done]

    @property
    def _progress(self) -> tuple[CellProgress, ...]:
        return self.study_in_view.progress if self.study_in_view else ()

    def action_compare(self) -> None:
        self.navigation.open_comparison(self._marked_runs)

    def action_figures(self) -> None:
        self.navigation.open_figures("study", [self.study_id])

    def action_next_table(self) -> None:
        self._table += 1
        self._draw_table(self._answered)
        self.action_pane("table-pane")

    def action_pane(self, pane: str) -> None:
        """Show a pane and move the focus there."""
        self._show_pane(pane)
        target = self.query_one(f"#{_FOCUS.get(pane, pane)}")
        inside = (widget for widget in target.query("*") if widget.focusable)
        self.call_after_refresh((target if target.can_focus else next(inside, self.query_one(StudyGrid))).focus)

    def _show_pane(self, pane: str) -> None:
        self.query_one(PaneTabs).active = pane
        for name in PANES:
            self.query_one(f"#{name}").set_class(name == pane, "-active")
        self.query_one("#answer").set_class(pane == "failed", "-hidden")  # a wide terminal shows one of them

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        match action:
            case "compare":
                return True if len(self._marked_runs) > 1 else None
            case "next_table":
                return True if self._answered and len(self._answered.tables) > 1 else None
            case "figures":
                return True if self.study_in_view and self.study_in_view.done_runs else None
        return super().check_action(action, parameters)


def _head(study: KnownStudy, now: float) -> Text:
    """The answer's sentence, below what was asked and how far it is."""
    said = Text.assemble((short_id(study.id), "bold"), "  ")
    said.append(fmt.signed(study.state), f"bold {fmt.STATE_STYLES.get(study.state, '')}".strip())
    said.append_text(
        words(f"  {study.study.question or 'a grid'}{f' · {study.study.name}' if study.study.name else ''}", "bold")
    )
    registered = " · registered before its first run" if study.is_registered else ""
    on = f" · on {study.on}" if study.on else ""
    said.append(f"{on} · {counted(study.progress)} · asked {fmt.age(study.created, now - now % 10)} ago{registered}")
    if study.answer:
        part = "" if study.is_final else f"so far, of {_counted_runs(study)}: "
        return said.append("\n").append_text(words(f"{part}{study.answer.sentence}", "bold"))
    return said.append("\n").append_text(words(study.why_no_answer, "bold")) if study.why_no_answer else said


def _counted_runs(study: KnownStudy) -> str:
    """`1 run`, `12 runs`: how many the answer is made of."""
    count = len(study.answered_runs)
    return f"{count} {'run' if count == 1 else 'runs'}"


def _answer(study: KnownStudy, answer: Answer | None) -> Text:
    """The answer, its findings with what would overturn them, what was refused, and the rule."""
    if answer is None:
        if not study.study.question:
            return words("a grid without a question has no answer; its runs can be compared: space, then =")
        return words(study.why_no_answer or "the answer is computed from the runs that are done; there are none yet")
    said = words(answer.sentence, "bold")
    for finding in answer.findings:
        said.append("\n\n· ").append_text(words(finding.sentence))
        said.append("\n  overturned by: ", "dim").append_text(words(finding.overturned_by, "dim"))
    if answer.refused:
        said.append("\n\nnot concluded", "bold")
    for sentence in answer.refused:
        said.append("\n· ").append_text(words(sentence))
    if answer.rule:
        said.append("\n\nrule: ", "bold").append_text(words(answer.rule))
    return said
