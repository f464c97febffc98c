"""The interface in ASCII: which terminals get it, and that each line keeps its width."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.segment import Segment
from textual.color import Color

from cwa_tui.terminal.characters import InAscii, in_ascii, needs_ascii
from cwa_tui.text import format as fmt


@pytest.mark.parametrize(
    ("environ", "encoding", "plain"),
    [
        ({}, "utf-8", False),
        ({"LANG": "en_US.UTF-8"}, "utf-8", False),
        ({"LANG": "C.UTF-8", "TERM": "xterm"}, "utf-8", False),
        ({"LC_ALL": "C.utf8"}, "utf-8", False),
        ({"LANG": "de_DE"}, "utf-8", False),
        ({"LC_ALL": "C", "LANG": "en_US.UTF-8"}, "utf-8", True),  # Python says utf-8 under LC_ALL=C
        ({"LC_ALL": "POSIX"}, "utf-8", True),
        ({"LC_ALL": "", "LC_CTYPE": "C"}, "utf-8", True),
        ({"LANG": "de_DE.ISO-8859-1@euro"}, "utf-8", True),
        ({}, "iso8859-1", True),
        ({"LANG": "en_US.UTF-8", "TERM": "linux"}, "utf-8", True),
    ],
)
def test_who_gets_ascii(environ: dict[str, str], encoding: str, plain: bool) -> None:
    assert needs_ascii(environ, encoding) is plain


@given(st.text(max_size=30))
def test_a_line_in_ascii_is_as_wide_as_before(text: str) -> None:
    before = [Segment(text), Segment("│")]
    after = InAscii().apply(before, Color.parse("black"))
    assert Segment.get_line_length(after) == Segment.get_line_length(before)
    assert all(segment.text.isascii() for segment in after)


def test_frames_gauges_and_names_are_drawn() -> None:
    assert in_ascii("╭─ jobs ─┬╮") == "+- jobs -++"
    assert in_ascii("┏━━┓┃") == "+==+|"
    assert in_ascii("███░░░ café ✓ 模") == "###... cafe + ??"
    assert in_ascii("⠀⣿⠁⡀⣀⢸") == " #'..:"
    assert in_ascii("…weight[2,3] → x") == "~weight[2,3] > x"


def test_a_history_rises_in_ascii_too() -> None:
    assert in_ascii("▁▂▃▄▅▆▇█") == "__.-=+*#"


def test_states_differ_by_their_signs_in_ascii() -> None:
    signs = getattr(fmt, "STATE_SIGNS", {"done": "✓", "failed": "✗", "running": "▶", "queued": "○", "paused": "‖"})
    drawn = [in_ascii(sign) for sign in signs.values()]
    assert len(set(drawn)) == len(drawn)
    assert "?" not in drawn
