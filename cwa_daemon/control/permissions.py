"""What a client may ask: viewers see, runners also run and look after their own jobs, admins may do all.

A client of the local door is this machine's user, an admin whose jobs have no owner's name. From elsewhere it is the
role of the key that counts.
"""

from __future__ import annotations

from dataclasses import dataclass

from cwa_daemon import protocol
from cwa_daemon.base.roles import Role
from cwa_daemon.protocol import Request
from cwa_engine.base.errors import Refused

NEEDS: dict[type[Request], Role] = {
    protocol.GetJob: Role.VIEWER,
    protocol.ListJobs: Role.VIEWER,
    protocol.ListMarks: Role.VIEWER,
    protocol.Subscribe: Role.VIEWER,
    protocol.Acknowledge: Role.VIEWER,
    protocol.Unsubscribe: Role.VIEWER,
    protocol.GetStatus: Role.VIEWER,
    protocol.GetTelemetry: Role.VIEWER,
    protocol.ListResults: Role.VIEWER,
    protocol.GetResult: Role.VIEWER,
    protocol.GetTopK: Role.VIEWER,
    protocol.ListFiles: Role.VIEWER,
    protocol.GetFile: Role.VIEWER,
    protocol.Submit: Role.RUNNER,
    protocol.KeepTexts: Role.RUNNER,
    protocol.Retry: Role.RUNNER,
    protocol.Mark: Role.RUNNER,
    protocol.Cancel: Role.RUNNER,
    protocol.Pause: Role.RUNNER,
    protocol.Resume: Role.RUNNER,
    protocol.Unload: Role.ADMIN,
    protocol.Prune: Role.ADMIN,
    protocol.Shutdown: Role.ADMIN,
}


@dataclass(frozen=True, slots=True)
class Caller:
    """The sender of a request: its connection, the name of its key ("" for this machine's user), and what it may do."""

    identity: bytes
    name: str
    role: Role
    minor: int = 0  # version of the protocol

    @property
    def is_remote(self) -> bool:
        return self.name != ""

    @property
    def only_own(self) -> str | None:
        """The owner whose jobs it may change; None for the jobs of all."""
        return None if self.role is Role.ADMIN else self.name


def check_role(caller: Caller, request: Request) -> None:
    """Raises Refused, naming the role that is needed."""
    needed, order = NEEDS[type(request)], list(Role)
    if order.index(caller.role) < order.index(needed):
        raise Refused(
            f"the key of {caller.name} is a {caller.role}'s, and '{request.op}' needs {needed}",  # type: ignore[attr-defined]
            hint=f"on that machine: `cwtool daemon keys allow {caller.name} KEY --role {needed}`",
        )


def check_owner(caller: Caller, run_id: str, owner: str) -> None:
    """Raises Refused where a job is somebody else's, and the caller no admin."""
    if caller.only_own is not None and caller.only_own != owner:
        raise Refused(
            f"{run_id} is a job of {owner or 'the user of that machine'}, and {caller.name} may touch only its own",
            hint="an admin may: `cwtool daemon keys allow NAME KEY --role admin` on that machine",
        )
