"""The figures of a run, a study or a comparison: one in view with its caption or its table, and a list of all."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.widgets import Footer, OptionList
from textual.widgets.option_list import Option

from cwa_engine.base.errors import CwaError
from cwa_engine.base.files import fetch_folder
from cwa_engine.figures.figure import Figure, Source
from cwa_engine.records.run_id import short_id
from cwa_tui.screens.base import StoreScreen
from cwa_tui.screens.choose import ChooseScreen
from cwa_tui.store.figures import read_figures
from cwa_tui.tables.columns import shorten
from cwa_tui.tables.export import export_folder, write_export
from cwa_tui.tables.rows import Rows
from cwa_tui.tables.study_answer import answer_table
from cwa_tui.text.visible import visible, words
from cwa_tui.widgets.banner import Banner
from cwa_tui.widgets.choices import Choices
from cwa_tui.widgets.figure_chart import FigureChart
from cwa_tui.widgets.quiet_static import QuietStatic
from cwa_tui.widgets.row_table import RowTable

if TYPE_CHECKING:
    from cwa_tui.store.preferences import PreferenceFile
    from cwa_tui.store.session import Session

LIST_CELLS = 42  # for a name in the list
_PICTURES = ("svg", "pdf", "png")  # with the extra `report`


class FiguresScreen(StoreScreen):
    """[ and ] go to the figure before and after, t shows the table instead. A wide terminal has the list beside it."""

    AUTO_FOCUS = "#figure-chart"
    DEFAULT_CSS = """
    FiguresScreen {
        #figures-head { height: auto; max-height: 3; padding: 0 1; }
        #figures-body { height: 1fr; }
        #figure-side { width: 1fr; height: 100%; }
        #figure-chart { padding: 0 1; height: 1fr; }
        #figure-table { height: 1fr; display: none; }
        #figure-caption { height: auto; max-height: 5; padding: 0 1; scrollbar-size-vertical: 1; color: $text-muted; }
        #figure-caption-text { height: auto; }
        #figure-list { width: 46; height: 100%; background: $background; }
        &.-table #figure-chart { display: none; }
        &.-table #figure-table { display: block; }
    }
    FiguresScreen.-narrow {
        #figure-list { display: none; }
        #figure-chart { border-top: solid $surface-lighten-2; }
        #figure-chart:focus { border-top: heavy $accent; }
    }
    FiguresScreen.-wide {
        #figure-list, #figure-chart { border: round $surface-lighten-2; }
        #figure-list:focus, #figure-chart:focus { border: heavy $accent; }
        #figure-caption { max-height: 8; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "app.pop_screen", "Back"),
        Binding("left_square_bracket", "other(-1)", "Figure before", key_display="["),
        Binding("right_square_bracket", "other(1)", "Next figure", key_display="]"),
        Binding("t", "table", "Table"),
        Binding("x", "export", "Export"),
        Binding("y", "copy_caption", "Copy the caption", show=False),
    ]
    changing_keys = (*StoreScreen.changing_keys, "other", "table", "export", "copy_caption")

    def __init__(self, session: Session, preferences: PreferenceFile, of: Source, ids: Sequence[str]) -> None:
        """`of` says what the ids are: a run, a study, or runs that are compared."""
        super().__init__(session, preferences)
        self.of, self.ids = of, tuple(ids)
        self._figures: list[Figure] | None = None  # None until they are here
        self._place = 0
        self._trouble = ""

    def compose(self) -> ComposeResult:
        yield Banner(id="banner")
        yield QuietStatic(id="figures-head")
        with Horizontal(id="figures-body"):
            yield Choices(id="figure-list", markup=False)
            with Vertical(id="figure-side"):
                yield FigureChart("figure-chart")
                yield RowTable("figure-table")
                with VerticalScroll(id="figure-caption"):
                    yield QuietStatic(id="figure-caption-text")
        yield Footer(compact=True)

    def on_mount(self) -> None:
        self.query_one("#figure-list").border_title = "figures"
        self.query_one("#figure-chart").border_title = "\\[ ] other figure · t table · x export · + - 0 zoom"
        if self.of == "study":
            self.session.studies.watch(self, self.ids[0])
        self.run_worker(self._load(), group="figures", exclusive=True)

    def on_unmount(self) -> None:
        if self.of == "study":
            self.session.studies.unwatch(self)

    @property
    def run_in_view(self) -> str | None:
        return self.ids[0] if self.of == "run" else None

    @property
    def exported_of(self) -> str:
        return "-".join(short_id(one) for one in self.ids)

    @property
    def figure(self) -> Figure | None:
        """The figure in view; None where there is none."""
        return self._figures[self._place] if self._figures else None

    async def _load(self) -> None:
        try:
            self._figures = await read_figures(self.session, self.of, self.ids)
        except Exception as error:  # a table of another version, say: the screen tells it, whatever it is
            self._trouble = f"the figures cannot be read: {error}"
            self.explain(error)
        else:
            names = [
                Option(shorten(visible(figure.name), LIST_CELLS, "middle"), id=str(at))
                for at, figure in enumerate(self._figures)
            ]
            self.query_one("#figure-list", Choices).add_options(names)
        self._show()

    # drawing

    def draw(self) -> None:
        self.query_one(Banner).show_connection(self.store.connection)
        if self._figures is None:
            self.query_one("#figures-head", QuietStatic).say(words(self._trouble or f"reading {self._of_what}", "bold"))

    @property
    def _of_what(self) -> str:
        """`run k7q2`, `study w2m7`, `comparison of k7q2 and w2m7`."""
        names = " and ".join(short_id(one) for one in self.ids)
        return f"comparison of {names}" if self.of == "comparison" else f"{self.of} {names}"

    def _show(self) -> None:
        """The figure in view."""
        figure, caption = self.figure, self.query_one("#figure-caption-text", QuietStatic)
        self._draw_keys()
        if figure is None:
            nothing = self._trouble or f"nothing that a figure shows was measured in this {self.of}"
            self.query_one(FigureChart).show_figure(None, nothing)
            self.query_one("#figures-head", QuietStatic).say(words(self._of_what, "bold"))
            return
        count = len(self._figures or ())
        head = Text(f"{self._place + 1} of {count}  ", "bold").append_text(words(figure.title, "bold"))
        self.query_one("#figures-head", QuietStatic).say(head.append_text(words(f"  · {self._of_what}", "dim")))
        self.query_one(FigureChart).show_figure(figure)
        table = answer_table(figure.table)
        self.query_one(RowTable).show(Rows(table.columns, table.rows), nothing="this table has no rows")
        self.query_one(RowTable).retitle(table.title)
        caption.say(words(figure.caption))
        self.query_one("#figure-caption").scroll_home(animate=False)
        chosen = self.query_one("#figure-list", Choices)
        if chosen.highlighted != self._place:
            chosen.highlighted = self._place

    # keys

    @on(OptionList.OptionHighlighted, "#figure-list")
    @on(OptionList.OptionSelected, "#figure-list")
    def _choose(self, event: OptionList.OptionHighlighted | OptionList.OptionSelected) -> None:
        if event.option_id is not None and int(event.option_id) != self._place:
            self._place = int(event.option_id)
            self._show()

    def action_other(self, step: int) -> None:
        if self._figures:
            self._place = (self._place + step) % len(self._figures)
            self._show()

    def action_table(self) -> None:
        """Show the table instead of the chart, or the chart again."""
        self.toggle_class("-table")
        self.call_after_refresh(self.query_one("#figure-table" if self.has_class("-table") else "#figure-chart").focus)

    def action_copy_caption(self) -> None:
        if self.figure:
            self.navigation.copy_text(f"{self.figure.title}. {self.figure.caption}")

    def action_export(self) -> None:
        if (figure := self.figure) is None:
            return
        forms = ("csv", *_PICTURES) if importlib.util.find_spec("vl_convert") else ("csv",)

        def chosen(form: str | None) -> None:
            if form is not None:
                self.run_worker(self._exported(figure, form), group="export")

        if forms == ("csv",):
            self.tell('pictures need: pip install "cwtool[report]"')
        self.app.push_screen(ChooseScreen("export the figure as", forms), chosen)

    async def _exported(self, figure: Figure, form: str) -> None:
        name = f"{self.exported_of}-{figure.name}.{form}"
        try:
            path = await asyncio.to_thread(lambda: write_export(export_folder(), name, _content(figure, form)))
        except CwaError as error:
            self.explain(error)
        else:
            self.tell(f"the figure is in {path}" if form != "csv" else f"its table is in {path}")

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        match action:
            case "other":
                return True if self._figures and len(self._figures) > 1 else None
            case "table" | "export" | "copy_caption":
                return True if self._figures else None
        return super().check_action(action, parameters)


def _content(figure: Figure, form: str) -> bytes:
    """The figure as a file of this form."""
    from cwa_engine.reports.drawing import write_figure

    if form == "csv":
        return figure.table.table.to_bytes(figure.table.rows)
    with fetch_folder() as scratch:
        return write_figure(figure, Path(scratch), (form,))[0].read_bytes()
