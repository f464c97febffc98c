"""Values that a shell completes, from registries, the model caches and what commands remember. No daemon is asked or started.

Each function takes what is typed so far and gives values, or (value, what it is) for shells that show that.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from cwa_engine.base.errors import CwaError

if TYPE_CHECKING:
    from cwa_engine.options import OptionField

Value = str | tuple[str, str]
Completion = Callable[[str], list[Value]]

_DTYPES = ("bf16", "fp16", "fp32")  # short names beside those of the registry


def of_option(entry: OptionField) -> Completion | None:
    """How the values of a run's option are completed; None where nothing is known, and a shell completes files."""
    if entry.field == "model":
        return models
    if entry.field == "after":
        return run_ids
    choices = (*entry.choices, *(_DTYPES if entry.field == "dtype" else ()), *entry.option.words)
    return _of(choices, several=entry.several) if choices else None


def models(incomplete: str) -> list[Value]:
    """Models of the guide, on disk, and those that commands have named."""
    from cwa_engine.guide.catalog import catalog
    from cwa_tui.cli.remembered import remembered

    found: dict[str, str] = {}
    for entry in catalog():
        said = f"{entry.family}, {entry.parameters_m:g} M weights"
        found |= {name: said for name in (entry.alias, entry.name) if name}
    found |= dict.fromkeys(_on_disk(), "on disk")
    found |= dict.fromkeys(_imported(), "imported")
    found |= {name: "used before" for name in remembered().models if name not in found}
    return _beginning(found.items(), incomplete)


def run_ids(incomplete: str) -> list[Value]:
    """Run ids that commands have seen and folders of finished runs; where none begins like this, ends that do."""
    from cwa_engine.records.run_id import short_id
    from cwa_tui.cli.remembered import remembered

    finished = dict.fromkeys(_run_folders(), "done")
    found = sorted({**finished, **remembered().runs}.items(), reverse=True)  # the latest first
    whole: list[Value] = [(run_id, said) for run_id, said in found if run_id.startswith(incomplete)]
    ends = [(short_id(run_id), run_id, said) for run_id, said in found]
    return whole or [(end, f"{said} {run_id}") for end, run_id, said in ends if end.startswith(incomplete)]


def finished_run_ids(incomplete: str) -> list[Value]:
    """Run ids of finished runs."""
    return [value for value in run_ids(incomplete) if "done" in value[1].split()]


def study_ids(incomplete: str) -> list[Value]:
    """Ids of studies; where none begins like this, ends that do."""
    from cwa_engine.base.places import state_folder
    from cwa_engine.records.run_id import short_id

    try:
        found = sorted(_names_in(str(state_folder() / "studies")), reverse=True)
    except CwaError:
        return []
    ids = [name for name in found if not name.startswith(".")]
    whole: list[Value] = [name for name in ids if name.startswith(incomplete)]
    return whole or [(short_id(name), name) for name in ids if short_id(name).startswith(incomplete)]


def reported_ids(incomplete: str) -> list[Value]:
    """Finished runs, and studies: what a page can be of."""
    return finished_run_ids(incomplete) + study_ids(incomplete)


def study_questions(incomplete: str) -> list[Value]:
    """What studies ask."""
    from cwa_engine.studies.registry import STUDY_QUESTIONS

    return _beginning([(name, question.asks) for name, question in STUDY_QUESTIONS.items()], incomplete)


def grid_fields(incomplete: str) -> list[Value]:
    """`dtype=`: options that may be a dimension of a grid."""
    from cwa_engine.options import option_fields
    from cwa_engine.spec import RunSpec

    entries = option_fields(RunSpec).values()
    return _beginning([(f"{entry.field}=", entry.option.help) for entry in entries], incomplete)


def claims(incomplete: str) -> list[Value]:
    """Ids of published claims."""
    from cwa_engine.claims.table import published_claims

    return _beginning([(claim.id, claim.title) for claim in published_claims()], incomplete)


def hosts(incomplete: str) -> list[Value]:
    """Daemons on other machines."""
    from cwa_daemon.client import Settings, keys

    try:
        known = keys.hosts(Settings())
    except CwaError:  # the command says what is wrong with the file; a shell that completes has no place for it
        return []
    return _beginning([(name, host.address) for name, host in known.items()], incomplete)


def metrics(incomplete: str) -> list[Value]:
    """Metrics by which runs rank."""
    from cwa_engine.methods.metrics import METRICS

    return _beginning([(name, metric.formula) for name, metric in METRICS.items()], incomplete)


def weight_columns(incomplete: str) -> list[Value]:
    """Columns of a ranking."""
    from cwa_tui.tables.ranking import COLUMNS

    return _of(COLUMNS, several=False)(incomplete)


def topics(incomplete: str) -> list[Value]:
    """What the guide can be asked."""
    from cwa_engine.guide.topics import topics

    return _beginning([(topic.name, topic.title) for topic in topics()], incomplete)


def imported(incomplete: str) -> list[Value]:
    """Names that were given to local models."""
    return _beginning([(name, "imported") for name in _imported()], incomplete)


def states(incomplete: str) -> list[Value]:
    """States of jobs."""
    from cwa_tui.text.format import STATE_SIGNS

    return _of(tuple(STATE_SIGNS), several=True)(incomplete)


def one_of(*values: str) -> Completion:
    """One of a few words."""
    return _of(values, several=False)


def _of(values: Iterable[str], several: bool) -> Completion:
    """The values; of an option that takes several also behind a comma."""

    def complete(incomplete: str) -> list[Value]:
        before, comma, last = incomplete.rpartition(",") if several else ("", "", incomplete)
        return [f"{before}{comma}{value}" for value in values if value.startswith(last)]

    return complete


def _beginning(found: Iterable[tuple[str, str]], incomplete: str) -> list[Value]:
    return [(value, said) for value, said in found if value.startswith(incomplete)]


def _on_disk() -> list[str]:
    """Names of the models in the Hub cache. Sizes are not asked for: that takes a look at every file."""
    from cwa_engine.hub.sources import HubAccess

    try:
        cache = HubAccess.from_environment().cache
    except CwaError:
        return []
    return [
        name.removeprefix("models--").replace("--", "/")
        for name in _names_in(str(cache))
        if name.startswith("models--")
    ]


def _imported() -> list[str]:
    from cwa_engine.hub.imported import imported_models

    try:
        return list(imported_models())
    except CwaError:
        return []


def _run_folders() -> list[str]:
    from cwa_engine.base.places import runs_folder

    if os.environ.get("CWTOOL_HOST"):
        return []
    try:
        return [name for name in _names_in(str(runs_folder())) if not name.startswith(".")]
    except CwaError:
        return []


def _names_in(folder: str) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208  # pathlib makes an object for each
    except OSError:
        return []
