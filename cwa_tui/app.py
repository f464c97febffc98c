"""The full-screen interface: `run()` is what `cwtool tui` calls."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence

from cwa_daemon.client import AsyncClient, Client, DaemonRunner, Settings
from cwa_daemon.protocol import JobView
from cwa_engine.base.errors import InvalidInput
from cwa_engine.figures.figure import Source
from cwa_engine.records.run_id import short_id
from cwa_engine.runner import Runner
from cwa_engine.spec import RunSpec
from cwa_tui.form.draft import Draft
from cwa_tui.screens.base import StoreScreen
from cwa_tui.screens.form_doors import FormDoors
from cwa_tui.screens.help import HelpScreen
from cwa_tui.screens.home import HomeScreen
from cwa_tui.screens.new_run import NewRunScreen
from cwa_tui.screens.prompt import PromptScreen
from cwa_tui.screens.run import RunScreen
from cwa_tui.screens.studies import StudiesScreen
from cwa_tui.screens.weight import WeightScreen
from cwa_tui.store.plan_job import made_plan
from cwa_tui.store.preferences import PreferenceFile
from cwa_tui.store.session import Connect, DaemonClient, Pace, RunnerOf, Session
from cwa_tui.store.state import TuiStore
from cwa_tui.terminal.notices import Endings, ending
from cwa_tui.terminal.over_ssh import is_over_ssh
from cwa_tui.terminal_app import TerminalApp


class CwtoolApp(TerminalApp):
    """`connect` gives a connected client; `clock` gives seconds since the epoch."""

    TITLE = "cwtool"
    CSS_PATH = "app.tcss"
    # Textual declares both as instance variables
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (120, "-wide")]  # noqa: RUF012
    VERTICAL_BREAKPOINTS = [(0, "-short"), (32, "-tall")]  # noqa: RUF012

    def __init__(
        self,
        connect: Connect,
        clock: Callable[[], float] = time.time,
        pace: Pace | None = None,
        preferences: PreferenceFile | None = None,
        host: str = "",
        ascii: bool | None = None,
        runner: RunnerOf | None = None,
    ) -> None:
        super().__init__(preferences or PreferenceFile(), ascii)
        self._host = host  # of a daemon on another machine
        self.session = Session(connect, pace or Pace(), TuiStore(clock), runner or runner_on)
        self._endings = Endings()
        self._seen = -1  # version of the store that was looked at for runs that have ended
        self._last_screen = self.preferences.now.last_screen  # to show again

    def on_mount(self) -> None:
        self.push_screen(HomeScreen(self.session, self.preferences))
        self.set_interval(self.session.pace.redraw_s, self._look_at_store)
        self.run_worker(self.session.keep_up(self._explain), group="session")

    async def on_unmount(self) -> None:
        await self.session.close()

    def _explain(self, error: Exception) -> None:
        if isinstance(self.screen, StoreScreen):
            self.screen.explain(error)

    def _look_at_store(self) -> None:
        store = self.session.store
        if store.version != self._seen:
            self._seen = store.version
            self._tell_of_ends(store)
            if store.job_list.jobs and self._last_screen:
                self._show_last_screen(store)

    def _show_last_screen(self, store: TuiStore) -> None:
        """Show what was on screen when the interface was left, unless it is gone or the user is elsewhere already."""
        (kind, shown), self._last_screen = self._last_screen, ()
        if not isinstance(self.screen, HomeScreen):
            return
        if kind == "study":
            self.open_study(shown)
        elif store.job(shown):
            self.open_run(shown)

    def _tell_of_ends(self, store: TuiStore) -> None:
        """Tell of runs that were started or watched here and have ended."""
        for job in self._endings.since_last_look(store.job, self.session.watched, self.session.started):
            self.notify(ending(job), severity="error" if job.state == "failed" else "information", markup=False)
            self.tell_elsewhere(ending(job))

    @property
    def known_runs(self) -> Sequence[JobView]:
        """What the palette can open."""
        return self.session.store.job_list.jobs

    # what screens ask for, see `Navigation`

    def open_run(self, run_id: str) -> None:
        self.preferences.change(last_screen=("run", run_id))
        self.push_screen(RunScreen(self.session, self.preferences, run_id))

    def open_weight(self, run_id: str, metric: str, place: int) -> None:
        self.push_screen(WeightScreen(self.session, self.preferences, run_id, metric, place))

    def open_card(self, run_id: str, spec: RunSpec, target: str) -> None:
        from cwa_tui.screens.weight_card import WeightCardScreen

        self.push_screen(WeightCardScreen(self.session, self.preferences, run_id, spec, target))

    def open_prompt(self, run_id: str, metric: str | None, target: str | None = None) -> None:
        self.push_screen(PromptScreen(self.session, self.preferences, run_id, metric, target))

    def open_comparison(self, run_ids: Sequence[str]) -> None:
        from cwa_tui.screens.compare import CompareScreen  # numpy comes with it: 0.1 s and 11 MB

        self.push_screen(CompareScreen(self.session, self.preferences, run_ids))

    def open_figures(self, of: Source, ids: Sequence[str]) -> None:
        from cwa_tui.screens.figures import FiguresScreen

        self.push_screen(FiguresScreen(self.session, self.preferences, of, ids))

    def open_studies(self) -> None:
        self.push_screen(StudiesScreen(self.session, self.preferences))

    def open_study(self, study_id: str) -> None:
        from cwa_tui.screens.study import StudyScreen  # numpy comes with its figure

        self.preferences.change(last_screen=("study", study_id))
        self.push_screen(StudyScreen(self.session, self.preferences, study_id))

    def open_form(self, like: JobView | None) -> None:
        if like is None:
            form = NewRunScreen(self._form_doors, Draft.from_plain(self.preferences.now.draft))
        else:
            form = NewRunScreen(self._form_doors, Draft.of_spec(like.spec), f"new run, from {short_id(like.run_id)}")
        self.push_screen(form, lambda run_id: self.open_run(run_id) if run_id else None)

    def open_study_form(self) -> None:
        from cwa_engine.studies.plan import plan_study
        from cwa_tui.screens.new_study import NewStudyScreen, StudyDoors

        elsewhere = bool(self._host)
        doors = StudyDoors(
            self.session.start_study, lambda study: plan_study(study, elsewhere=elsewhere), self._form_doors
        )
        self.push_screen(NewStudyScreen(doors), lambda study_id: self.open_study(study_id) if study_id else None)

    @property
    def _form_doors(self) -> FormDoors:
        store = self.session.store
        return FormDoors(
            self.session.submit,
            plan=lambda spec, say: made_plan(self.session.client, spec, say),
            keep=lambda draft: self.preferences.change(draft=draft.to_plain()),
            copy=self.copy_text,
            warm=lambda: store.warm_models,
            devices=lambda: store.daemon.devices if store.daemon else (),
            lanes=lambda: [lane.device for lane in store.daemon.lanes] if store.daemon else [],
            runs=lambda: [job.run_id for job in store.job_list.jobs],
            host=self._host,
        )

    def open_help(self) -> None:
        self.push_screen(HelpScreen(self.screen))


def run(settings: Settings | None = None, ascii: bool | None = None, mouse: bool = True) -> None:
    """Show the interface until the user quits. Raises InvalidInput without a terminal.

    `ascii` draws in ASCII, None where the terminal needs it; without `mouse` a terminal selects text as ever.

    Textual reads keys from standard input and draws on standard error.
    """
    if not (sys.stdin and sys.stdin.isatty() and sys.stderr.isatty()):  # None if it is closed
        raise InvalidInput("the full-screen interface needs a terminal", hint="`cwtool jobs` and `cwtool ps` do not")
    host = (settings or Settings()).host or ""
    pace = Pace(poll_s=2.0) if is_over_ssh(os.environ) else Pace()
    CwtoolApp(connector(settings), pace=pace, host=host, ascii=ascii).run(mouse=mouse)


def runner_on(client: DaemonClient) -> Runner:
    """Runs specs on the daemon of a connected client, for threads beside the running loop."""
    assert isinstance(client, AsyncClient)
    return DaemonRunner(Client.beside(client))


def connector(settings: Settings | None) -> Connect:
    """A function that connects to the daemon in use."""

    async def connect(start: bool) -> DaemonClient:
        return await AsyncClient.connect(settings, start=start)

    return connect
