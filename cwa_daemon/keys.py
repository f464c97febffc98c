"""Keys for connections from other machines: whose, who may come in, and which daemons this client knows.

Plain files in `<state folder>/keys` and `hosts.json`, for their owner alone. Public keys are 40 characters, as ZeroMQ
writes them (Z85, RFC 32 of ZeroMQ); the connections are encrypted and authenticated by CurveZMQ (RFC 26).
"""

from __future__ import annotations

import json
import os
import re
import struct
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import zmq
import zmq.utils.z85

from cwa_daemon.security import private_folder
from cwa_daemon.settings import Settings
from cwa_engine.errors import InvalidInput, NotFound, did_you_mean


@dataclass(frozen=True, slots=True)
class Pair:
    """This user's own keys; the secret one never leaves its file."""

    public: str
    secret: str


@dataclass(frozen=True, slots=True)
class Host:
    """A daemon on another machine."""

    address: str  # tcp://HOST:PORT
    public: str


def make_pair(settings: Settings, force: bool) -> Pair:
    """Make this user's keys. Raises InvalidInput where there are some, unless `force`."""
    if _own(settings).exists() and not force:
        raise InvalidInput(
            "there are keys already", hint="`cwtool daemon keys` shows the public one; --force makes new ones"
        )
    public, secret = (key.decode() for key in zmq.curve_keypair())
    _write(settings, _own(settings), json.dumps({"public": public, "secret": secret}))
    return Pair(public, secret)


def own_pair(settings: Settings) -> Pair:
    """This user's keys. Raises NotFound where there are none."""
    try:
        return Pair(**json.loads(_own(settings).read_text()))
    except FileNotFoundError:
        raise NotFound("you have no keys", hint="`cwtool daemon keys new` makes them") from None


def allow(settings: Settings, name: str, public: str) -> None:
    """Let whoever has the secret to this public key connect. Raises InvalidInput for no such key, or no such name."""
    _write(settings, _allowed(settings) / f"{_checked_name(name)}.key", _checked_key(public))


def revoke(settings: Settings, name: str) -> None:
    """Shut a client out, from its next message on. Raises NotFound."""
    path = _allowed(settings) / f"{_checked_name(name)}.key"
    if not path.exists():
        raise NotFound(f"no key is allowed as '{name}'", hint=did_you_mean(name, allowed(settings)))
    path.unlink()


def allowed(settings: Settings) -> dict[str, str]:
    """Name -> public key of every client that may connect."""
    return {path.stem: path.read_text().strip() for path in sorted(_allowed(settings).glob("*.key"))}


def add_host(settings: Settings, name: str, address: str, public: str) -> None:
    """Remember a daemon on another machine under a name."""
    check_address(address)
    _write_hosts(settings, {**hosts(settings), _checked_name(name): Host(address, _checked_key(public))})


def remove_host(settings: Settings, name: str) -> None:
    """Forget a daemon. Raises NotFound."""
    find_host(settings, name)
    _write_hosts(settings, {known: host for known, host in hosts(settings).items() if known != name})


def hosts(settings: Settings) -> dict[str, Host]:
    """The daemons this client knows."""
    try:
        return {name: Host(**host) for name, host in json.loads(_hosts(settings).read_text()).items()}
    except FileNotFoundError:
        return {}


def find_host(settings: Settings, name: str) -> Host:
    """A daemon by its name. Raises NotFound."""
    known = hosts(settings)
    if name not in known:
        hint = did_you_mean(name, known) or f"`cwtool daemon hosts add {name} tcp://HOST:PORT ITS_PUBLIC_KEY`"
        raise NotFound(f"no host is called '{name}'", hint=hint)
    return known[name]


def connect_to_host(socket: Any, settings: Settings, name: str) -> None:
    """Connect a client's socket to a daemon on another machine. Raises NotFound for an unknown host, or without keys."""
    host, own = find_host(settings, name), own_pair(settings)
    socket.setsockopt(zmq.CURVE_SERVERKEY, host.public.encode())
    socket.setsockopt(zmq.CURVE_PUBLICKEY, own.public.encode())
    socket.setsockopt(zmq.CURVE_SECRETKEY, own.secret.encode())
    socket.connect(host.address)


def check_address(address: str) -> None:
    """Raises InvalidInput for anything but tcp://HOST:PORT."""
    if not re.fullmatch(r"tcp://[^\s/:]+:\d{1,5}|tcp://\[[0-9a-fA-F:]+\]:\d{1,5}", address):
        raise InvalidInput(f"'{address}' is no address to listen at", hint="like tcp://0.0.0.0:5571")


def _checked_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.@-]{0,63}", name):
        raise InvalidInput(f"'{name}' is no name for a key", hint="letters, digits, and . _ @ - within")
    return name


def _checked_key(public: str) -> str:
    try:
        if len(public) == 40 and len(zmq.utils.z85.decode(public)) == 32:
            return public
    except (ValueError, KeyError, struct.error):
        pass
    raise InvalidInput(
        "that is no public key", hint="`cwtool daemon keys` on the other machine shows it: 40 characters"
    )


def _own(settings: Settings) -> Path:
    return settings.home / "keys" / "own.json"


def _allowed(settings: Settings) -> Path:
    return settings.home / "keys" / "allowed"


def _hosts(settings: Settings) -> Path:
    return settings.home / "hosts.json"


def _write_hosts(settings: Settings, known: dict[str, Host]) -> None:
    _write(settings, _hosts(settings), json.dumps({name: asdict(host) for name, host in known.items()}, indent=2))


def _write(settings: Settings, path: Path, text: str) -> None:
    """Write a file whole, for its owner alone."""
    for folder in (settings.home, path.parent.parent, path.parent):
        if folder.is_relative_to(settings.home):
            private_folder(folder)
    scratch = path.with_name(f".{path.name}.new")
    with os.fdopen(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
    scratch.replace(path)
