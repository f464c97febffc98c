"""Claims are read: those of the guide from its table, a user's from a file. torch-free."""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cwa_engine import guide
from cwa_engine.base.errors import InvalidInput, NotFound, did_you_mean
from cwa_engine.base.files import near_files, user_path
from cwa_engine.claims.checking import check_claim
from cwa_engine.claims.claim import Claim, Expectation, Step, WeightsOf
from cwa_engine.spec import RunSpec

TABLE = "claims.toml"
MOST_BYTES = 2_000_000  # of a file of claims
_OF_THE_CLAIM = ("model", "revision", "output")  # fields of RunSpec that `run` does not have


@functools.cache
def published_claims() -> tuple[Claim, ...]:
    """The claims of the guide, in their order."""
    return tuple(_claims((files(guide) / TABLE).read_text("utf-8"), TABLE, None))


def published_claim(claim_id: str) -> Claim:
    """Raises NotFound, with near ids, where there is none."""
    found = {claim.id: claim for claim in published_claims()}
    if claim_id not in found:
        hint = did_you_mean(claim_id, found) or "`cwtool reproduce list` lists them"
        raise NotFound(f"there is no claim '{claim_id}'", hint=hint)
    return found[claim_id]


def claims_of_file(name: str) -> tuple[Claim, ...]:
    """The claims that a user's file makes. Paths in it begin at its folder. Raises InvalidInput, which names the place."""
    path = user_path(name, "the file of claims")
    try:
        if not path.is_file():
            raise InvalidInput(f"{name} is no file", hint=near_files(path))
        if path.stat().st_size > MOST_BYTES:
            raise InvalidInput(f"{name} is larger than {MOST_BYTES:,} bytes", hint="that is no file of claims")
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise InvalidInput(f"{name} cannot be read: {error.strerror}", hint="check the file") from error
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{name} is not UTF-8", hint="a file of claims is TOML, see docs/claims.md") from error
    found = tuple(_claims(text, name, path.parent))
    if not found:
        raise InvalidInput(f"{name} makes no claim", hint="begin one with [[claim]], see docs/claims.md")
    return found


def _claims(text: str, name: str, folder: Path | None) -> Iterator[Claim]:
    try:
        plain = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise InvalidInput(f"{name} is no TOML: {error}", hint="docs/claims.md shows the format") from error
    _known(plain, ("claim",), name)
    entries = plain.get("claim", [])
    if not isinstance(entries, list):
        raise InvalidInput(f"{name}: a claim begins with [[claim]], in double brackets", hint="see docs/claims.md")
    seen: set[str] = set()
    for number, entry in enumerate(entries, start=1):
        where = f"{name}, claim {number}"
        claim = _claim(entry, where, folder)
        if claim.id in seen:
            raise InvalidInput(f"{where}: the id {claim.id} is taken", hint="give each claim its own id")
        seen.add(claim.id)
        check_claim(claim)
        yield claim


def _claim(entry: Any, where: str, folder: Path | None) -> Claim:
    if not isinstance(entry, dict):
        raise InvalidInput(f"{where} is no table", hint="begin a claim with [[claim]]")
    _known(entry, Claim.model_fields, where)
    for kind, parts in ((Step, entry.get("step", [])), (Expectation, entry.get("expect", []))):
        for number, part in enumerate(parts if isinstance(parts, list) else [], start=1):
            place = f"{where}, {kind.__name__.lower()} {number}"
            if isinstance(part, dict):
                _known(part, kind.model_fields, place)
                _known(_map(part, "run"), _spec_fields(), f"{place}, run")
                _known(_map(part, "weights_of"), WeightsOf.model_fields, f"{place}, weights_of")
    _known(_map(entry, "run"), _spec_fields(), f"{where}, run")
    return _parsed(Claim, _with_paths(entry, folder) if folder else entry, where)


def _spec_fields() -> list[str]:
    return [name for name in RunSpec.model_fields if name not in _OF_THE_CLAIM]


def _map(part: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = part.get(name, {})
    return found if isinstance(found, dict) else {}


def _known(entry: Mapping[str, Any], known: Any, where: str) -> None:
    """Raise InvalidInput for a key that nobody reads."""
    for name in entry:
        if name not in known:
            hint = did_you_mean(name, known) or f"known are: {', '.join(known)}"
            raise InvalidInput(f"{where}: nobody reads the key `{name}`", hint=hint)


def _parsed(model: type[Claim], entry: Mapping[str, Any], where: str) -> Claim:
    try:
        return model.model_validate(entry)
    except InvalidInput as error:  # what a target is no target for
        raise InvalidInput(f"{where}: {error.message}", hint=error.hint) from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise InvalidInput(f"{where}: {place}: {first['msg']}", hint="docs/claims.md shows the format") from error


def _with_paths(entry: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The claim with its relative paths made absolute."""
    changed = dict(entry)
    model = entry.get("model")
    if isinstance(model, str) and model.startswith("."):
        changed["model"] = str((folder / model).resolve())
    steps = changed.get("step")
    parts = [changed, *(part for part in (steps if isinstance(steps, list) else ()) if isinstance(part, dict))]
    for part in parts:
        given = _map(part, "run").get("data_file")
        if isinstance(given, str) and not given.startswith(("/", "~")):
            part["run"] = {**part["run"], "data_file": str((folder / given).resolve())}
    return changed
