"""A run has ended: what is told, and how a terminal is asked to tell it while nobody looks. No Textual in it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping

from cwa_daemon.protocol import JobView
from cwa_engine.records.run_id import short_id
from cwa_tui.text import format as fmt
from cwa_tui.text.visible import visible


class Endings:
    """Finds out which runs have ended since the last look, each once."""

    def __init__(self) -> None:
        self._awaited: set[str] = set()
        self._told: set[str] = set()

    def since_last_look(
        self, known: Callable[[str], JobView | None], watched: Iterable[str], started: Iterable[str]
    ) -> list[JobView]:
        """The runs that have ended and were started here, or watched while they went on. `known` gives a job by its run id."""
        going_on = {run_id for run_id in watched if (job := known(run_id)) and not job.ended}
        self._awaited = (self._awaited | going_on | set(started)) - self._told
        ended = [job for run_id in sorted(self._awaited) if (job := known(run_id)) and job.ended]
        self._told |= {job.run_id for job in ended}
        return ended


def ending(job: JobView) -> str:
    """`✓ done: k7q2 gpt2`, and of a failed one its error."""
    said = f"{fmt.signed(job.state)}: {short_id(job.run_id)} {job.model}"
    return visible(f"{said}: {job.error['message']}" if job.error else said)


def desktop_notice(text: str, environ: Mapping[str, str] = os.environ) -> str:
    """What makes a terminal show a notice on the desktop: OSC 777 for foot and rxvt, OSC 9 for the others that know one.

    Terminals that know neither ignore both; the Linux console does not, and gets nothing. tmux passes it on where
    `allow-passthrough` is on.
    """
    term = environ.get("TERM", "")
    if term == "linux":
        return ""
    said = visible(text).replace(";", ",").replace("\n", " ")
    sequence = (
        f"\x1b]777;notify;cwtool;{said}\x07" if term.startswith(("foot", "rxvt")) else f"\x1b]9;cwtool: {said}\x07"
    )
    if environ.get("TMUX"):
        return "\x1bPtmux;" + sequence.replace("\x1b", "\x1b\x1b") + "\x1b\\"
    return sequence
