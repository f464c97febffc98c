"""What runs on GitHub and at each commit is what a contributor runs, and may do no more than it needs."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

import cwa_engine
from tests.test_docs import pins
from tests.test_snippets import TARGETS, own_commands

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted(ROOT.glob(".github/workflows/*.yml"))
FORMS = sorted(ROOT.glob(".github/ISSUE_TEMPLATE/[0-9]*.yml"))


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def steps(path: Path) -> list[dict[str, Any]]:
    return [step for job in read(path)["jobs"].values() for step in job["steps"]]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_calls_make_targets_that_exist_and_actions_by_their_commit(path: Path) -> None:
    for step in steps(path):
        if "uses" in step:
            assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", step["uses"]), step
        for program, *words in own_commands(step.get("run", "")):
            assert program != "make" or set(words) <= TARGETS


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_may_read_the_repository_and_only_publishing_gets_an_identity(path: Path) -> None:
    assert read(path)["permissions"] == {"contents": "read"}
    granted = {name: job["permissions"] for name, job in read(path)["jobs"].items() if "permissions" in job}
    assert granted == ({"publish": {"id-token": "write"}} if path.name == "release.yml" else {})
    assert "secrets." not in path.read_text()


def test_the_hooks_of_a_commit_are_programs_that_make_install_pins() -> None:
    hooks = [hook for repo in read(ROOT / ".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]]
    programs = {hook["entry"].split()[0] for hook in hooks}
    assert programs == {f".venv/bin/{name}" for name in ("ruff", "codespell", "mypy")}
    assert {Path(program).name for program in programs} <= pins("constraints.txt").keys()
    recipe = (ROOT / "Makefile").read_text()
    for hook in hooks:
        linted = hook["entry"].replace(".venv/bin", "$(BIN)").removesuffix(" --force-exclude")
        assert f"\t{linted}" in recipe, "the same check is not in `make lint`"


def test_every_python_that_the_package_names_is_tested() -> None:
    classifiers = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["classifiers"]
    named = [
        found[1]
        for entry in classifiers
        if (found := re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", entry))
    ]
    assert read(ROOT / ".github/workflows/tests.yml")["jobs"]["tests"]["strategy"]["matrix"]["python"] == named


def test_a_bug_report_asks_for_a_wrong_number_first() -> None:
    first = [read(path)["body"][0] for path in FORMS]
    assert first[0]["attributes"]["options"][0].startswith("A number is wrong")
    assert first[0]["validations"] == {"required": True}


def test_a_citation_names_the_version_that_is_here() -> None:
    citation = read(ROOT / "CITATION.cff")
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == cwa_engine.__version__
    assert citation["authors"] == [{"name": "The cwtool developers"}]
