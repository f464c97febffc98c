"""The process of a command: its standard streams, its errors, its exit code."""

from __future__ import annotations

import sys
from collections.abc import Callable

from cwa_engine.base.errors import CwaError
from cwa_tui.cli.output import show_error
from cwa_tui.cli.streams import StreamFailed, flush_streams, give_up, open_streams


def run_process(command: Callable[[], object]) -> None:
    """Run a command and exit. An error becomes a message, a hint and its exit code."""
    open_streams()
    try:
        sys.exit(_exit_code(command))
    except StreamFailed as failure:
        sys.exit(give_up(failure))
    except KeyboardInterrupt:
        sys.exit(130)


def _exit_code(command: Callable[[], object]) -> int | str | None:
    """The exit code of a command, when everything it printed is written. Raises StreamFailed."""
    code: int | str | None = 0
    try:
        command()
    except SystemExit as ended:
        code = ended.code
    except CwaError as error:
        show_error(error, as_json="--json" in sys.argv)
        code = error.exit_code
    flush_streams()
    return code
