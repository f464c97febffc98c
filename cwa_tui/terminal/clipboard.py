"""Copying that works over SSH: tmux's clipboard or OSC 52, and always a file as well.

A terminal does not say whether it has taken what OSC 52 sends, and many are told not to. So the text is in a file too.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from cwa_engine.base.files import write_whole
from cwa_engine.base.places import state_folder

FILE = "copied.txt"
# hterm's limit, the lowest of the terminals that publish one; a longer OSC 52 is dropped without a word
MOST_BYTES = 74_994 * 3 // 4
TMUX_PATIENCE_S = 2.0


async def copy(
    text: str, osc52: Callable[[str], None], folder: Path | None = None, environ: Mapping[str, str] = os.environ
) -> str:
    """Copy a text; gives the words that say where it is now, as "the clipboard and ~/.local/state/cwtool/copied.txt".

    `osc52` hands a text to the terminal. Raises OSError where the file cannot be written: the clipboard has it all the same.
    """
    place = ""
    if len(text.encode()) <= MOST_BYTES:
        if environ.get("TMUX") and await _to_tmux(text):
            place = "tmux's clipboard"
        else:
            osc52(text)
            place = "the clipboard"
    file = (folder or state_folder()) / FILE
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, text.encode(), mode=0o600)
    return f"{place} and {short_path(file)}" if place else f"{short_path(file)}, too long for a clipboard"


def short_path(path: Path) -> str:
    """The path as a shell takes it, with `~` for the home folder."""
    with contextlib.suppress(ValueError, RuntimeError):  # it is elsewhere, or there is none
        return f"~/{path.relative_to(Path.home())}"
    return str(path)


async def _to_tmux(text: str) -> bool:
    """Hand the text to tmux, which passes it on to the terminal it is shown in; False where that fails."""
    command = ("tmux", "load-buffer", "-w", "-")
    pipe, null = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
    try:
        tmux = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=null, stderr=null)
    except OSError:  # it is not installed here
        return False
    try:
        async with asyncio.timeout(TMUX_PATIENCE_S):
            await tmux.communicate(text.encode())
    except (TimeoutError, ConnectionError):
        with contextlib.suppress(ProcessLookupError):
            tmux.kill()
            await tmux.wait()
        return False
    return tmux.returncode == 0
