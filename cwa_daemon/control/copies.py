"""The second step of a run with --output: its folder is whole, and its files are copied to where the user wants them.

The run is done before that and stays so. A copy that the disk does not take is tried again until it works or is cancelled,
also by the next daemon; what no time mends, as a folder that holds something else by now, is the job's `copy_error`.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import shlex
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from cwa_daemon.base.threads import in_thread
from cwa_engine.base.errors import OutputError
from cwa_engine.records.output import copy_run

AGAIN_S = 2.0  # between two attempts
_LASTING = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP,
    errno.ENAMETOOLONG,
}  # fmt: skip

Note = Callable[[str, str], None]  # run id, what a user should know
Ended = Callable[[str, OutputError | None], None]  # run id, why its files are not in the output folder


class Copies:
    """The copies that are being made: into one folder one after the other, so that no two runs mix there."""

    def __init__(self, note: Note, ended: Ended) -> None:
        self._note = note
        self._ended = ended
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._cancelled: dict[str, asyncio.Event] = {}
        self._one_at_a_time: defaultdict[Path, asyncio.Lock] = defaultdict(asyncio.Lock)

    def begin(self, run_id: str, folder: Path, output: Path, force: bool) -> None:
        """Copy a run's folder; `ended` is called once that is over."""
        self._cancelled[run_id] = asyncio.Event()
        self._tasks[run_id] = asyncio.create_task(self._copy(run_id, folder, output, force), name=f"copy of {run_id}")

    def cancel(self, run_id: str) -> None:
        """Give up a copy. An attempt that has begun is not broken off, and may still work."""
        if run_id in self._cancelled:
            self._cancelled[run_id].set()

    async def stop(self) -> None:
        """Leave what is not copied yet to the next daemon."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _copy(self, run_id: str, folder: Path, output: Path, force: bool) -> None:
        async with self._one_at_a_time[output]:
            error = await self._try_until_it_works(run_id, lambda: copy_run(folder, output, force))
        del self._tasks[run_id], self._cancelled[run_id]
        self._ended(run_id, error and _failed(run_id, output, error))

    async def _try_until_it_works(self, run_id: str, copy: Callable[[], None]) -> OutputError | None:
        """Why it never will; None once it has."""
        cancelled, said = self._cancelled[run_id], ""
        while not cancelled.is_set():
            try:
                return await in_thread(copy)
            except OutputError as error:
                if not _may_pass(error):
                    return error
                reason = error.message
            if reason != said:
                self._note(run_id, f"cannot copy the files: {reason}; that is tried again until it works")
                said = reason
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(AGAIN_S):
                    await cancelled.wait()
        return OutputError("the copy was cancelled")


def _may_pass(error: OutputError) -> bool:
    """Whether a later attempt may work: there may be room on the disk by then, or the network be back."""
    cause = error.__cause__
    return isinstance(cause, OSError) and cause.errno not in _LASTING


def _failed(run_id: str, output: Path, error: OutputError) -> OutputError:
    """Why the files of a run that is done are not in its output folder, and which command copies them."""
    return type(error)(
        f"{run_id} is done, but its files are not in {output}: {error.message}",
        hint=f"`cwtool results fetch {run_id} --output FOLDER` copies them; into this one: {shlex.quote(str(output))}",
    )
