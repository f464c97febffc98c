"""A run has ended: what is told, and how a terminal is asked to tell it while nobody looks. No Textual in it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

from cwa_daemon.protocol import JobView
from cwa_tui import format as fmt
from cwa_tui.visible import visible


class Endings:
    """Finds out which runs have ended since the last look, each once."""

    def __init__(self) -> None:
        self._awaited: set[str] = set()

    def expect(self, run_id: str) -> None:
        """Tell of a run that was started here, however soon it ends."""
        self._awaited.add(run_id)

    def since_last_look(self, known: Mapping[str, JobView], watched: Iterable[str]) -> list[JobView]:
        """The runs that were expected, or watched while they went on, and have ended."""
        self._awaited |= {run_id for run_id in watched if run_id in known and not known[run_id].ended}
        ended = [known[run_id] for run_id in sorted(self._awaited) if run_id in known and known[run_id].ended]
        self._awaited -= {job.run_id for job in ended}
        return ended


def ending(job: JobView) -> str:
    """`✓ done: k7q2 gpt2`, and of a failed one its error."""
    said = f"{fmt.signed(job.state)}: {fmt.short_id(job.run_id)} {job.model}"
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
