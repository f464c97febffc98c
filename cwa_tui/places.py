"""Where names lead: paths of this machine for its own daemon, names and paths of the other machine for that one's."""

from __future__ import annotations

from cwa_engine.base.errors import InvalidInput
from cwa_engine.hub.sources import absolute_name


def model_name(given: str) -> str:
    """A model as the daemon in use is to be asked for it.

    What is a path here is made absolute. For a daemon on another machine nothing is looked up here: a folder `gpt2` of this
    machine has no say there. Raises InvalidInput for what would be looked for in a working folder, which it does not have.
    """
    from cwa_daemon.client import Settings  # who asks for help need not wait for it

    host = Settings().host
    if not host:
        return absolute_name(given)
    name = given.strip()
    whole = name.startswith(("/", "~"))
    if not whole and (name.startswith(".") or name.lower().endswith(".gguf")):
        raise InvalidInput(
            f"{name} is a path of a working folder, and the model is looked for on {host}",
            hint="give a name, or the whole path that it has there",
        )
    return name
