"""Subscriptions: clients follow the events of jobs, from any event on.

Each is a position in the store, so it replays what was missed and then follows.

Followers of a job hear of it together, several events a message, five times a second at most; its first progress and its
end reach them at once. A follower that does not acknowledge falls behind alone, and catches up as fast as it acknowledges.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from cwa_daemon import protocol
from cwa_daemon.control.store import Store
from cwa_engine.base.errors import QueueFull
from cwa_engine.base.plain import JsonMap

MOST_IN_ALL = 4096
_FULL = "leave those that have ended, or open another connection"
INTERVAL_S = 0.2  # between two messages about a job: 50 followers take 3 % of a processor; with one for each event, 8 %

Send = Callable[[bytes, JsonMap], bool]
Event = JsonMap


@dataclass
class Subscription:
    """A client's position in the events of one job."""

    identity: bytes
    run_id: str
    sent: int
    acknowledged: int
    several: bool  # whether its client takes several events a message
    behind: bool = False  # whether there may be more than its credit allowed, or its connection took

    @property
    def credit(self) -> int:
        return protocol.CREDIT - (self.sent - self.acknowledged)


@dataclass
class _Followed:
    """A job that somebody follows: their subscriptions, and when they may next hear of it."""

    numbers: set[int] = field(default_factory=set)
    due: float = 0.0  # in the loop's time
    timer: asyncio.TimerHandle | None = None
    has_progress: bool = False


class Subscriptions:
    """All subscriptions of a daemon. `send` gives False for a client that is gone or whose buffer is full."""

    def __init__(self, store: Store, send: Send, loop: asyncio.AbstractEventLoop) -> None:
        self._store = store
        self._send = send
        self._loop = loop
        self._all: dict[int, Subscription] = {}
        self._jobs: dict[str, _Followed] = {}
        self._of_client: dict[bytes, set[int]] = {}
        self._last = 0

    def begin(self, identity: bytes, request_id: int, run_id: str, after_seq: int, several: bool) -> None:
        """Add a subscription, answer its request, and send the events there are.

        In this order, for the client knows by the answer whose events these are. Raises QueueFull as `add` does.
        """
        number = self.add(identity, run_id, after_seq, several)
        self._send(identity, {"id": request_id, "ok": True, "subscription": number, "run_id": run_id})
        self.catch_up(number)

    def add(self, identity: bytes, run_id: str, after_seq: int, several: bool) -> int:
        """The number of a new subscription to the events after `after_seq`; `catch_up` sends those there are.

        Raises QueueFull for a connection that follows too many jobs, and where all clients together do.
        """
        if len(self._of_client.get(identity, ())) >= protocol.MOST_SUBSCRIPTIONS:
            raise QueueFull(f"this connection follows {protocol.MOST_SUBSCRIPTIONS} jobs already", hint=_FULL)
        if len(self._all) >= MOST_IN_ALL:
            self._forget_who_is_gone()
        if len(self._all) >= MOST_IN_ALL:
            raise QueueFull(f"{MOST_IN_ALL} jobs are followed already", hint=_FULL)
        self._last += 1
        self._of_client.setdefault(identity, set()).add(self._last)
        self._all[self._last] = Subscription(identity, run_id, after_seq, after_seq, several)
        self._jobs.setdefault(run_id, _Followed()).numbers.add(self._last)
        return self._last

    def catch_up(self, number: int) -> None:
        """Send a follower what it has not had, as far as its credit goes."""
        if subscription := self._all.get(number):
            self._send_from(
                number, subscription, self._store.events(subscription.run_id, subscription.sent, protocol.CREDIT)
            )

    def acknowledge(self, identity: bytes, number: int, seq: int) -> None:
        """A follower has had the events up to `seq`; it is sent more at once only where it has fallen behind."""
        subscription = self._all.get(number)
        if subscription and subscription.identity == identity:
            subscription.acknowledged = max(subscription.acknowledged, min(seq, subscription.sent))
            if subscription.behind:
                self.catch_up(number)

    def remove(self, identity: bytes, number: int) -> None:
        subscription = self._all.get(number)
        if subscription is None or subscription.identity != identity:
            return
        del self._all[number]
        self._of_client[identity].remove(number)
        if not self._of_client[identity]:
            del self._of_client[identity]
        followed = self._jobs[subscription.run_id]
        followed.numbers.remove(number)
        if not followed.numbers:
            del self._jobs[subscription.run_id]
            if followed.timer:
                followed.timer.cancel()

    def forget(self, identity: bytes) -> None:
        """End the subscriptions of a client that is gone."""
        for number in list(self._of_client.get(identity, ())):
            self.remove(identity, number)

    def _forget_who_is_gone(self) -> None:
        """Send every client that takes several events a message without one: of those that are gone `send` then knows."""
        for identity, numbers in list(self._of_client.items()):
            number = next(iter(numbers))
            if self._all[number].several:
                self._send(identity, {"subscription": number, "run_id": self._all[number].run_id, "events": []})

    def on_event(self, run_id: str, event: Event) -> None:
        """An event of a job was stored: tell its followers, at once or with what comes in the next moments."""
        followed = self._jobs.get(run_id)
        if followed is None:
            return
        ends = protocol.is_last(event) or (event["kind"] == "state" and event["state"] in protocol.TERMINAL_STATES)
        begins = event["kind"] == "progress" and not followed.has_progress
        followed.has_progress |= begins
        if ends or begins or self._loop.time() >= followed.due:
            self._tell(run_id)
        elif followed.timer is None:
            followed.timer = self._loop.call_at(followed.due, self._tell, run_id)

    def _tell(self, run_id: str) -> None:
        """Send all followers of a job what they have not had; those at the same place are sent the same."""
        followed = self._jobs[run_id]
        if followed.timer:
            followed.timer.cancel()
            followed.timer = None
        followed.due = max(followed.due, self._loop.time()) + INTERVAL_S
        news: dict[int, list[Event]] = {}
        for number in sorted(followed.numbers):
            subscription = self._all.get(number)
            if subscription is None:  # gone while others were told
                continue
            if subscription.credit <= 0:  # its next acknowledgement sends it these
                subscription.behind = True
                continue
            if subscription.sent not in news:
                news[subscription.sent] = self._store.events(run_id, subscription.sent, protocol.CREDIT)
            self._send_from(number, subscription, news[subscription.sent])

    def _send_from(self, number: int, subscription: Subscription, news: list[Event]) -> None:
        """Send the first of these events, as many as the follower's credit allows."""
        events = news[: max(0, subscription.credit)]
        subscription.behind = len(events) < len(news) or len(news) == protocol.CREDIT
        parts = [events] if subscription.several and events else [[event] for event in events]
        for part in parts:
            what: JsonMap = {"events": part} if subscription.several else {"event": part[0]}
            if not self._send(subscription.identity, {"subscription": number, "run_id": subscription.run_id, **what}):
                subscription.behind = True  # or gone; the next acknowledgement or event tries again
                return
            subscription.sent = part[-1]["seq"]
