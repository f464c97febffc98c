"""The doors of the daemon: a socket in a private folder, and on request one that takes encrypted connections by TCP.

Behind each stands a ROUTER socket that listens in the private folder; clients come to it through the door's gate.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket as network
from pathlib import Path

import zmq
import zmq.asyncio
from zmq.auth.asyncio import AsyncioAuthenticator

from cwa_daemon import protocol
from cwa_daemon.base import keys
from cwa_daemon.base.address import write_address
from cwa_daemon.base.roles import Role
from cwa_daemon.base.security import check_socket, peer_of, private_folder
from cwa_daemon.base.settings import Settings
from cwa_daemon.control.gates import SILENCE_S, Gate
from cwa_daemon.control.permissions import Caller
from cwa_engine.base.errors import CwaError, DaemonNotStartable, Refused

log = logging.getLogger(__name__)

ZAP_DOMAIN = "cwtool"
_CURVE_HANDSHAKE_BYTES = 64 + 170 + 32  # that every client is sent: greeting, WELCOME, an error (RFC 23, 26 of ZeroMQ)
_KEEPALIVE = (
    (network.TCP_KEEPIDLE, 60),
    (network.TCP_KEEPINTVL, 15),
    (network.TCP_KEEPCNT, 4),
)  # seconds, seconds, times


class Door:
    """A ROUTER socket and the gate before it. `tag` is one byte that tells its clients' identities from those of others."""

    tag = b""
    name = ""

    def __str__(self) -> str:
        return self.name

    def __init__(self, context: zmq.asyncio.Context, settings: Settings, places: int) -> None:
        self.settings = settings
        self.socket = context.socket(zmq.ROUTER)
        self.socket.setsockopt(zmq.ROUTER_MANDATORY, 1)  # or messages to a full or gone client vanish in silence
        self.socket.setsockopt(zmq.MAXMSGSIZE, protocol.MAX_REQUEST_BYTES)
        self.socket.setsockopt(zmq.HANDSHAKE_IVL, int(SILENCE_S * 1000))
        self.socket.setsockopt(zmq.LINGER, 1000)
        self.gate = self._gate(places)
        self._inner = Path()
        self._inode: int | None = None

    def open(self) -> None:
        """Begin to listen. Raises DaemonNotStartable."""
        raise NotImplementedError

    def caller(self, identity: bytes, frame: zmq.Frame, minor: int) -> Caller:
        """The sender of a message. Raises Refused for one that may not send any."""
        raise NotImplementedError

    def look_after(self) -> None:
        """Called once a second. Where the folder was removed, as the system does at the last logout, it is made anew."""
        if _inode(self._inner) != self._inode:
            log.warning("the socket %s is gone: binding again", self._inner)
            self._bind_inner()  # without unbinding, which would end the connections there are
        self.gate.look_after()

    def close(self) -> None:
        self.gate.stop_listening()
        self.socket.close()
        self._inner.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # the other door's socket is in it, or a file of somebody else's
            self._inner.parent.rmdir()

    def _gate(self, places: int) -> Gate:
        raise NotImplementedError

    def _bind_inner(self) -> None:
        """The lock is held: a second bind on the same path would silently steal it."""
        folder = self.settings.runtime_dir  # another one once the system has removed it
        private_folder(folder.parent)
        private_folder(folder)
        self._inner = folder / f"{self.tag.decode()}.zmq"
        self._inner.unlink(missing_ok=True)
        try:
            self.socket.bind(f"ipc://{self._inner}")
        except zmq.ZMQError as error:
            raise DaemonNotStartable(
                f"no socket can be made at {self._inner}: {error}", hint="set XDG_RUNTIME_DIR to a short path"
            ) from error
        self._inode = _inode(self._inner)


class LocalDoor(Door):
    """For this user's processes on this machine."""

    tag = b"l"
    name = "the local door"

    def caller(self, identity: bytes, frame: zmq.Frame, minor: int) -> Caller:
        return Caller(identity, "", Role.ADMIN, minor)

    def _gate(self, places: int) -> Gate:
        return Gate(lambda: self._inner, _same_user, places, share=places, handshake_bytes=0)

    def open(self) -> None:
        self._bind_inner()
        self._listen()

    def _listen(self) -> None:
        self._path = self._inner.with_name(self.settings.socket.name)
        self._path.unlink(missing_ok=True)
        listener = network.socket(network.AF_UNIX)
        before = os.umask(0o077)
        try:
            listener.bind(str(self._path))
        except OSError as error:
            raise DaemonNotStartable(
                f"no socket can be made at {self._path}: {error}", hint="set XDG_RUNTIME_DIR to a short path"
            ) from error
        finally:
            os.umask(before)
        self.gate.listen(listener)
        self._path_inode = _inode(self._path)
        check_socket(self._path.parent.resolve() / self._path.name)
        self._announce()

    def _announce(self) -> None:
        """Clients find the socket by what is written down. Raises DaemonNotStartable."""
        self._announced = False
        try:
            write_address(self.settings, self._path)
        except OSError as error:
            raise DaemonNotStartable(
                f"the daemon's address cannot be written to {self.settings.address_file}: {error.strerror}",
                hint="clients look there: make room on the disk of the state folder",
            ) from error
        self._announced = True

    def look_after(self) -> None:
        super().look_after()
        if _inode(self._path) != self._path_inode or self._path.parent != self._inner.parent:
            log.warning("the socket %s is gone: binding again", self._path)
            self._listen()
        elif not self._announced:
            self._announce()

    def close(self) -> None:
        self.settings.address_file.unlink(missing_ok=True)
        self._path.unlink(missing_ok=True)
        super().close()


