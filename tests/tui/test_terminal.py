"""What the full-screen interface sends to a terminal, byte by byte, while a daemon's answers try to command it."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cwa_engine.base.errors import RunFailed
from cwa_engine.spec import RunSpec
from tests.tui.fake_client import FakeDaemon, app_on, warm, weights

HOSTILE = "\x1b]0;owned\x07\x9b31m\x1bc\u202e[red]"
CTRL_Q = b"\x11"  # ends it from anywhere
SHOWN = r"\x1b]0;owned\x07\x9b31m\x1bc\u202e[red]"


def hostile_daemon() -> FakeDaemon:
    """A daemon with hostile names wherever a model, its files or an error have a say."""
    daemon = FakeDaemon()
    daemon.models = [warm(HOSTILE)]
    run_id = daemon.run("20261123-190315-gpt2-ecyg", RunSpec(model=f"/models/{HOSTILE}", topk=(1,)))
    daemon.say(run_id, "note", text=f"note {HOSTILE}", level="warning")
    rows = [{**row, "target": f"{HOSTILE}[{row['rank']}]", "component": HOSTILE} for row in weights(3)]
    daemon.say(run_id, "topk", metric="grad_x_weight", partial=False, weights=rows)
    error = RunFailed(f"failed: {HOSTILE}", hint=f"see {HOSTILE}")
    daemon.end(run_id, "failed", error)
    return daemon


def sent_to_a_terminal(answer: Callable[[bytes], bytes], **env: str) -> bytes:
    """All that the interface sends until it ends. `answer` is given what was sent so far, and gives the keys to press."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.tui.test_terminal"],
        cwd=Path(__file__).parents[2], env={**os.environ, "COLUMNS": "200", "LINES": "50", **env},
        stdin=follower, stdout=follower, stderr=follower,
    )  # fmt: skip
    os.close(follower)
    recorded = b""
    try:
        while chunk := os.read(leader, 65536):
            recorded += chunk
            os.write(leader, answer(recorded))
    except OSError:  # how Linux says that the other side of a terminal is closed
        pass
    os.close(leader)
    assert process.wait() == 0
    return recorded.replace(b"\x1b]22;default\x07", b"")  # the shape of the mouse pointer, of its own accord


def test_no_answer_of_a_daemon_commands_the_terminal() -> None:
    asked = False

    def answer(recorded: bytes) -> bytes:
        nonlocal asked
        if not asked and all(said in recorded for said in (rb"note \x1b", rb"failed: \x1b")):
            asked = True
            return b"u"  # asks whether to unload the model under the cursor, by its name
        return CTRL_Q if b"keep it" in recorded else b""

    sent = sent_to_a_terminal(answer).decode()
    assert SHOWN in sent
    assert "\x1b]0;" not in sent and "\x1bc" not in sent
    assert not re.search(r"[\x07\x80-\x9f\u202e]", sent)


def test_under_the_c_locale_and_without_colours_only_ascii_is_sent_and_no_colour() -> None:
    sent = sent_to_a_terminal(
        lambda recorded: CTRL_Q if b"failed: " in recorded and b"Unload" in recorded else b"", LC_ALL="C", NO_COLOR="1"
    )
    assert sent.isascii()
    styles = {code for sequence in re.findall(rb"\x1b\[([\d;]*)m", sent) for code in sequence.split(b";")}
    assert styles <= {b"", b"0", b"1", b"2", b"3", b"4", b"7", b"39", b"49"}


AFTER_SIGNAL = """
import runpy, signal
signal.signal(signal.SIGHUP, {})
runpy.run_module("tests.tui.test_terminal", run_name="__main__")
"""


@pytest.mark.parametrize(
    ("before", "ended"), [(signal.SIG_DFL, -signal.SIGHUP), (signal.SIG_IGN, 128 + signal.SIGHUP)], ids=["", "nohup"]
)
def test_it_ends_when_its_terminal_is_closed_though_no_signal_says_so(before: signal.Handlers, ended: int) -> None:
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", AFTER_SIGNAL.format(int(before))],
        cwd=Path(__file__).parents[2], env={**os.environ, "COLUMNS": "80", "LINES": "24"},
        stdin=follower, stdout=follower, stderr=follower, start_new_session=True,
    )  # fmt: skip
    os.close(follower)
    recorded = b""
    while b"Unload" not in recorded:
        recorded += os.read(leader, 65536)
    os.close(leader)
    assert process.wait(60) == ended


if __name__ == "__main__":
    app_on(hostile_daemon(), ascii=None).run()
