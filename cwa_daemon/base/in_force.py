"""What a daemon reads when it starts and goes by until it ends: settings, and variables that its workers read.

The variables of Hugging Face are none of them: a job takes those of the shell that asked for it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from cwa_daemon.base.settings import Settings, variable

VARIABLES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "OMP_NUM_THREADS")
_OF_CLIENTS = {"home", "host", "start_timeout_s", "request_timeout_s"}


def in_force(settings: Settings) -> dict[str, str]:
    """Variable -> value, of every setting that a daemon has, and of `VARIABLES` that are set; "" where there is no value."""
    found = settings.model_dump(exclude=_OF_CLIENTS)
    named = {variable(name): "" if value is None else str(value) for name, value in found.items()}
    return named | {name: os.environ[name] for name in VARIABLES if name in os.environ}


def not_taken(settings: Settings, daemon: Mapping[str, str]) -> list[str]:
    """What is set here otherwise than the daemon has it, in words; nothing of an older daemon, which does not tell.

    `daemon` is what `in_force` gave there. That a variable is not set here says nothing against the one there.
    """
    if not daemon:
        return []
    return [
        f"{name} is {value or 'not set'} here and {daemon.get(name) or 'not set'} in the daemon"
        for name, value in in_force(settings).items()
        if value != daemon.get(name, "")
    ]
