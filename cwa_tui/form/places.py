"""Names of models: paths of this machine for its own daemon, names and paths of the other machine with --host."""

from __future__ import annotations

from cwa_engine.base.errors import InvalidInput
from cwa_engine.hub.sources import absolute_name


def model_name(given: str) -> str:
    """A model's name as the daemon in use takes it.

    A path of this machine is made absolute. For a daemon on another machine nothing is looked up here: a folder `gpt2` of
    this machine means nothing there. Raises InvalidInput for a relative path, as that daemon has no working folder.
    """
    from cwa_daemon.client import Settings  # `--help` does not wait for this import

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
