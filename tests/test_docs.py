"""What is written about the project is true."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.metadata import distribution, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]


def test_the_tables_in_docs_are_those_of_the_registries(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "docs.generate", tmp_path], check=True, cwd=ROOT)
    made = [path.relative_to(tmp_path) for path in tmp_path.rglob("*.md")]
    assert len(made) > 5
    for page in made:
        assert (tmp_path / page).read_text() == (ROOT / "docs" / page).read_text(), "run `make docs`"


def pins(name: str) -> dict[str, tuple[str, int]]:
    """Package -> (its exact version, how many hashes it has) of a file of constraints or requirements."""
    entries = re.findall(r"^([\w.-]+)==(\S+)(.*(?:\n +--hash=.*)*)", (ROOT / name).read_text(), re.MULTILINE)
    return {canonicalize_name(package): (version, rest.count("--hash=sha256:")) for package, version, rest in entries}


def test_what_make_install_takes_has_a_hash_and_the_version_that_was_meant() -> None:
    for meant, taken in (
        ("constraints.txt", ("requirements.txt", "requirements-torch.txt")),
        ("constraints-cuda.txt", ("requirements-cuda.txt",)),
    ):
        found = {package: entry for name in taken for package, entry in pins(name).items()}
        versions = {package: version for package, (version, _) in found.items()}
        assert versions == {package: version for package, (version, _) in pins(meant).items()}, "run `make lock`"
        assert all(hashes for _, hashes in found.values())
    assert {"pip", "setuptools", "torch"} <= pins("constraints.txt").keys()


def test_nothing_that_is_needed_is_left_out_of_what_make_install_takes() -> None:
    known, waiting, seen = pins("constraints.txt") | pins("constraints-cuda.txt"), [("cwtool", "dev")], set()
    while waiting:
        name, extra = entry = waiting.pop()
        if entry in seen:
            continue
        seen.add(entry)
        assert name == "cwtool" or name in known, f"{name} is needed: add it to constraints.txt, then `make lock`"
        for requirement in map(Requirement, requires(name) or ()):
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                needed = canonicalize_name(requirement.name)
                waiting += [(needed, one) for one in ("", *requirement.extras)]
    assert len(seen) > 60


def test_the_bill_of_materials_has_all_that_cwtool_needs_and_no_tool_of_development(tmp_path: Path) -> None:
    for _ in range(2):
        subprocess.run([sys.executable, ROOT / "tools/sbom.py", tmp_path], check=True, capture_output=True)
    (path,) = tmp_path.iterdir()
    bill = json.loads(path.read_text())
    versions = {entry["name"]: entry["version"] for entry in bill["components"]}
    assert versions["torch"] == distribution("torch").version
    assert {"numpy", "pyzmq", "textual", "transformers", "sympy"} <= versions.keys()
    assert not {"pytest", "mypy", "ruff", "datasets", "cwtool"} & versions.keys()
    references = {entry["bom-ref"] for entry in bill["components"]} | {bill["metadata"]["component"]["bom-ref"]}
    assert {entry["ref"] for entry in bill["dependencies"]} == references
    assert all(set(entry["dependsOn"]) <= references for entry in bill["dependencies"])


def test_every_module_that_the_architecture_names_exists() -> None:
    named = set(re.findall(r"[`\s(]((?:\w+/)*\w+\.py)\b", (ROOT / "docs/architecture.md").read_text()))
    there = [path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py") if ".venv" not in path.parts]
    missing = [name for name in named if not any(f"/{path}".endswith(f"/{name}") for path in there)]
    assert named and not missing
