"""A day in a real terminal: a run from the form, its weights, a daemon that is killed, and what is remembered after it all."""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator

import pytest

from cwa_daemon.base.address import running_pid
from tests.conftest import CWTOOL, LONG, CommandLine
from tests.tmux import TmuxTerminal

pytestmark = pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")

LOST = "not reachable|has ended"
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

    # from nothing: a daemon is started, and there are no runs
    terminal.until("press n")

    # a run, from the form
    terminal.keys("n")
    terminal.until("new run")
    terminal.type("gpt2")
    terminal.until("--model gpt2")
    terminal.keys("C-j")
    terminal.until(without("new run"))
    terminal.until("✓ done|done")

    # its weights: sorted, filtered, one of them opened
    terminal.until(r"\[\d+,\d+\]")
    terminal.keys("s")
    terminal.until("[↑↓]")
    terminal.keys("/")
    terminal.type("mlp")
    terminal.keys("Enter")
    terminal.until(r"/mlp")
    terminal.keys("Enter")
    terminal.until("--weights")
    terminal.keys("Escape")
    terminal.until(r"/mlp")
    terminal.keys("Escape")  # takes the filter away
    terminal.until(without("/mlp"))
    terminal.keys("Escape")
    terminal.until("New run")

    # a long one on the warm model; its daemon is killed in the middle, and the interface starts another
    long_run = own_cwtool("run", "--detach", *LONG).stdout.strip()
    terminal.until(long_run[-4:])
    terminal.keys("g", "Enter")
    terminal.until("running")
    daemon = running_pid(own_cwtool.settings)
    assert daemon
    os.kill(daemon, signal.SIGKILL)
    terminal.until(LOST)
    terminal.keys("D")
    terminal.until(without(LOST))
    assert running_pid(own_cwtool.settings) not in (None, daemon)
    terminal.until("running")  # its worker has gone on
    terminal.keys("c")
    terminal.until("cancel this")
    terminal.keys("y")
    terminal.until("⊘ cancelled")
    terminal.keys("Escape")
    terminal.until("New run")

    # another theme, and the order of the table, are there after a restart
    terminal.keys("C-p")
    terminal.until("Search for commands")
    terminal.type("theme cwtool-light")
    terminal.until("theme cwtool-light\\s+colours|theme cwtool-light *\n")
    terminal.keys("Enter")
    terminal.until(lambda _: LIGHT_BACKGROUND in terminal.coloured_screen())
    terminal.keys("q")
    assert terminal.until_ended() == 0

    terminal = open_tui()
    terminal.until(long_run[-4:])
    terminal.until(lambda _: LIGHT_BACKGROUND in terminal.coloured_screen())
    terminal.keys("G", "Enter")  # the first run is the last in the list
    terminal.until(r"\[\d+,\d+\]")
    terminal.until("[↑↓]")
    terminal.keys("q")
    assert terminal.until_ended() == 0
