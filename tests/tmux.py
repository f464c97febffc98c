"""A real terminal: a program in tmux, driven by keys, read from the screen."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

CONFIG = """\
set -g default-terminal tmux-256color
set -g status off
set -s escape-time 0
set -g remain-on-exit on
set -g remain-on-exit-format ''
set -as terminal-overrides ',*:Tc'
"""
PATIENCE_S = 60.0
BETWEEN_LOOKS_S = 0.05


class TmuxTerminal:
    """One program in a tmux server of its own. Leave it with `close`, which ends both."""

    def __init__(self, command: str, env: Mapping[str, str], cwd: Path, columns: int, lines: int) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="tmux-", dir="/tmp"))  # short, for the path of a socket
        config = self._folder / "conf"
        config.write_text(CONFIG)
        self._tmux = ["tmux", "-u", "-S", str(self._folder / "s"), "-f", str(config)]
        size = ("-x", str(columns), "-y", str(lines))
        subprocess.run([*self._tmux, "new-session", "-d", *size, command], env=dict(env), cwd=cwd, check=True)

    def keys(self, *names: str) -> None:
        """Press keys, by the names that tmux has for them: `Enter`, `Escape`, `Down`, `C-p`, `a`."""
        self._ask("send-keys", *names)

    def type(self, text: str) -> None:
        self._ask("send-keys", "-l", "--", text)

    def screen(self) -> str:
        """What is on screen now."""
        return self._ask("capture-pane", "-p")

    def coloured_screen(self) -> str:
        """The same with the sequences that set colours and styles."""
        return self._ask("capture-pane", "-p", "-e")

    def resize(self, columns: int, lines: int) -> None:
        self._ask("resize-window", "-x", str(columns), "-y", str(lines))

    def clipboard(self) -> str:
        """What was copied into tmux last."""
        return self._ask("show-buffer")

    def until(self, seen: str | Callable[[str], object], patience_s: float = PATIENCE_S) -> str:
        """The first screen that has a text (a regular expression) or meets a condition."""
        holds = (lambda screen: re.search(seen, screen)) if isinstance(seen, str) else seen
        deadline = time.monotonic() + patience_s
        while not holds(screen := self.screen()):
            if time.monotonic() > deadline:
                raise AssertionError(f"not on screen within {patience_s:.0f} s: {seen}\n{screen}")
            time.sleep(BETWEEN_LOOKS_S)
        return screen

    def until_ended(self, patience_s: float = PATIENCE_S) -> int:
        """Wait until the program has ended; gives its exit status."""
        deadline = time.monotonic() + patience_s
        while True:
            dead, server, status = self._ask("display-message", "-p", "#{pane_dead} #{pid} #{pane_dead_status}").split(
                " "
            )
            if status.strip():
                return int(status)
            if dead == "1":  # tmux 3.3a may overlook the signal of the child's end, which it then has not waited for
                os.kill(int(server), signal.SIGCHLD)
            if time.monotonic() > deadline:
                raise AssertionError(f"the program has not ended within {patience_s:.0f} s\n{self.screen()}")
            time.sleep(BETWEEN_LOOKS_S)

    def close(self) -> None:
        subprocess.run([*self._tmux, "kill-server"], capture_output=True, check=False)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _ask(self, *command: str) -> str:
        done = subprocess.run([*self._tmux, *command], capture_output=True, text=True, check=True)
        return done.stdout
