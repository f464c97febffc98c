"""Options by which lists of jobs and results are filtered and sorted, and the question to the daemon that they come to."""

from __future__ import annotations

import math
import time
from collections.abc import Collection
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from cwa_engine.base.errors import InvalidInput
from cwa_tui.cli import completion
from cwa_tui.cli.output import say
from cwa_tui.text.format import STATE_SIGNS

if TYPE_CHECKING:
    from cwa_daemon.client import Client
    from cwa_daemon.protocol import JobPage, JobQuery, JobView

PAGE = 1000  # jobs in one reply
MOST = 2**31 - 1
KINDS = ("run", "load", "plan", "pull", "inspect", "weight", "prompt")
SORTS = ("created", "finished", "model", "state", "took", "ratio")
_BY_NAME = ("model", "state")  # sorted from a to z; the others latest or largest first

Offset = Annotated[int, typer.Option(min=0, help="How many of the first to skip.")]
States = Annotated[
    list[str] | None,
    typer.Option(
        "--state",
        help=f"Only jobs that are {', '.join(list(STATE_SIGNS)[:-1])} or interrupted; several with commas.",
        autocompletion=completion.states,
        metavar="STATE",
    ),
]
Kinds = Annotated[
    list[str] | None,
    typer.Option(
        "--kind",
        help=f"Only jobs of this kind: {', '.join(KINDS)}; runs if left out.",
        autocompletion=completion.one_of(*KINDS),
        metavar="KIND",
    ),
]
OfModel = Annotated[
    str | None,
    typer.Option(
        "--model", "-m", help="Only those whose model's name contains this.", autocompletion=completion.models
    ),
]
Search = Annotated[
    str | None,
    typer.Option(
        "--search",
        "-S",
        help="Only those with all of these words in their run id, model, metrics, state, error message, tags or note.",
        metavar="WORDS",
    ),
]
Since = Annotated[
    str | None,
    typer.Option(help="Only those submitted since then: 2h, 7d, or a date like 2026-11-20 or '2026-11-20 14:30'."),
]
Tag = Annotated[str | None, typer.Option(help="Only those with this tag, see `cwtool results tag`.", metavar="NAME")]
OfMetric = Annotated[
    str | None, typer.Option("--metric", help="Only those that rank by this metric.", autocompletion=completion.metrics)
]
RatioAbove = Annotated[
    float | None,
    typer.Option(
        help="Only runs whose critical set multiplies perplexity by more than this, as the list shows it.",
        metavar="FACTOR",
    ),
]
Sort = Annotated[
    str,
    typer.Option(
        help=f"By {', '.join(SORTS[:-1])} or ratio, of perplexity: the latest or largest first, names from a to z.",
        autocompletion=completion.one_of(*SORTS),
    ),
]
Reverse = Annotated[bool, typer.Option("--reverse", "-r", help="In the opposite order.")]


def query(
    limit: int,
    offset: int = 0,
    states: list[str] | None = None,
    kinds: list[str] | None = None,
    model: str | None = None,
    search: str | None = None,
    since: str | None = None,
    sort: str = "created",
    reverse: bool = False,
    tag: str | None = None,
    metric: str | None = None,
    ratio_above: float | None = None,
) -> JobQuery:
    """The question that these options ask. Raises InvalidInput."""
    from cwa_daemon.protocol import JobQuery

    return JobQuery(
        limit=limit,
        offset=offset,
        states=_several(states),
        kinds=_several(kinds),
        model=model,
        text=search,
        since=None if since is None else moment(since),
        sort=sort,
        descending=(sort in _BY_NAME) == reverse,
        tag=tag,
        metric=metric,
        ratio_above=ratio_above,
    )


def listed(client: Client, asked: JobQuery) -> JobPage:
    """As many jobs as were asked for, however many there are, and how many there are in all."""
    found: list[JobView] = []
    while True:
        page = client.list_jobs(
            replace(asked, limit=min(PAGE, asked.limit - len(found)), offset=asked.offset + len(found))
        )
        found += page.jobs
        if not page.jobs or len(found) >= min(asked.limit, page.total - asked.offset):
            return replace(page, jobs=found)


def listed_among(client: Client, asked: JobQuery, run_ids: Collection[str]) -> JobPage:
    """The same of these runs alone, by their ids."""
    from cwa_daemon.protocol import JobPage

    every = listed(client, replace(asked, limit=MOST, offset=0)).jobs
    found = [job for job in every if job.run_id in run_ids]
    return JobPage(found[asked.offset : asked.offset + asked.limit], len(found))


def say_how_many(asked: JobQuery, page: JobPage) -> None:
    """Say on standard error that there are more than are listed, and how to see them."""
    last = asked.offset + len(page.jobs)
    if page.jobs and page.total > len(page.jobs):
        rest = f"; -n {page.total} lists all" if last < page.total else ""
        say(f"{asked.offset + 1} to {last} of {page.total}{rest}")


def moment(given: str) -> float:
    """Seconds since the epoch of `2h` ago, or of a date of this machine's clock. Raises InvalidInput."""
    from cwa_engine.base.durations import seconds

    try:
        return datetime.fromisoformat(given.strip()).timestamp()
    except (ValueError, OverflowError, OSError):
        pass  # it is no date
    try:
        ago_s = seconds(given)
    except InvalidInput as error:
        raise InvalidInput(
            f"--since {given} is no span of time and no date", hint="like 2h, 7d, 2026-11-20 or '2026-11-20 14:30'"
        ) from error
    return 0.0 if math.isinf(ago_s) else max(0.0, time.time() - ago_s)


def _several(given: list[str] | None) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.strip() for text in given or () for part in text.split(",") if part.strip()))
