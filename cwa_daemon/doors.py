"""The doors of the daemon: a socket in a private folder, and on request one that takes encrypted connections by TCP."""

from __future__ import annotations

import contextlib
import logging
import os

import zmq
import zmq.asyncio
from zmq.auth.asyncio import AsyncioAuthenticator

from cwa_daemon import keys, protocol
from cwa_daemon.lifecycle import write_address
from cwa_daemon.security import check_peer, check_socket, private_folder
from cwa_daemon.settings import Settings
from cwa_engine.errors import CwaError, DaemonNotStartable, Refused

log = logging.getLogger(__name__)

ZAP_DOMAIN = "cwtool"


class Door:
    """A ROUTER socket. `tag` is one byte that tells its clients' identities from those of other doors."""

    tag = b""
    name = ""

    def __str__(self) -> str:
        return self.name

    def __init__(self, context: zmq.asyncio.Context, settings: Settings) -> None:
        self.settings = settings
        self.socket = context.socket(zmq.ROUTER)
        self.socket.setsockopt(zmq.ROUTER_MANDATORY, 1)  # or messages to a full or gone client vanish in silence
        self.socket.setsockopt(zmq.MAXMSGSIZE, protocol.MAX_MESSAGE_BYTES)
        self.socket.setsockopt(zmq.LINGER, 1000)

    def open(self) -> None:
        """Begin to listen. Raises DaemonNotStartable."""
        raise NotImplementedError

    def check(self, frame: zmq.Frame) -> None:
        """Raise Refused for a message from somebody who may not speak."""
        raise NotImplementedError

    def look_after(self) -> None:
        """Called once a second."""

    def close(self) -> None:
        self.socket.close()


class LocalDoor(Door):
    """For this user's processes on this machine."""

    tag = b"l"
    name = "the local door"

    def open(self) -> None:
        """The lock is held: a second bind on the same path would silently steal it."""
        self._path = self.settings.socket  # another one once the system has removed the runtime folder
        private_folder(self._path.parent.parent)
        private_folder(self._path.parent)
        self._path.unlink(missing_ok=True)
        before = os.umask(0o077)
        try:
            self.socket.bind(f"ipc://{self._path}")
        except zmq.ZMQError as error:
            raise DaemonNotStartable(
                f"no socket can be made at {self._path}: {error}", hint="set XDG_RUNTIME_DIR to a short path"
            ) from error
        finally:
            os.umask(before)
        self._inode = self._path.stat().st_ino
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

    def check(self, frame: zmq.Frame) -> None:
        check_peer(str(frame.get("Peer-Address")))

    def look_after(self) -> None:
        """Where the socket was removed, as the system does with a runtime folder at the last logout, make it anew."""
        inode = self._path.stat().st_ino if self._path.exists() else None
        if inode != self._inode:
            log.warning("the socket %s is gone: binding again", self._path)
            self.open()  # without unbinding, which would end the connections there are
        elif not self._announced:
            self._announce()

    def close(self) -> None:
        super().close()
        self.settings.address_file.unlink(missing_ok=True)
        self._path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # a file of somebody else's in it, and the folder stays
            self._path.parent.rmdir()


class RemoteDoor(Door):
    """For clients elsewhere whose public key is allowed; everything is encrypted. Nobody comes in without a key."""

    tag = b"r"
    name = "the remote door"

    def __init__(self, context: zmq.asyncio.Context, settings: Settings, address: str) -> None:
        super().__init__(context, settings)
        self.address = address
        # It must answer before the socket listens: until a policy exists, ZeroMQ lets everybody in.
        self._authenticator = AsyncioAuthenticator(context)
        self._authenticator.start()
        self._authenticator.configure_curve_callback(domain=ZAP_DOMAIN, credentials_provider=self)

    def callback(self, domain: str, key: bytes) -> bool:
        """Whether a client with this public key may connect; the authenticator asks at each handshake."""
        return key.decode() in keys.allowed(self.settings).values()

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
        try:
            self.socket.bind(self.address)
        except zmq.ZMQError as error:
            raise DaemonNotStartable(
                f"nothing can listen at {self.address}: {error}", hint="another port may be free"
            ) from error
        log.info("listening at %s", self.address)

    def check(self, frame: zmq.Frame) -> None:
        """With each message, so that who is revoked is out at once, and not at the next handshake."""
        if not self.callback(ZAP_DOMAIN, str(frame.get("User-Id")).encode()):
            raise Refused("this key is not allowed here any more", hint="`cwtool daemon keys allow` on that machine")

    def close(self) -> None:
        super().close()
        self._authenticator.stop()
