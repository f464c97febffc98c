"""The events of a job, from any of them on, also when another daemon has taken the place of the one that was asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from cwa_daemon import protocol
from cwa_daemon.client.connection import Connection
from cwa_engine.base.plain import JsonMap

_SILENCE_S = 3.0  # a follower that hears nothing for so long asks whether the daemon is there


async def follow(connection: Connection, run_id: str, after_seq: int) -> AsyncIterator[JsonMap]:
    """See `AsyncClient.follow`."""
    seen, number = after_seq, None
    try:
        while True:
            if number is None:
                reply = await connection.request("subscribe", run_id=run_id, after_seq=seen)
                number, greetings = reply["subscription"], connection.greetings
            event = await _next_event(connection, number)
            if event is None:
                if greetings != connection.greetings:  # another daemon, which knows the events but no subscription
                    connection.forget_events(number)
                    number = None
                continue
            seen = event["seq"]
            if seen % protocol.ACKNOWLEDGE_EVERY == 0:
                await connection.tell("acknowledge", subscription=number, seq=seen)
            yield event
            if protocol.is_last(event):
                return
    finally:
        if number is not None:
            connection.forget_events(number)
            await connection.tell("unsubscribe", subscription=number)


async def _next_event(connection: Connection, subscription: int) -> JsonMap | None:
    """The next event; None after a silence, with the daemon there. Raises DaemonUnreachable where nobody is."""
    arrived = connection.events(subscription)
    if not arrived.empty():
        return arrived.get_nowait()
    try:
        async with asyncio.timeout(_SILENCE_S):  # `wait_for` would make a task for each event
            return await arrived.get()
    except TimeoutError:
        await connection.request("status")
        return None
