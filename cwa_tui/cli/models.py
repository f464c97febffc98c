"""`cwtool models`, `ps`, `load` and `unload`: models that can be had, and those that are warm."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated

import typer

from cwa_engine.base.errors import InvalidInput, NoDaemon
from cwa_tui.cli import completion
from cwa_tui.cli.connection import chosen_host, command_typed, connect
from cwa_tui.cli.output import say, show
from cwa_tui.cli.parameters import Json, Model
from cwa_tui.cli.remembered import remember
from cwa_tui.cli.run_options import RunOptions, job_options_of, spec_of

if TYPE_CHECKING:
    from cwa_engine.guide.catalog import CatalogModel

app = typer.Typer()


@app.command()
def ps(as_json: Json = False) -> None:
    """Show the models that are warm, and how full the memory of each device is."""
    from cwa_tui.cli.tables import warm_models

    try:
        with connect(start=False) as client:
            status = client.status()
    except NoDaemon as error:
        if as_json:
            show({"models": [], "devices": []})
        else:
            say(f"no model is warm: {error.message}")
        return
    show(status.model_dump(include={"models", "devices"}) if as_json else warm_models(status))


@app.command(cls=RunOptions)
def load(context: typer.Context, as_json: Json = False) -> None:
    """Load a model, so that the first run finds it warm."""
    from cwa_tui.cli.following import follow

    spec, options = spec_of("load", context.obj), job_options_of("load", context.obj)
    (model,) = context.obj["model"]
    with connect() as client:
        run_id = client.load(spec, command_typed(), options)
        remember(models=[model])
        follow(client, run_id, cancel_on_interrupt=True)
        show({"model": model, "run_id": run_id} if as_json else f"{model} is warm")


@app.command()
def unload(model: Model, as_json: Json = False) -> None:
    """Free the memory of a warm model, in all its revisions."""
    from cwa_engine.hub.sources import name_and_revision
    from cwa_tui.form.places import model_name

    name, revision = name_and_revision(model_name(model))
    if revision:
        raise InvalidInput("a model is unloaded with all its revisions", hint=f"`cwtool unload {name}`")
    with connect(start=False) as client:
        names = client.unload(name)
        show({"unloaded": names} if as_json else f"unloaded {', '.join(names)}")


@app.command()
def models(
    query: Annotated[
        str,
        typer.Argument(
            help="Only models whose name contains this.", show_default=False, autocompletion=completion.models
        ),
    ] = "",
    limit: Annotated[
        int | None, typer.Option("--limit", "-n", min=1, help="How many to list.", show_default="all")
    ] = None,
    as_json: Json = False,
) -> None:
    """List the models that the guide describes, and those that are on disk."""
    from cwa_engine.guide.catalog import CATALOG
    from cwa_engine.hub.sources import HubAccess, models_on_disk
    from cwa_tui.cli.tables import catalog_table

    if host := chosen_host():
        say(f"on disk: on this machine, not on {host}")
    known = [e for e in CATALOG if query.lower() in f"{e.name} {e.alias} {e.family}".lower()]
    names = {entry.name for entry in known}
    on_disk = models_on_disk(HubAccess.from_environment())
    on_disk = {name: size for name, size in on_disk.items() if name in names or query.lower() in name.lower()}
    known, on_disk = _first(known, on_disk, limit)
    if as_json:
        show({"guide": [dataclasses.asdict(entry) for entry in known], "on_disk_bytes": on_disk})
    else:
        show(catalog_table(known, on_disk) if known or on_disk else f"no model is called like '{query}'")


def _first(
    known: list[CatalogModel], on_disk: dict[str, int], limit: int | None
) -> tuple[list[CatalogModel], dict[str, int]]:
    """As many models as are wanted: of the guide, then those that are on disk alone."""
    shown = known[:limit]
    names = {entry.name for entry in known}
    others = [name for name in sorted(on_disk) if name not in names]
    others = others if limit is None else others[: max(0, limit - len(shown))]
    listed = {*others, *(entry.name for entry in shown)}
    return shown, {name: size for name, size in on_disk.items() if name in listed}
