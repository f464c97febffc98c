"""Keys for connections from other machines: whose, who may come in, and which daemons this client knows.

Three JSON files in the state folder, for their owner alone: `keys.json`, `allowed.json`, `hosts.json`. Public keys are 40
characters, as ZeroMQ writes them (Z85, RFC 32 of ZeroMQ); the connections are encrypted and authenticated by CurveZMQ
(RFC 26).
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import zmq
import zmq.utils.z85

from cwa_daemon.base.roles import Role
from cwa_daemon.base.security import read_own_file, state_folder
from cwa_daemon.base.settings import Settings
from cwa_engine.base.errors import InvalidInput, NotFound, did_you_mean
from cwa_engine.base.files import write_whole
from cwa_engine.base.plain import JsonMap

T = TypeVar("T")

_OWN, _ALLOWED, _HOSTS = "keys.json", "allowed.json", "hosts.json"
_REMAKE = {
    _OWN: "mend it, or remove it and make new keys with `cwtool daemon keys new`",
    _ALLOWED: "mend it, or remove it and allow each key again with `cwtool daemon keys allow`; until then no key is let in",
    _HOSTS: "mend it, or remove it and add each daemon again with `cwtool daemon hosts add`",
}


@dataclass(frozen=True, slots=True)
class Pair:
    """This user's own keys; the secret one never leaves its file."""

    public: str
    secret: str


@dataclass(frozen=True, slots=True)
class AllowedKey:
    """A client that may connect."""

    public: str
    role: Role


@dataclass(frozen=True, slots=True)
class Host:
    """A daemon on another machine."""

    address: str  # tcp://HOST:PORT
    public: str


def make_pair(settings: Settings, force: bool) -> Pair:
    """Make this user's keys. Raises InvalidInput where there are some, unless `force`."""
    if _read(settings, _OWN) and not force:
        raise InvalidInput(
            "there are keys already", hint="`cwtool daemon keys` shows the public one; --force makes new ones"
        )
    public, secret = zmq.curve_keypair()
    while public.startswith(b"-"):  # which a command line takes for an option
        public, secret = zmq.curve_keypair()
    pair = Pair(public.decode(), secret.decode())
    _write(settings, _OWN, asdict(pair))
    return pair


def own_pair(settings: Settings) -> Pair:
    """This user's keys. Raises NotFound where there are none."""
    own = _read(settings, _OWN)
    if not own:
        raise NotFound("you have no keys", hint="`cwtool daemon keys new` makes them")
    try:
        return Pair(str(own["public"]), str(own["secret"]))
    except KeyError as error:
        raise _unreadable(settings.home / _OWN, f"it lacks {error}") from error


def allow(settings: Settings, name: str, public: str, role: Role = Role.RUNNER) -> None:
    """Let the owner of this public key connect, and do what the role allows.

    Raises InvalidInput for no such key, no such name, and a key that has another name already.
    """
    known = allowed(settings)
    if other := next((other for other, key in known.items() if key.public == public and other != name), None):
        raise InvalidInput(f"this key is allowed as {other} already", hint=f"`cwtool daemon keys revoke {other}` first")
    _write_allowed(settings, {**known, _checked_name(name): AllowedKey(_checked_key(public), role)})


def revoke(settings: Settings, name: str) -> None:
    """Shut a client out, from its next message on. Raises NotFound."""
    known = allowed(settings)
    if name not in known:
        raise NotFound(f"no key is allowed as '{name}'", hint=did_you_mean(name, known))
    _write_allowed(settings, {other: key for other, key in known.items() if other != name})


def allowed(settings: Settings) -> dict[str, AllowedKey]:
    """Name -> key of every client that may connect. Raises InvalidInput for a file that is no list of keys."""
    return _entries(settings, _ALLOWED, _allowed_key)


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
    return _entries(settings, _HOSTS, lambda host: Host(str(host["address"]), str(host["public"])))


def find_host(settings: Settings, name: str) -> Host:
    """A daemon by its name. Raises NotFound."""
    known = hosts(settings)
    if name not in known:
        hint = did_you_mean(name, known) or f"`cwtool daemon hosts add {name} tcp://HOST:PORT ITS_PUBLIC_KEY`"
        raise NotFound(f"no host is called '{name}'", hint=hint)
    return known[name]


def secure(socket: Any, host: Host, own: Pair) -> None:
    """Make a client's socket speak to this daemon alone, as this user."""
    socket.setsockopt(zmq.CURVE_SERVERKEY, host.public.encode())
    socket.setsockopt(zmq.CURVE_PUBLICKEY, own.public.encode())
    socket.setsockopt(zmq.CURVE_SECRETKEY, own.secret.encode())


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


def _read(settings: Settings, name: str) -> JsonMap:
    """The map in a file of the state folder, empty where there is none.

    Raises InvalidInput for a file that holds none, and UnsafePlace for one that others could have written.
    """
    path = settings.home / name
    try:
        content = json.loads(read_own_file(path, private=name == _OWN))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    if not isinstance(content, dict):
        raise _unreadable(path, "it holds no JSON object")
    return content


def _entries(settings: Settings, name: str, entry: Callable[[Any], T]) -> dict[str, T]:
    """The entries of a map in a file. Raises InvalidInput, naming the first that cannot be one."""
    found = {}
    for known, content in _read(settings, name).items():
        try:
            found[known] = entry(content)
        except (KeyError, TypeError, ValueError) as error:
            raise _unreadable(settings.home / name, f"the entry of '{known}': {error!r}") from error
    return found


def _allowed_key(content: Any) -> AllowedKey:
    if isinstance(content, str):  # of a version without roles, when a key might do all
        return AllowedKey(content, Role.ADMIN)
    return AllowedKey(str(content["public"]), Role(content["role"]))


def _unreadable(path: Path, why: object) -> InvalidInput:
    return InvalidInput(f"{path} cannot be read: {why}", hint=_REMAKE[path.name])


def _write_allowed(settings: Settings, known: dict[str, AllowedKey]) -> None:
    _write(settings, _ALLOWED, {name: asdict(key) for name, key in known.items()})


def _write(settings: Settings, name: str, content: JsonMap) -> None:
    """Write a file whole, for its owner alone: whoever reads it in this moment gets the one before."""
    state_folder(settings.home)
    write_whole(settings.home / name, json.dumps(content, indent=2).encode(), mode=0o600)


def _write_hosts(settings: Settings, known: dict[str, Host]) -> None:
    _write(settings, _HOSTS, {name: asdict(host) for name, host in known.items()})
