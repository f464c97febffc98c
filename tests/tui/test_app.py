"""The app at 80x24, driven by keys, against a daemon made of lists."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any, TypeVar

import pytest
from cwa_tui.screens.main import MainScreen
from cwa_tui.widgets.live_table import LiveTable
from textual.pilot import Pilot
from textual.widget import Widget
from textual.widgets import Static

from cwa_engine.base.errors import RunFailed
from cwa_engine.spec import RunSpec
from cwa_tui.screens.confirm import ConfirmScreen
from cwa_tui.screens.help import HelpScreen
from cwa_tui.widgets.banner import Banner
from cwa_tui.widgets.damage_table import DamageTable
from cwa_tui.widgets.jobs_table import JobsTable
from cwa_tui.widgets.models_table import ModelsTable
from cwa_tui.widgets.pane_tabs import PaneTabs
from cwa_tui.widgets.run_line import RunLine
from cwa_tui.widgets.run_log import RunLog
from cwa_tui.widgets.status_line import StatusLine
from cwa_tui.widgets.topk_table import TopkTable
from tests.tui.fake_client import BASELINE, FakeDaemon, app_on, point, until, warm, weights, whole_run

W = TypeVar("W", bound=Widget)
RUN = "20261123-190315-smollm2-135m-ecyg"
OTHER = "20261123-190000-gpt2-k7q2"


class Terminal:
    """What a user sees and does."""

    def __init__(self, pilot: Pilot[None]) -> None:
        self.pilot = pilot

    def find(self, kind: type[W]) -> W:
        """A widget of the main screen, also while another screen lies over it."""
        main = next(screen for screen in self.pilot.app.screen_stack if isinstance(screen, MainScreen))
        return main.query_one(kind)

    async def press(self, *keys: str) -> None:
        await self.pilot.press(*keys)

    async def go(self, key: str, pane: str) -> None:
        """Press a key that leads to a pane."""
        await self.press(key)
        await until(lambda: self.focused == pane)

    async def until(self, condition: Callable[[], object]) -> None:
        await until(condition)

    def said(self) -> str:
        """All notifications so far."""
        return "\n".join(notification.message for notification in self.pilot.app._notifications)

    @property
    def jobs(self) -> list[list[str]]:
        return rows(self.find(JobsTable))

    @property
    def topk(self) -> list[list[str]]:
        return rows(self.find(TopkTable))

    @property
    def damage(self) -> list[list[str]]:
        """Empty while its pane is hidden: what nobody sees is not drawn."""
        return rows(self.find(DamageTable))

    @property
    def focused(self) -> str | None:
        return self.pilot.app.focused.id if self.pilot.app.focused else None


def rows(table: LiveTable) -> list[list[str]]:
    return [[cell.plain for cell in table.get_row_at(place)] for place in range(table.row_count)]


def text(widget: Static) -> str:
    return str(widget.content)


@pytest.fixture
def daemon() -> FakeDaemon:
    return FakeDaemon()


@pytest.fixture
async def terminal(daemon: FakeDaemon) -> AsyncIterator[Terminal]:
    async with app_on(daemon).run_test(size=(80, 24), notifications=True) as pilot:
        await until(lambda: isinstance(pilot.app.screen, MainScreen) and pilot.app.screen.query("#jobs"))
        yield Terminal(pilot)


async def test_without_jobs_the_list_says_what_to_do(terminal: Terminal) -> None:
    await terminal.until(lambda: "0 running" in text(terminal.find(StatusLine)))
    table = terminal.find(JobsTable)
    await terminal.until(lambda: "press n to start a run" in table.render_line(1).text)
    assert "press n" in terminal.find(ModelsTable)._nothing


async def test_the_job_list_shows_live_progress(terminal: Terminal, daemon: FakeDaemon) -> None:
    daemon.add(RUN)
    await terminal.until(lambda: terminal.jobs and terminal.jobs[0][:3] == [RUN, "queued", "waiting"])
    daemon.say(RUN, "state", state="running", error=None)
    await terminal.until(lambda: terminal.jobs[0][1:] == ["running", "starting", "0:42"])
    daemon.progress(RUN, "score", 3, 8)
    await terminal.until(lambda: terminal.jobs[0][2] == "score 3/8 ███░░░░░")
    daemon.end(RUN)
    await terminal.until(lambda: terminal.jobs[0][1:] == ["done", "", "0:42"])


async def test_the_top_weights_grow_while_they_are_scored(terminal: Terminal, daemon: FakeDaemon) -> None:
    daemon.run(RUN)
    table = terminal.find(TopkTable)
    await terminal.until(lambda: "appear while" in table.render_line(1).text)
    daemon.progress(RUN, "score", 1, 4)
    daemon.say(RUN, "topk", metric="grad_x_weight", partial=True, weights=weights(3))
    await terminal.until(lambda: len(terminal.topk) == 3)
    assert terminal.topk[0] == ["1", "…layers.1.mlp.down_proj.weight[2533,1]", "-0.5", "1", "1"]
    assert "partial, after 1 of 4 sequences" in str(table.border_title)
    daemon.say(RUN, "topk", metric="grad_x_weight", partial=False, weights=weights(10, first=2.0))
    await terminal.until(lambda: len(terminal.topk) == 10 and terminal.topk[0][3] == "2")
    assert "partial" not in str(table.border_title)


async def test_the_damage_table_fills_case_by_case(terminal: Terminal, daemon: FakeDaemon) -> None:
    daemon.run(RUN)
    await terminal.press("3")
    daemon.say(RUN, "damage", point=point(10))
    await terminal.until(lambda: len(terminal.damage) == 1)
    assert terminal.damage == [["10", "critical", "116.95", "+1.8791 [+1.7196, +2.0126]", "x6.55"]]
    daemon.say(RUN, "damage", point=point(10, "random", 0))
    await terminal.until(lambda: len(terminal.damage) == 2)
    assert terminal.damage[1][1] == "random 0"


async def test_a_collapse_is_shown_with_its_layer_and_a_huge_perplexity_as_such(
    terminal: Terminal, daemon: FakeDaemon
) -> None:
    daemon.run(RUN)
    nothing: dict[str, Any] = dict.fromkeys(
        ("nll", "perplexity", "delta_nll", "delta_low", "delta_high", "perplexity_ratio")
    )
    daemon.say(RUN, "damage", point=point(1, **nothing, collapsed_at="model.layers.3.mlp"))
    beyond: dict[str, Any] = {"delta_nll": 801.2, "delta_low": 800.1, "delta_high": 802.9}
    beyond |= {"perplexity": None, "perplexity_ratio": None}
    daemon.say(RUN, "damage", point=point(10, **beyond))
    await terminal.press("3")
    await terminal.until(lambda: len(terminal.damage) == 2)
    assert terminal.damage[0][2:] == ["collapsed", "at model.layers.3.mlp", "-"]
    assert terminal.damage[1][2:] == ["> 1e308", "+801.2 [+800.1, +802.9]", "> 1e308"]


async def test_a_finished_run_shows_all_it_found_when_it_is_selected(terminal: Terminal, daemon: FakeDaemon) -> None:
    whole_run(daemon, OTHER)
    daemon.run(RUN)
    await terminal.until(lambda: len(terminal.jobs) == 2)
    assert not terminal.topk
    await terminal.press("down", "3")
    await terminal.until(lambda: len(terminal.damage) == 8)
    assert len(terminal.topk) == 10
    assert "baseline perplexity 17.86" in text(terminal.find(RunLine))
    assert "done" in str(terminal.find(RunLog).query_one("#log-text", Static).content)


async def test_a_ranking_longer_than_its_events_is_read_from_the_finished_run(
    terminal: Terminal, daemon: FakeDaemon
) -> None:
    daemon.run(RUN, RunSpec(model="gpt2", topk=(80,)))
    daemon.say(RUN, "topk", metric="grad_x_weight", partial=False, weights=weights(50))
    await terminal.until(lambda: len(terminal.topk) == 50)
    assert "first 50 of 80" in str(terminal.find(TopkTable).border_title)
    daemon.full_rankings[RUN, "grad_x_weight"] = weights(80)
    daemon.end(RUN)
    await terminal.until(lambda: len(terminal.topk) == 80)


async def test_m_shows_the_ranking_of_the_next_metric(terminal: Terminal, daemon: FakeDaemon) -> None:
    daemon.run(RUN, RunSpec(model="gpt2", metrics=("grad_x_weight", "magnitude")))
    daemon.say(RUN, "topk", metric="grad_x_weight", partial=False, weights=weights(3))
    daemon.say(RUN, "topk", metric="magnitude", partial=False, weights=weights(5))
    await terminal.until(lambda: len(terminal.topk) == 3)
    await terminal.press("m")
    assert len(terminal.topk) == 5
    assert "magnitude (2 of 2, m)" in str(terminal.find(TopkTable).border_title)


@pytest.mark.parametrize("size", [(80, 24), (152, 40), (160, 48)])
async def test_damage_of_several_metrics_says_which_one_each_row_is_of(
    daemon: FakeDaemon, size: tuple[int, int]
) -> None:
    daemon.run(RUN, RunSpec(model="gpt2", metrics=("grad_x_weight", "grad_squared"), topk=(1000,)))
    daemon.say(RUN, "damage", point=point(1000))
    daemon.say(RUN, "damage", point=point(1000, metric="grad_squared"))
    async with app_on(daemon).run_test(size=size) as pilot:
        terminal = Terminal(pilot)
        await until(lambda: isinstance(pilot.app.screen, MainScreen) and pilot.app.screen.query("#jobs"))
        await terminal.press("3")
        await until(lambda: len(terminal.damage) == 2)
        first, second = terminal.damage
        assert first[0].startswith("grad_x_")
        assert second[0].startswith("grad_sq")
        assert "+1.8791 [+1.7196, +2.0126]" in first


async def test_rankings_and_damage_of_matrices_are_shown_beside_those_asked_for(daemon: FakeDaemon) -> None:
    daemon.run(RUN, RunSpec(model="gpt2", topk=(1000,)))
    for label, rows in (("grad_x_weight", 3), ("grad_x_weight_matrices", 5)):
        daemon.say(RUN, "topk", metric=label, partial=False, weights=weights(rows))
        daemon.say(RUN, "damage", point=point(1000, metric=label))
    async with app_on(daemon).run_test(size=(80, 24)) as pilot:
        terminal = Terminal(pilot)
        await until(lambda: isinstance(pilot.app.screen, MainScreen) and pilot.app.screen.query("#jobs"))
        await until(lambda: len(terminal.topk) == 3)
        await terminal.press("m")
        assert len(terminal.topk) == 5
        assert "grad_x_weight_matrices (2 of 2, m)" in str(terminal.find(TopkTable).border_title)
        await terminal.press("3")
        await until(lambda: len(terminal.damage) == 2)
        first, second = terminal.damage
        assert first[0].startswith("grad_x_")
        assert second[0].startswith("matric")


async def test_the_cursor_stays_on_its_run_when_new_jobs_arrive(terminal: Terminal, daemon: FakeDaemon) -> None:
    whole_run(daemon, OTHER)
    await terminal.until(lambda: len(terminal.topk) == 10)
    for number in range(3):
        daemon.add(f"later-{number}")
    await terminal.until(lambda: len(terminal.jobs) == 4)
    assert terminal.find(JobsTable).cursor_key == OTHER
    assert len(terminal.topk) == 10
    daemon.progress("later-0", "score", 1, 2)
    await terminal.until(lambda: terminal.jobs[2][2].startswith("score 1/2"))
    assert terminal.find(JobsTable).cursor_key == OTHER


async def test_a_failed_run_says_why_and_what_to_do(terminal: Terminal, daemon: FakeDaemon) -> None:
    daemon.run(RUN)
    daemon.end(RUN, "failed", RunFailed("the intact model's loss is inf", hint="try --dtype float32"))
    await terminal.until(lambda: "hint: try --dtype float32" in text(terminal.find(RunLine)))
    await terminal.until(lambda: terminal.jobs[0][1] == "failed")
    assert terminal.jobs[0][2].startswith("the intact model")
    line = terminal.find(RunLine)
    await terminal.until(lambda: line.size.height >= 3)


async def test_c_asks_with_the_name_of_the_run_and_then_cancels_it(terminal: Terminal, daemon: FakeDaemon) -> None:
    daemon.run(RUN)
    await terminal.until(lambda: terminal.jobs)
    await terminal.press("c")
    await terminal.until(lambda: isinstance(terminal.pilot.app.screen, ConfirmScreen))
    assert RUN in text(terminal.pilot.app.screen.query_one(Static))
    await terminal.press("enter")  # the safe answer has the focus
    await terminal.until(lambda: isinstance(terminal.pilot.app.screen, MainScreen))
    assert daemon.cancelled == []
    await terminal.press("c", "y")
    await terminal.until(lambda: terminal.jobs[0][1] == "cancelled")
    assert daemon.cancelled == [RUN]
    assert RUN in terminal.said()


async def test_an_ended_run_cannot_be_cancelled_but_retried(terminal: Terminal, daemon: FakeDaemon) -> None:
    whole_run(daemon, RUN)
    await terminal.until(lambda: len(terminal.topk) == 10)
    await terminal.press("c")
    assert isinstance(terminal.pilot.app.screen, MainScreen)
    await terminal.press("r")
    await terminal.until(lambda: len(terminal.jobs) == 2)
    await terminal.until(lambda: terminal.find(JobsTable).cursor_key == f"{RUN}-again")
    assert not terminal.topk


async def test_u_asks_and_unloads_the_model_under_the_cursor(terminal: Terminal, daemon: FakeDaemon) -> None:
    daemon.models = [warm("gpt2"), warm("smollm2-135m")]
    await terminal.press("5")
    await terminal.until(lambda: len(rows(terminal.find(ModelsTable))) == 2)
    assert rows(terminal.find(ModelsTable))[0] == ["gpt2", "float32", "cpu", "538.1 MB", "3", "30 s"]
    await terminal.press("down", "u")
    await terminal.until(lambda: isinstance(terminal.pilot.app.screen, ConfirmScreen))
    assert "smollm2-135m" in text(terminal.pilot.app.screen.query_one(Static))
    await terminal.press("y")
    await terminal.until(lambda: len(rows(terminal.find(ModelsTable))) == 1)
    assert daemon.unloaded == ["smollm2-135m"]


async def test_what_the_daemon_refuses_is_told_with_its_hint(terminal: Terminal, daemon: FakeDaemon) -> None:
    daemon.models = [warm("gpt2")]
    await terminal.until(lambda: "1 warm" in text(terminal.find(StatusLine)))
    await terminal.press("u")
    daemon.models = []  # somebody else was faster
    await terminal.press("y")
    await terminal.until(lambda: "gpt2 is not warm\n`cwtool ps` lists warm models" in terminal.said())


async def test_a_lost_daemon_shows_a_banner_and_everything_goes_on_when_it_is_back(
    terminal: Terminal, daemon: FakeDaemon
) -> None:
    daemon.run(RUN)
    daemon.say(RUN, "damage", point=point(1))
    await terminal.press("3")
    await terminal.until(lambda: len(terminal.damage) == 1)
    daemon.lose()
    banner = terminal.find(Banner)
    await terminal.until(lambda: banner.display)
    assert "daemon not reachable, trying again" in text(banner)
    assert "`cwtool daemon start`" in text(banner)
    assert len(terminal.jobs) == len(terminal.damage) == 1
    await terminal.press("c", "y")
    await terminal.until(lambda: "no daemon is running" in terminal.said())

    daemon.say(RUN, "damage", point=point(10))
    daemon.reachable = True
    await terminal.until(lambda: not banner.display and len(terminal.damage) == 2)
    assert daemon.connections == 2


async def test_keys_move_between_the_panes(terminal: Terminal, daemon: FakeDaemon) -> None:
    whole_run(daemon, RUN)
    await terminal.until(lambda: len(terminal.topk) == 10)
    assert terminal.focused == "jobs"
    for key, pane in (("enter", "topk"), ("3", "damage"), ("4", "run-log"), ("5", "models-table"), ("2", "topk")):
        await terminal.go(key, pane)
    await terminal.press("tab")
    assert terminal.focused == "jobs"
    await terminal.press("4", "escape")
    await terminal.until(lambda: terminal.focused == "jobs")
    assert terminal.find(PaneTabs).active == "run-log"


async def test_help_opens_and_closes(terminal: Terminal) -> None:
    await terminal.press("question_mark")
    await terminal.until(lambda: isinstance(terminal.pilot.app.screen, HelpScreen))
    await terminal.press("escape")
    await terminal.until(lambda: isinstance(terminal.pilot.app.screen, MainScreen))


async def test_q_quits(terminal: Terminal) -> None:
    await terminal.press("q")
    await terminal.until(lambda: not terminal.pilot.app.is_running or terminal.pilot.app._exit)


@pytest.mark.parametrize("size", [(80, 24), (100, 30), (152, 24), (160, 48), (240, 60)])
async def test_every_table_has_room_for_its_rows(daemon: FakeDaemon, size: tuple[int, int]) -> None:
    daemon.models = [warm()]
    for number in range(30):
        daemon.add(f"run-{number}")
    whole_run(daemon, RUN)
    async with app_on(daemon).run_test(size=size) as pilot:
        terminal = Terminal(pilot)
        await terminal.until(lambda: isinstance(pilot.app.screen, MainScreen) and pilot.app.screen.query("#jobs"))
        await terminal.until(lambda: len(terminal.topk) == 10)
        for key, kind in (("1", JobsTable), ("2", TopkTable), ("3", DamageTable), ("5", ModelsTable)):
            table = terminal.find(kind)
            await terminal.go(key, str(table.id))
            await until(partial(rows, table))
            assert table.size.height > 4  # a header, and more than three rows
            assert table.virtual_size.width <= table.size.width
            assert pilot.app.screen.region.contains_region(table.region)


async def test_the_layout_follows_the_size_of_the_terminal(terminal: Terminal, daemon: FakeDaemon) -> None:
    daemon.run(RUN)
    daemon.say(RUN, "baseline", baseline=BASELINE)
    await terminal.until(lambda: terminal.jobs)
    assert not terminal.find(DamageTable).region
    await terminal.pilot.resize_terminal(160, 48)
    await terminal.until(lambda: terminal.find(DamageTable).region and terminal.find(RunLog).region)
    assert not terminal.find(PaneTabs).display
    await terminal.pilot.resize_terminal(80, 24)
    await terminal.until(lambda: not terminal.find(DamageTable).region)
    assert terminal.jobs[0][0] == RUN
