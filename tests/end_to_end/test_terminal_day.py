"""A day in a real terminal: a run from the form, its weights, a daemon that is killed, and what is remembered after it all."""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator

import pytest

from cwa_daemon.base.address import running_pid
from cwa_daemon.base.settings import Settings
from tests.conftest import CWTOOL, LONG, CommandLine
from tests.tmux import TmuxTerminal

pytestmark = pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")

LOST = "not reachable|has ended|being started"
WEIGHT, SORTED = r"\[\d+,\d+\]", "[↑↓]"
LIGHT_BACKGROUND = "48;2;251;250;247"


@pytest.fixture
def open_tui(own_cwtool: CommandLine) -> Iterator[Callable[[], TmuxTerminal]]:
    """Starts `cwtool tui` in a terminal of 80x24."""
    opened: list[TmuxTerminal] = []

    def start() -> TmuxTerminal:
        env = {**own_cwtool.env, "COLORTERM": "truecolor"}
        del env["COLUMNS"]
        opened.append(TmuxTerminal(f"{CWTOOL} tui", env, own_cwtool.cwd, columns=80, lines=24))
        return opened[-1]

    yield start
    for terminal in opened:
        terminal.close()


def without(text: str) -> Callable[[str], bool]:
    return lambda screen: not re.search(text, screen)


@pytest.mark.timeout(400)
def test_a_day_in_a_terminal(open_tui: Callable[[], TmuxTerminal], own_cwtool: CommandLine) -> None:
    terminal = open_tui()
    terminal.until("press n")  # from nothing: a daemon is started, and there are no runs
    start_a_run_from_the_form(terminal)
    sort_filter_and_open_a_weight(terminal)

    long_run = own_cwtool("run", "--detach", *LONG).stdout.strip()
    terminal.until(long_run[-4:])
    terminal.keys("g", "Enter")
    terminal.until("running")
    kill_the_daemon_and_go_on(terminal, own_cwtool.settings)
    cancel(terminal)

    choose_the_light_theme(terminal)
    terminal.keys("q")
    assert terminal.until_ended() == 0

    terminal = open_tui()
    terminal.until(long_run[-4:])
    terminal.until(lambda _: LIGHT_BACKGROUND in terminal.coloured_screen())
    terminal.keys("G", "Enter")  # the first run is the last in the list
    terminal.until(WEIGHT)
    terminal.until(SORTED)
    terminal.keys("q")
    assert terminal.until_ended() == 0


def start_a_run_from_the_form(terminal: TmuxTerminal) -> None:
    terminal.keys("n")
    terminal.until("new run")
    terminal.type("gpt2")
    terminal.until("--model gpt2")
    terminal.keys("C-j")
    terminal.until(without("new run"))
    terminal.until("✓ done", 120)


def sort_filter_and_open_a_weight(terminal: TmuxTerminal) -> None:
    terminal.until(r"1-\d+ of \d+")  # the whole ranking is there
    terminal.keys("s")
    terminal.until(SORTED)
    terminal.keys("/")
    terminal.until("filter: words")
    terminal.type("mlp")
    terminal.until("/mlp▏")
    terminal.keys("Enter")
    terminal.until(r"\(of \d+\) · /mlp")
    terminal.keys("Enter")
    terminal.until("--weights")
    terminal.keys("Escape")
    terminal.until("/mlp")
    terminal.keys("Escape")  # takes the filter away
    terminal.until(without("/mlp"))
    terminal.keys("Escape")
    terminal.until("New run")


def kill_the_daemon_and_go_on(terminal: TmuxTerminal, settings: Settings) -> None:
    daemon = running_pid(settings)
    assert daemon
    os.kill(daemon, signal.SIGKILL)
    terminal.until(LOST)
    terminal.keys("D")
    terminal.until(lambda screen: running_pid(settings) not in (None, daemon) and not re.search(LOST, screen))
    terminal.until("running")  # its worker has gone on


def cancel(terminal: TmuxTerminal) -> None:
    terminal.keys("c")
    terminal.until("cancel this")
    terminal.keys("y")
    terminal.until("⊘ cancelled")
    terminal.keys("Escape")
    terminal.until("New run")


def choose_the_light_theme(terminal: TmuxTerminal) -> None:
    terminal.keys("C-p")
    terminal.until("Search for commands")
    terminal.type("theme cwtool-light")
    terminal.until("theme cwtool-light *\n")
    terminal.keys("Enter")
    terminal.until(lambda _: LIGHT_BACKGROUND in terminal.coloured_screen())
