"""`cwtool ps`, `load` and `unload`: models that are warm."""

from __future__ import annotations

import typer

from cwa_engine.base.errors import InvalidInput, NoDaemon
from cwa_tui.cli.connection import command_typed, connect
from cwa_tui.cli.output import say, show
from cwa_tui.cli.parameters import Json, Model
from cwa_tui.cli.remembered import remember
from cwa_tui.cli.run_options import RunOptions, job_options_of, spec_of

app = typer.Typer()


@app.command()
def ps(as_json: Json = False) -> None:
    """Show the models that are warm, how full the memory of each device is, and what each of several lanes does."""
    from cwa_tui.cli.tables import warm_models

    try:
        with connect(start=False) as client:
            status = client.status()
    except NoDaemon as error:
        if as_json:
            show({"models": [], "devices": [], "workers": []})
        else:
            say(f"no model is warm: {error.message}")
        return
    show(status.model_dump(include={"models", "devices", "workers"}) if as_json else warm_models(status))


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
