"""The layers of the house: who may import whom, and what nobody waits for."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ALLOWED_IN_CWTOOL = {"cwa_daemon.client", "cwa_daemon.protocol"}


def lint_imports(tree: Path) -> subprocess.CompletedProcess[str]:
    """What `lint-imports` says of a source tree."""
    return subprocess.run(
        [Path(sys.executable).with_name("lint-imports")],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree), "COLUMNS": "300"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def copy_of_the_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tree = tmp_path_factory.mktemp("tree")
    for folder in ("cwa_engine", "cwa_daemon", "cwa_tui", "tools"):
        shutil.copytree(ROOT / folder, tree / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tree)
    return tree


def test_the_import_contracts_hold() -> None:
    done = lint_imports(ROOT)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("module", "added", "said"),
    [
        ("cwa_tui/columns.py", "from cwa_daemon.base.settings import Settings", "cwa_tui.columns may not import"),
        ("cwa_tui/session.py", "import cwa_daemon.client.connection", "cwa_tui.session may not import"),
        ("cwa_daemon/control/store.py", "import torch", "cwa_daemon.control.store may not import torch"),
        ("cwa_daemon/base/settings.py", "import cwa_daemon.protocol", "cwa_daemon.base.settings may not import"),
        ("cwa_engine/rows.py", "import cwa_daemon.protocol", "cwa_engine.rows may not import cwa_daemon.protocol"),
        ("cwa_engine/models/chain.py", "import cwa_engine.evaluation", "cwa_engine.models.chain may not import"),
        (
            "cwa_daemon/control/service.py",
            "import cwa_daemon.control.handlers",
            "these know each other: cwa_daemon.",
        ),
        ("cwa_daemon/unplaced.py", "", "cwa_daemon.unplaced is in no room"),
    ],
)
def test_an_import_that_is_not_allowed_breaks_a_contract(
    copy_of_the_tree: Path, module: str, added: str, said: str
) -> None:
    file = copy_of_the_tree / module
    before = file.read_text() if file.exists() else None
    file.write_text(f"{before or ''}\n{added}\n")
    try:
        done = lint_imports(copy_of_the_tree)
    finally:
        file.unlink() if before is None else file.write_text(before)
    assert done.returncode != 0
    assert said in done.stdout


def test_a_row_that_names_a_room_above_itself_breaks_its_contract(copy_of_the_tree: Path) -> None:
    settings = copy_of_the_tree / "pyproject.toml"
    before = settings.read_text()
    settings.write_text(before.replace('"rows:"', '"rows: records"'))
    try:
        said = lint_imports(copy_of_the_tree).stdout
    finally:
        settings.write_text(before)
    assert "the row of rows names records, which does not stand above it" in said


def test_the_command_line_comes_in_through_the_client() -> None:
    imported = set()
    for node in ast.walk(ast.parse((ROOT / "cwtool.py").read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            imported.add(node.module)
        elif isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
    assert {name for name in imported if name.startswith("cwa_daemon")} <= ALLOWED_IN_CWTOOL
    assert not imported & {"torch", "transformers"}


@pytest.mark.parametrize(
    "module",
    [
        "cwtool",
        "cwa_daemon.client.start_stop",
        "cwa_daemon.control.server",
        "cwa_daemon.protocol",
        "cwa_tui.app",
        "cwa_daemon.worker.main",
    ],
)
def test_nothing_a_user_waits_for_imports_torch(module: str) -> None:
    code = f"import sys, {module}; assert not {{'torch', 'transformers'}} & set(sys.modules), 'torch is imported'"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
