"""Local models with a name of their own: `models.json` in the state folder has the path of each name. torch-free."""

from __future__ import annotations

import json
import re
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from cwa_engine.base.errors import InvalidInput, NotFound, did_you_mean
from cwa_engine.base.files import write_whole
from cwa_engine.base.places import state_folder
from cwa_engine.guide.catalog import catalog_model

FILE = "models.json"
_lent: dict[str, str] = {}  # name in lower case -> path, see `lend_import`
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class ImportedModel:
    """A name, where it leads, and what was there when it was given."""

    name: str
    path: str
    architecture: str
    parameters: int
    size_bytes: int  # of the weights as they are stored
    imported: float = field(default_factory=time.time)  # seconds since the epoch


def imported_models() -> dict[str, ImportedModel]:
    """Every imported model by its name. Raises InvalidInput for a file that cannot be read."""
    file = _file()
    if file is None:
        return {}
    try:
        return {name: ImportedModel(name, **fields) for name, fields in json.loads(file.read_bytes()).items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise InvalidInput(
            f"cannot read {file}, which has the names of imported models: {error}",
            hint="mend it, or move it away and import the models again",
        ) from error


def imported_path(name: str) -> str | None:
    """The path that an imported name leads to; None for every other name. Upper and lower case are the same."""
    if not _NAME.fullmatch(name):
        return None
    if lent := _lent.get(name.lower()):
        return lent
    return next((model.path for own, model in imported_models().items() if own.lower() == name.lower()), None)


def lend_import(name: str, path: str) -> None:
    """Let a name lead to a path in this process alone: it was given to a model on the machine that asks for a run here."""
    _lent[name.lower()] = path


def check_import_name(name: str, path: str) -> None:
    """Raises InvalidInput for a name that cannot be given to this path: it means another model, or looks like a path."""
    if not _NAME.fullmatch(name) or name.lower().endswith(".gguf"):
        raise InvalidInput(
            f"'{name[:70]}' cannot be the name of a model",
            hint="--name takes letters, digits, dots, dashes and underscores, at most 64, and no .gguf at the end",
        )
    if entry := catalog_model(name):
        raise InvalidInput(f"{name} is a model of the guide, {entry.licence_page}", hint="give another --name")
    if (known := imported_path(name)) not in (None, path):
        raise InvalidInput(
            f"{name} is the name of {known} already",
            hint=f"give another --name, or `cwtool models forget {name}` first",
        )


def name_for(path: str) -> str:
    """A name made of the last part of a path."""
    stem = Path(path).name
    stem = stem[: -len(".gguf")] if stem.lower().endswith(".gguf") else stem
    return re.sub(r"[^a-z0-9._-]+", "-", stem.lower()).strip("-._")[:64]


def remember_import(model: ImportedModel) -> None:
    """Write a name down; one that leads to the same path is replaced."""
    others = {name: known for name, known in imported_models().items() if name.lower() != model.name.lower()}
    _write({**others, model.name: model})


def forget_import(name: str) -> ImportedModel:
    """Take a name away; the model's files stay. Raises NotFound for a name that was never given."""
    known = imported_models()
    found = next((own for own in known if own.lower() == name.lower()), None)
    if found is None:
        hint = did_you_mean(name, known) or "`cwtool models list --on-disk` lists the names that were given"
        raise NotFound(f"no model was imported as '{name[:70]}'", hint=hint)
    forgotten = known.pop(found)
    _write(known)
    return forgotten


def _file() -> Path | None:
    """None where there is no home folder, and so no state folder."""
    try:
        return state_folder() / FILE
    except InvalidInput:
        return None


def _write(models: dict[str, ImportedModel]) -> None:
    file = state_folder() / FILE
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    plain = {
        name: {key: value for key, value in asdict(model).items() if key != "name"} for name, model in models.items()
    }
    write_whole(file, json.dumps(plain, indent=1).encode(), mode=0o600)
