"""`cwtool daemon keys` and `cwtool daemon hosts`: clients that may connect from elsewhere, daemons on other machines."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from cwa_tui.cli import completion
from cwa_tui.cli.groups import ListByDefault
from cwa_tui.cli.output import say, show
from cwa_tui.cli.parameters import Json

keys_app = typer.Typer(cls=ListByDefault, help="Show, make, allow and revoke keys for connections from other machines.")
hosts_app = typer.Typer(
    cls=ListByDefault, help="List, add and remove daemons on other machines, for `cwtool --host NAME`."
)

Role = StrEnum("Role", ["viewer", "runner", "admin"])  # as `cwa_daemon.client.Role`, which takes a while to import
Name = Annotated[str, typer.Argument(help="Name of the client or machine.")]
PublicKey = Annotated[str, typer.Argument(help="40 characters, as `cwtool daemon keys` shows them.")]


@keys_app.command("list")
def show_keys(as_json: Json = False) -> None:
    """Show the public key of this machine, and the clients that may connect."""
    from cwa_daemon.client import Settings, keys

    public, others = keys.own_pair(Settings()).public, keys.allowed(Settings())
    if as_json:
        allowed_keys = {name: {"public": key.public, "role": key.role} for name, key in others.items()}
        show({"public": public, "allowed": allowed_keys})
        return
    show(public)
    for name, key in others.items():
        say(f"allowed: {name} {key.public} as {key.role}")


@keys_app.command("new")
def new(force: Annotated[bool, typer.Option("--force", help="Replace existing keys.")] = False) -> None:
    """Make a pair of keys for this machine, and print the public one."""
    from cwa_daemon.client import Settings, keys

    show(keys.make_pair(Settings(), force).public)


@keys_app.command("allow")
def allow(
    name: Name,
    public_key: PublicKey,
    role: Annotated[
        Role, typer.Option(help="viewer: see jobs and results; runner: also run its own jobs; admin: everything.")
    ] = Role.runner,
) -> None:
    """Allow a client to connect from another machine, at once. Given again for a name, it changes the role or the key."""
    from cwa_daemon.client import Role as OfDaemon
    from cwa_daemon.client import Settings, keys

    keys.allow(Settings(), name, public_key, OfDaemon(role))
    show(f"{name} may connect as {role}")


@keys_app.command("revoke")
def revoke(name: Name) -> None:
    """Forbid a client to connect, at once."""
    from cwa_daemon.client import Settings, keys

    keys.revoke(Settings(), name)
    show(f"{name} may not connect any more")


@hosts_app.command("list")
def show_hosts(as_json: Json = False) -> None:
    """List the daemons on other machines that this machine knows."""
    from cwa_daemon.client import Settings, keys

    known = keys.hosts(Settings())
    if as_json:
        show({name: {"address": host.address, "public": host.public} for name, host in known.items()})
        return
    for name, host in known.items():
        show(f"{name} {host.address} {host.public}")


@hosts_app.command("add")
def add(name: Name, address: Annotated[str, typer.Argument(help="tcp://HOST:PORT")], public_key: PublicKey) -> None:
    """Add a daemon on another machine."""
    from cwa_daemon.client import Settings, keys

    keys.add_host(Settings(), name, address, public_key)
    show(f"`cwtool --host {name} ...` goes to {address}")


@hosts_app.command("remove")
def remove(
    name: Annotated[str, typer.Argument(help="Name of the machine.", autocompletion=completion.hosts)],
) -> None:
    """Remove a daemon."""
    from cwa_daemon.client import Settings, keys

    keys.remove_host(Settings(), name)
    show(f"{name} is removed")
