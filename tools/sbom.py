"""Write dist/cwtool-VERSION.cdx.json: what the wheel needs at run time, as a bill of materials of CycloneDX 1.6.

    python tools/sbom.py dist

Of every package that cwtool needs without extras, directly or not: name, version, licence, and what it needs in turn, as
they are installed here. The same environment gives the same bytes.
"""

from __future__ import annotations

import json
import sys
import uuid
from collections.abc import Iterator
from importlib.metadata import Distribution, distribution
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = "cwtool"


def needs(package: Distribution, extras: frozenset[str]) -> Iterator[tuple[str, frozenset[str]]]:
    """(name, extras) of what a package needs here, with these extras of its own."""
    for requirement in map(Requirement, package.requires or ()):
        wanted = [{"extra": extra} for extra in ("", *sorted(extras))]
        if requirement.marker is None or any(requirement.marker.evaluate(given) for given in wanted):
            yield canonicalize_name(requirement.name), frozenset(requirement.extras)


def closure() -> dict[str, set[str]]:
    """Name of every package that is needed -> names of what it needs."""
    found: dict[str, set[str]] = {}
    waiting = [(ROOT, frozenset[str]())]
    seen = set(waiting)
    while waiting:
        name, extras = waiting.pop()
        needed = list(needs(distribution(name), extras))
        found.setdefault(name, set()).update(other for other, _ in needed)
        waiting += [entry for entry in needed if entry not in seen]
        seen.update(needed)
    return found


def component(name: str) -> dict[str, Any]:
    metadata = distribution(name).metadata
    version = metadata["Version"]
    purl = f"pkg:pypi/{name}@{version.replace('+', '%2B')}"
    entry: dict[str, Any] = {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}
    if expression := metadata["License-Expression"]:
        entry["licenses"] = [{"expression": expression}]
    elif licence := metadata["License"]:
        entry["licenses"] = [{"license": {"name": licence.splitlines()[0]}}]
    return entry


def bill() -> dict[str, Any]:
    found = closure()
    components = {name: component(name) for name in sorted(found)}
    root = components.pop(ROOT) | {"type": "application"}
    references = {name: entry["bom-ref"] for name, entry in {ROOT: root, **components}.items()}
    dependencies = [{"ref": references[n], "dependsOn": sorted(references[o] for o in found[n])} for n in sorted(found)]
    content = {
        "metadata": {"component": root},
        "components": list(components.values()),
        "dependencies": dependencies,
    }
    serial = uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(content))
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{serial}",
        "version": 1,
        **content,
    }


def main(folder: Path) -> None:
    target = folder / f"{ROOT}-{distribution(ROOT).version}.cdx.json"
    target.write_text(json.dumps(bill(), indent=2) + "\n")
    print(target)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
