"""`cwtool models`: which model to take, what the guide and this machine know of it, and how it is had."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from cwa_engine.base.errors import CwaError, InvalidInput
from cwa_tui.cli import completion
from cwa_tui.cli.connection import chosen_host, command_typed, connect, refuse_other_host
from cwa_tui.cli.groups import QueryByDefault
from cwa_tui.cli.output import say, show
from cwa_tui.cli.parameters import Json, Model
from cwa_tui.cli.run import plan
from cwa_tui.cli.run_options import RunOptions

if TYPE_CHECKING:
    from cwa_engine.guide.catalog import CatalogModel
    from cwa_engine.rows import ModelOnDisk, Plan

app = typer.Typer()
models = typer.Typer(
    cls=QueryByDefault,
    help="Choose a model: list and search the guide, show what is known of one, plan, download and import models. "
    "Without a command it lists: `cwtool models list llama` does the same without `list`.",
)
app.add_typer(models, name="models")
models.command("plan", cls=RunOptions)(plan)

TIERS = ("small", "medium", "large")
Limit = Annotated[int | None, typer.Option("--limit", "-n", min=1, help="How many to list.", show_default="all")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a model of the Hub.", show_default=False)]
Words = Annotated[
    list[str] | None,
    typer.Argument(metavar="WORDS", help="What is looked for; all words together.", show_default=False),
]


@models.command("list")
def list_models(
    query: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="WORDS",
            help="Only models whose name or family contains these.",
            show_default=False,
            autocompletion=completion.models,
        ),
    ] = None,
    topic: Annotated[
        str | None,
        typer.Option(
            "--for",
            metavar="TOPIC",
            help="Only models for a question or purpose, the recommended ones first: scaling, speed, code ...",
            autocompletion=completion.topics,
        ),
    ] = None,
    tier: Annotated[
        str | None,
        typer.Option(
            metavar="TIER",
            help="Only models of this size: small (below 1B weights), medium (to 7B) or large.",
            autocompletion=completion.one_of(*TIERS),
        ),
    ] = None,
    on_disk: Annotated[bool, typer.Option("--on-disk", help="Only models that need no download.")] = False,
    limit: Limit = None,
    as_json: Json = False,
) -> None:
    """List the models of the guide, those that are on disk, and those that were imported."""
    from cwa_engine.guide.catalog import catalog
    from cwa_engine.guide.matching import has_words
    from cwa_engine.guide.topics import topic_named
    from cwa_tui.cli.guide_tables import catalog_table, plain_entry

    if tier is not None and tier not in TIERS:
        raise InvalidInput(f"there is no tier '{tier[:40]}'", hint=f"--tier takes {', '.join(TIERS)}")
    words, disk = " ".join(query or ()), _on_disk()
    about = topic_named(topic) if topic else None
    entries = [*about.recommended, *about.others] if about else catalog()
    known = [
        entry
        for entry in entries
        if has_words(f"{entry.name} {entry.alias} {entry.family}", words)
        and (tier is None or entry.tier == tier)
        and (not on_disk or entry.name in disk)
    ]
    in_guide = {entry.name for entry in catalog()}
    beside = [] if about or tier else [name for name in sorted(disk) if name not in in_guide and has_words(name, words)]
    listed = known[:limit]
    beside = beside if limit is None else beside[: max(0, limit - len(listed))]
    sizes = {name: disk[name] for name in (*(entry.name for entry in listed), *beside) if name in disk}
    if as_json:
        show({"guide": [plain_entry(entry) for entry in listed], "on_disk_bytes": sizes})
    elif listed or beside:
        show(catalog_table(listed, sizes, about.recommended if about else ()))
        _say_more(len(listed) + len(beside), len(known), about.name if about else "")
    else:
        show(f"no model is called like '{words[:60]}'" if words else "no model is like that")
        say("`cwtool models search WORDS` also looks into what models are good for")


def _say_more(shown: int, known: int, topic: str) -> None:
    if shown < known:
        say(f"1 to {shown} of {known}; -n {known} lists all")
    if topic:
        say(f"`cwtool models search {topic}` says how to go about it")


@models.command()
def search(words: Words = None, limit: Limit = None, as_json: Json = False) -> None:
    """Ask the guide: a research question, a purpose, a symptom, or words that models are described with.

    `cwtool models search which metric`, `... smallest reliable size`, `... code`, `... apache`"""
    from cwa_engine.base.plain import JsonMap
    from cwa_engine.guide.catalog import catalog
    from cwa_engine.guide.matching import has_words
    from cwa_engine.guide.topics import find_topics, find_troubles, topics
    from cwa_engine.rows import to_plain
    from cwa_tui.cli.guide_tables import answers, catalog_table, description, plain_entry, topic_list

    query = " ".join(words or ()).strip()
    if not query:
        show({"topics": to_plain(topics())} if as_json else topic_list(topics()))
        return
    found, symptoms = find_topics(query), find_troubles(query)
    named = [entry for entry in catalog() if has_words(f"{entry.name} {entry.alias} {entry.family}", query)]
    described = [] if found else [e for e in catalog() if e not in named and has_words(description(e), query)]
    first = [] if named else [entry for topic in found for entry in topic.recommended]
    entries = list(dict.fromkeys([*first, *named, *described]))
    listed = entries[:limit]
    if as_json:
        plain: JsonMap = {"topics": to_plain(found), "troubles": to_plain(symptoms)}
        show({**plain, "models": [plain_entry(entry) for entry in listed]})
        return
    if found or symptoms:
        show(answers(found, symptoms))
    if listed:
        show(catalog_table(listed, _on_disk(), first))
        _say_more(len(listed), len(entries), "")
    if not (found or symptoms or listed):
        show(f"the guide has nothing about '{query[:60]}'")
        say(f"topics: {', '.join(topic.name for topic in topics())}")


@models.command("show")
def show_model(
    model: Model,
    no_plan: Annotated[
        bool, typer.Option("--no-plan", help="Ask no daemon, and leave out what a run needs here.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show what is known of a model: size, licence, what it is good for, and what a run of it needs on this machine.

    Nothing is downloaded for a model of the guide; of another its config and tokenizer are."""
    from cwa_engine.guide.catalog import catalog_model
    from cwa_engine.hub.sources import name_and_revision
    from cwa_engine.rows import to_plain
    from cwa_tui.cli.guide_tables import model_page, plain_entry
    from cwa_tui.form.places import model_name

    given, revision = name_and_revision(model_name(model))
    entry, disk = catalog_model(given), _on_disk()
    if not as_json and (entry or given in disk):
        show(model_page(given, entry, disk))
    planned, why_not = (None, "") if no_plan else _planned(given, revision, known=bool(entry))
    if as_json:
        facts = {
            "model": given,
            "guide": plain_entry(entry) if entry else None,
            "on_disk_bytes": disk.get(_name(given, entry)),
        }
        show({**facts, "plan": to_plain(planned) if planned else None, "no_plan": why_not})
    elif planned:
        from cwa_tui.cli.plan import plan_report

        if entry and entry.parameters != planned.parameters:
            say(
                f"{given} is another model here: it has {planned.parameters:,} weights, and in the guide "
                f"{entry.parameters:,}"
            )
        show("")
        show(plan_report(planned))
    elif why_not:
        say(f"what a run needs here is not known: {why_not}")