class RemoteDoor(Door):
    """For clients elsewhere whose public key is allowed; everything is encrypted. Nobody comes in without a key."""

    tag = b"r"
    name = "the remote door"

    def __init__(self, context: zmq.asyncio.Context, settings: Settings, places: int, address: str) -> None:
        super().__init__(context, settings, places)
        self.address = address
        # It must answer before the socket listens: until a policy exists, ZeroMQ lets everybody in.
        self._authenticator = AsyncioAuthenticator(context)
        self._authenticator.start()
        self._authenticator.configure_curve_callback(domain=ZAP_DOMAIN, credentials_provider=self)

    def _gate(self, places: int) -> Gate:
        share = max(2, places // 2)  # for those of one address, which may be a whole laboratory
        return Gate(lambda: self._inner, _address, places, share, _CURVE_HANDSHAKE_BYTES)

    def callback(self, domain: str, key: bytes) -> bool:
        """Whether a client with this public key may connect; the authenticator asks at each handshake."""
        try:
            return self._known(key.decode()) is not None
        except CwaError as error:
            log.error("nobody is let in: %s", error.message)
            return False

    def _known(self, public: str) -> tuple[str, keys.AllowedKey] | None:
        """The name of an allowed key, and what it may do."""
        found = keys.allowed(self.settings)
        return next(((name, key) for name, key in found.items() if key.public == public), None)

    def open(self) -> None:
        keys.check_address(self.address)
        try:
            own = keys.own_pair(self.settings)
        except CwaError as error:
            raise DaemonNotStartable(f"to listen at {self.address} keys are needed", hint=error.hint) from error
        self.socket.setsockopt(zmq.CURVE_SERVER, 1)
        self.socket.setsockopt(zmq.CURVE_PUBLICKEY, own.public.encode())
        self.socket.setsockopt(zmq.CURVE_SECRETKEY, own.secret.encode())
        self.socket.setsockopt(zmq.ZAP_DOMAIN, ZAP_DOMAIN.encode())
        self._bind_inner()
        try:
            self.gate.listen(_listener(self.address))
        except (OSError, OverflowError) as error:
            raise DaemonNotStartable(
                f"nothing can listen at {self.address}: {error}", hint="another port may be free"
            ) from error
        log.info("listening at %s", self.address)

    def caller(self, identity: bytes, frame: zmq.Frame, minor: int) -> Caller:
        """Looked up with each message, so that who is revoked is out at once, and not at the next handshake."""
        try:
            known = self._known(str(frame.get("User-Id")))
        except CwaError as error:
            log.error("nobody may speak: %s", error.message)
            raise Refused("the list of allowed keys cannot be read", hint="its daemon's log says why") from error
        if known is None:
            raise Refused("this key is not allowed here any more", hint="`cwtool daemon keys allow` on that machine")
        return Caller(identity, known[0], known[1].role, minor)

    def close(self) -> None:
        super().close()
        self._authenticator.stop()


def _inode(path: Path) -> int | None:
    return path.stat().st_ino if path.exists() else None


def _same_user(connection: network.socket) -> str | None:
    """Processes of other users may not come in, whatever the mode of the socket has become."""
    _, uid = peer_of(connection)
    if uid == os.getuid():
        return "this user"
    log.warning("a connection of another user (uid %d) was refused", uid)
    return None


def _address(connection: network.socket) -> str | None:
    """The address of who connects, None where they have gone already. Connections of machines that vanish end by themselves."""
    try:
        for option, value in _KEEPALIVE:
            connection.setsockopt(network.IPPROTO_TCP, option, value)
        connection.setsockopt(network.SOL_SOCKET, network.SO_KEEPALIVE, 1)
        return str(connection.getpeername()[0])
    except OSError:
        return None


def _listener(address: str) -> network.socket:
    """A socket bound to tcp://HOST:PORT. Raises OSError and OverflowError."""
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    found = network.getaddrinfo(None if host == "*" else host.strip("[]"), int(port), type=network.SOCK_STREAM,
                                flags=network.AI_PASSIVE)  # fmt: skip
    family, kind, number, _, where = min(found, key=lambda each: each[0] != network.AF_INET)
    listener = network.socket(family, kind, number)
    try:
        listener.setsockopt(network.SOL_SOCKET, network.SO_REUSEADDR, 1)
        listener.bind(where)
    except BaseException:
        listener.close()
        raise
    return listener
