"""Lists of jobs, asked of a daemon that may be older than this client."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable

from cwa_daemon.protocol import JobPage, JobQuery, JobView
from cwa_engine.base.plain import JsonMap

Ask = Callable[..., Awaitable[JsonMap]]
_USUAL = JobQuery()
_MOST = 1000  # jobs of one reply


async def jobs(query: JobQuery, ask: Ask) -> list[JobView]:
    """The jobs that a query asks for."""
    return (await _jobs_and_total(query, ask))[0]


async def page(query: JobQuery, ask: Ask) -> JobPage:
    """The jobs that a query asks for, and how many it finds in all: those of an older daemon are counted one by one."""
    found, total = await _jobs_and_total(query, ask)
    return JobPage(found, await _counted(query, ask) if total is None else total)


async def _jobs_and_total(query: JobQuery, ask: Ask) -> tuple[list[JobView], int | None]:
    reply = await ask("jobs", **_fields(query))
    return [JobView.model_validate(job) for job in reply["jobs"]], reply.get("total")


async def _counted(query: JobQuery, ask: Ask) -> int:
    total, more = 0, _MOST
    while more == _MOST:
        more = len(await jobs(dataclasses.replace(query, limit=_MOST, offset=total), ask))
        total += more
    return total


def _fields(query: JobQuery) -> JsonMap:
    """What differs from the usual query, in the words of an older daemon where it has them."""
    every = {field.name: getattr(query, field.name) for field in dataclasses.fields(query)}
    fields = {name: value for name, value in every.items() if value != getattr(_USUAL, name)}
    for many, one in (("states", "state"), ("kinds", "kind")):
        if len(fields.get(many, ())) == 1:
            (fields[one],) = fields.pop(many)
    return fields
