"""When followers of a job hear of its events: in a time that stands still until a test moves it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cwa_daemon import protocol
from cwa_daemon.control.store import Store
from cwa_daemon.control.subscriptions import Subscriptions

RUN, CLIENT = "a run", b"a client"


class Timer:
    def __init__(self, when: float, work: Callable[[], None]) -> None:
        self.when, self.work = when, work

    def cancel(self) -> None:
        self.when = float("inf")


class Time:
    """What `Subscriptions` needs of an event loop."""

    def __init__(self) -> None:
        self.now = 100.0
        self._timers: list[Timer] = []

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, work: Callable[..., None], *args: Any) -> Timer:
        self._timers.append(Timer(when, lambda: work(*args)))
        return self._timers[-1]

    def pass_by(self, seconds: float) -> None:
        end = self.now + seconds
        while due := [timer for timer in self._timers if timer.when <= end]:
            timer = min(due, key=lambda timer: timer.when)
            self._timers.remove(timer)
            self.now = max(self.now, timer.when)
            timer.work()
        self.now = end


class Daemon:
    """A store, its subscriptions, and what each of them was sent when."""

    def __init__(self, folder: Path) -> None:
        self.time = Time()
        self.store = Store(folder / "jobs.sqlite")
        self.subscriptions = Subscriptions(self.store, self._send, self.time)  # type: ignore[arg-type]
        self.messages: dict[int, list[tuple[float, list[int]]]] = {}
        self.buffer_full = False

    def _send(self, identity: bytes, message: dict[str, Any]) -> bool:
        if self.buffer_full:
            return False
        events = message["events"] if "events" in message else [message["event"]]
        self.messages[message["subscription"]].append((self.time.now, [event["seq"] for event in events]))
        return True

    def follow(self, after_seq: int = 0, several: bool = True) -> int:
        number = self.subscriptions.add(CLIENT, RUN, after_seq, several)
        self.messages[number] = []
        self.subscriptions.catch_up(number)
        return number

    def happens(self, kind: str = "note", **fields: Any) -> None:
        self.subscriptions.on_event(RUN, self.store.append_event(RUN, {"kind": kind, **fields}))

    def received(self, number: int) -> list[int]:
        return [seq for _, seqs in self.messages[number] for seq in seqs]

    def acknowledge(self, number: int) -> None:
        self.subscriptions.acknowledge(CLIENT, number, (self.received(number) or [0])[-1])


@pytest.fixture
def daemon(tmp_path: Path) -> Daemon:
    return Daemon(tmp_path)


def test_a_stream_of_events_comes_in_five_messages_a_second_whatever_its_pace(daemon: Daemon) -> None:
    number = daemon.follow()
    for _ in range(300):
        daemon.happens()
        daemon.time.pass_by(0.01)
        daemon.acknowledge(number)
    daemon.time.pass_by(1)
    assert daemon.received(number) == list(range(1, 301))
    moments = [moment for moment, _ in daemon.messages[number]]
    assert all(later - sooner > 0.99 for sooner, later in zip(moments, moments[5:], strict=False))
    assert len(moments) <= 16


def test_the_first_progress_and_the_end_do_not_wait(daemon: Daemon) -> None:
    number = daemon.follow()
    daemon.happens()
    daemon.happens("progress", stage="baseline")
    assert daemon.messages[number] == [(100.0, [1]), (100.0, [2])]
    daemon.happens("progress", stage="baseline")
    daemon.happens("state", state="running")
    assert daemon.received(number) == [1, 2]
    daemon.happens("state", state="done")
    assert daemon.messages[number][2:] == [(100.0, [3, 4, 5])]
    daemon.time.pass_by(9)
    assert len(daemon.messages[number]) == 3


def test_what_was_missed_comes_as_fast_as_it_is_acknowledged(daemon: Daemon) -> None:
    for _ in range(3 * protocol.CREDIT + 5):
        daemon.happens()
    number = daemon.follow(after_seq=7)
    assert len(daemon.received(number)) == protocol.CREDIT
    for _ in range(4):
        daemon.acknowledge(number)
    assert daemon.received(number) == list(range(8, 3 * protocol.CREDIT + 6))
    assert daemon.time.now == 100.0


def test_a_follower_that_does_not_acknowledge_falls_behind_alone(daemon: Daemon) -> None:
    silent, other = daemon.follow(), daemon.follow()
    for _ in range(protocol.CREDIT + 50):
        daemon.happens()
        daemon.time.pass_by(0.1)
        daemon.acknowledge(other)
    daemon.time.pass_by(1)
    assert daemon.received(silent) == list(range(1, protocol.CREDIT + 1))
    assert daemon.received(other) == list(range(1, protocol.CREDIT + 51))
    daemon.acknowledge(silent)
    assert daemon.received(silent) == daemon.received(other)


def test_a_follower_whose_credit_was_just_enough_hears_the_end(daemon: Daemon) -> None:
    number = daemon.follow()
    for _ in range(protocol.CREDIT):
        daemon.happens()
        daemon.time.pass_by(1)
    assert len(daemon.received(number)) == protocol.CREDIT
    daemon.happens("state", state="cancelled")
    assert len(daemon.received(number)) == protocol.CREDIT
    daemon.acknowledge(number)
    assert len(daemon.received(number)) == protocol.CREDIT + 1


def test_nobody_elses_subscription_can_be_acknowledged_or_ended(daemon: Daemon) -> None:
    number = daemon.follow()
    daemon.subscriptions.remove(b"another client", number)
    daemon.happens()
    assert daemon.received(number) == [1]
    daemon.subscriptions.forget(CLIENT)
    daemon.happens("state", state="done")
    assert daemon.received(number) == [1]


ACTIONS = st.lists(
    st.sampled_from(
        ["event", "event", "event", "progress", "burst", "wait", "moment", "ack", "new", "old", "leave", "full", "free"]
    ),
    max_size=60,
)


@settings(deadline=None)
@given(actions=ACTIONS)
def test_whatever_happens_each_follower_hears_every_event_once_and_in_order(actions: list[str]) -> None:
    with TemporaryDirectory() as folder:
        daemon = Daemon(Path(folder))
        followers: list[int] = []
        for action in [*actions, "free"]:
            match action:
                case "event" | "progress":
                    daemon.happens(action, stage="score")
                case "burst":
                    for _ in range(protocol.ACKNOWLEDGE_EVERY):
                        daemon.happens()
                case "wait" | "moment":
                    daemon.time.pass_by(0.5 if action == "wait" else 0.05)
                case "ack":
                    for number in followers:
                        daemon.acknowledge(number)
                case "new" | "old":
                    followers.append(daemon.follow(several=action == "new"))
                case "leave" if followers:
                    daemon.subscriptions.remove(CLIENT, followers.pop())
                case "full" | "free":
                    daemon.buffer_full = action == "full"
        daemon.happens("state", state="done")
        last = daemon.store.last_seq(RUN)
        for number in followers:
            for _ in range(last // protocol.ACKNOWLEDGE_EVERY + 2):
                daemon.acknowledge(number)
            assert daemon.received(number) == list(range(1, last + 1))
        daemon.store.close()