def _name(given: str, entry: CatalogModel | None) -> str:
    return entry.name if entry else given


def _planned(name: str, revision: str | None, known: bool) -> tuple[Plan | None, str]:
    """The plan of a run with the usual options, or why there is none. Raises the error for a model that nobody knows."""
    from cwa_engine.spec import RunSpec
    from cwa_tui.cli.following import planned

    try:
        with connect() as client:
            spec = RunSpec(model=name, revision=revision)
            found = planned(client, client.plan(spec, command=command_typed(), offline=known))
            host = f"cwtool --host {client.host}" if client.host else "cwtool"
        return replace(found, command=found.command and found.command.replace("cwtool", host, 1)), ""
    except CwaError as error:
        if not known:
            raise
        return None, error.message


@models.command()
def pull(model: Model, revision: Revision = None, as_json: Json = False) -> None:
    """Download a model, or what is missing of it, and check that it can be loaded. A model that is here is only checked."""
    from cwa_engine.rows import to_plain
    from cwa_tui.cli.guide_tables import pulled_page

    found = _pulled(model, revision)
    show(to_plain(found) if as_json else pulled_page(found))


@models.command("import")
def import_model(
    path: Annotated[
        str, typer.Argument(metavar="FOLDER|FILE.gguf", help="A model as save_pretrained writes it, or a GGUF file.")
    ],
    name: Annotated[
        str | None, typer.Option(help="What it is called from now on; made of the path if left out.", metavar="ALIAS")
    ] = None,
    as_json: Json = False,
) -> None:
    """Give a local model a name, under which every command knows it. It is checked, and its files stay where they are."""
    refuse_other_host("models import")
    from cwa_engine.base.files import user_path
    from cwa_engine.hub.imported import ImportedModel, check_import_name, name_for, remember_import
    from cwa_engine.hub.sources import absolute_name
    from cwa_engine.rows import to_plain
    from cwa_tui.cli.guide_tables import pulled_page

    place = user_path(path, "the model")
    if not place.exists():
        raise InvalidInput(
            f"there is nothing at {place}", hint="give a folder that save_pretrained wrote, or a .gguf file"
        )
    whole = absolute_name(str(place.absolute()))
    name = name_for(whole) if name is None else name
    check_import_name(name, whole)
    found = _pulled(whole, None)
    remember_import(ImportedModel(name, whole, found.architecture, found.parameters, found.size_bytes))
    if as_json:
        show({"name": name, **to_plain(found)})
    else:
        show(pulled_page(found))
        show(f"{name} is its name from now on: cwtool run {name}")


