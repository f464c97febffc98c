"""The entry point of the program `cwtool`. From its first line on, Ctrl-C ends it without a traceback."""

from __future__ import annotations

import signal


def main() -> None:
    """Run the command that was typed. While its modules are imported, and after it, SIGINT ends the process."""
    handled = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # not if a script ignores it
    if handled:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    import cwtool

    if handled:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        cwtool.main()
    finally:
        if handled:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
