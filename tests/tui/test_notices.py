"""Telling that a run has ended, once, and how terminals are asked to tell it; what SSH gets instead of animations."""

from __future__ import annotations

from collections.abc import Callable

from cwa_daemon.protocol import JobView
from cwa_tui.terminal.notices import Endings, desktop_notice, ending
from cwa_tui.terminal.over_ssh import calm_down


def job(run_id: str, state: str, **fields: object) -> JobView:
    view = {
        "kind": "run",
        "model": "gpt2",
        "spec": {},
        "device": "cpu",
        "created": 0.0,
        "state": state,
        "run_id": run_id,
    }
    return JobView.model_validate(view | fields)


def known(*jobs: JobView) -> Callable[[str], JobView | None]:
    return {job.run_id: job for job in jobs}.get


def test_a_watched_run_that_ends_is_told_once() -> None:
    endings = Endings()
    assert endings.since_last_look(known(job("a", "running"), job("b", "running")), ["a"], []) == []
    told = endings.since_last_look(
        known(job("a", "done"), job("b", "done")), [], []
    )  # looked at something else meanwhile
    assert [one.run_id for one in told] == ["a"]
    assert endings.since_last_look(known(job("a", "done")), ["a"], []) == []


def test_a_run_that_had_ended_before_is_not_told() -> None:
    endings = Endings()
    assert endings.since_last_look(known(), ["a"], []) == []  # not listed yet
    assert endings.since_last_look(known(job("a", "done")), ["a"], []) == []


def test_a_run_that_was_started_here_is_told_once_however_soon_it_ends() -> None:
    endings = Endings()
    assert endings.since_last_look(known(), [], ["a"]) == []
    assert [one.run_id for one in endings.since_last_look(known(job("a", "failed")), [], ["a"])] == ["a"]
    assert endings.since_last_look(known(job("a", "failed")), ["a"], ["a"]) == []


def test_an_ending_has_sign_word_and_reason() -> None:
    assert ending(job("20261126-060000-gpt2-k7q2", "done")) == "✓ done: k7q2 gpt2"
    failed = job("20261126-060000-gpt2-k7q2", "failed", error={"message": "out of memory\x1b]0;x\x07"})
    assert ending(failed) == r"✗ failed: k7q2 gpt2: out of memory\x1b]0;x\x07"


def test_a_notice_suits_the_terminal() -> None:
    assert desktop_notice("done; a\nb", {"TERM": "xterm-256color"}) == "\x1b]9;cwtool: done, a b\x07"
    assert desktop_notice("done", {"TERM": "foot"}) == "\x1b]777;notify;cwtool;done\x07"
    assert desktop_notice("done", {"TERM": "linux"}) == ""
    inside_tmux = desktop_notice("done", {"TERM": "tmux-256color", "TMUX": "/tmp/x"})
    assert inside_tmux == "\x1bPtmux;\x1b\x1b]9;cwtool: done\x07\x1b\\"


def test_a_name_cannot_end_the_notice_and_begin_a_command() -> None:
    assert desktop_notice("gpt2\x07\x1b]0;owned\x07", {}).count("\x1b") == 1


def test_over_ssh_little_is_sent_unless_the_user_has_it_otherwise() -> None:
    here: dict[str, str] = {}
    calm_down(here)
    assert here == {}
    there = {"SSH_CONNECTION": "10.0.0.1 1 10.0.0.2 22", "TEXTUAL_FPS": "30"}
    calm_down(there)
    assert there["TEXTUAL_FPS"] == "30"
    assert there["TEXTUAL_ANIMATIONS"] == "none"