@models.command()
def forget(
    name: Annotated[str, typer.Argument(help="A name that `models import` gave.", autocompletion=completion.imported)],
    as_json: Json = False,
) -> None:
    """Take back a name that `models import` gave. The model's files stay."""
    refuse_other_host("models forget")
    from cwa_engine.hub.imported import forget_import

    forgotten = forget_import(name)
    show(
        {"name": forgotten.name, "path": forgotten.path} if as_json else f"{name} is forgotten; {forgotten.path} stays"
    )


@models.command()
def trouble(symptom: Words = None, as_json: Json = False) -> None:
    """Say what to do about a model that will not load, does not fit, or is slow; words of an error message will do."""
    from cwa_engine.guide.topics import find_troubles, troubles
    from cwa_engine.rows import to_plain
    from cwa_tui.cli.guide_tables import answers

    query = " ".join(symptom or ()).strip()
    found = find_troubles(query) if query else list(troubles())
    if as_json:
        show({"troubles": to_plain(found)})
    elif found:
        show(answers([], found))
    else:
        show(f"the guide knows no symptom like '{query[:60]}'")
        say(f"it knows {', '.join(known.name for known in troubles())}; `cwtool doctor` checks this machine")


def _pulled(model: str, revision: str | None) -> ModelOnDisk:
    """What a job of the daemon found, which has downloaded the model where it was not on disk. Ctrl-C cancels it."""
    from cwa_engine.base.events import Pulled
    from cwa_engine.hub.sources import name_and_revision
    from cwa_engine.spec import RunSpec
    from cwa_tui.cli.following import follow
    from cwa_tui.cli.remembered import remember
    from cwa_tui.form.places import model_name
    from cwa_tui.store.events import read_job_event

    name, revision = name_and_revision(model_name(model), revision)
    with connect() as client:
        run_id = client.pull(RunSpec(model=name, revision=revision), command_typed())
        follow(client, run_id, cancel_on_interrupt=True)
        remember(models=[name])
        events = (read_job_event(plain).what for plain in client.follow(run_id))
        return next(event.model for event in events if isinstance(event, Pulled))


def _on_disk() -> dict[str, int]:
    """Name -> bytes of the models on this machine; a message where another machine is asked for."""
    from cwa_engine.hub.sources import HubAccess, models_on_disk

    if host := chosen_host():
        say(f"on disk: on this machine, not on {host}")
    return models_on_disk(HubAccess.from_environment())
