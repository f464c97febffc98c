"""Where the program `cwtool` begins. It imports nothing before Ctrl-C can end it without a traceback."""

from __future__ import annotations

import signal


def main() -> None:
    """Run the command that was typed. Until its modules are there, and once it has ended, SIGINT ends the process."""
    heard = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # or a script has it ignored
    if heard:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    import cwtool

    if heard:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        cwtool.main()
    finally:
        if heard:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
