"""The layers of the house: who may import whom, and what nobody waits for."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import cwtool

ROOT = Path(__file__).parents[1]


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


def test_the_command_line_assembles_commands_and_nothing_else() -> None:
    tree = ast.parse((ROOT / "cwtool.py").read_text())
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assembling = {
        "cwa_tui.cli",
        "cwa_tui.cli.connection",
        "cwa_tui.cli.lazy",
        "cwa_tui.cli.process",
        "cwa_engine.base.version",
    }
    assert imported == {"__future__", "typing", *assembling}


def test_help_imports_no_command_and_nothing_that_takes_long() -> None:
    program = "import sys, cwtool; sys.argv = ['cwtool', '--help']\ntry: cwtool.main()\nfinally: print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    imported = set(done.stdout.splitlines()[-1].split())
    assert "cwtool" in imported
    assert not imported & {"torch", "transformers", "numpy", "pydantic", "zmq", "cwa_daemon", "cwa_engine.spec"}
    assert not imported & {entry.module for entry in cwtool.COMMANDS}


def test_the_interface_starts_without_what_takes_long() -> None:
    program = "import sys, cwa_tui.app; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    imported = set(done.stdout.split())
    assert "textual" in imported
    assert not imported & {"torch", "transformers", "numpy", "altair", "vl_convert", "jinja2", "lm_eval", "duckdb"}


def test_a_list_says_the_name_of_each_command_and_its_module_has_the_command() -> None:
    for entry in cwtool.COMMANDS:
        assert (entry.load().name, bool(entry.load().help)) == (entry.name, True)


@pytest.mark.parametrize(
    ("module", "added", "said"),
    [
        (
            "cwa_tui/tables/columns.py",
            "from cwa_daemon.base.settings import Settings",
            "cwa_tui.tables.columns may not import",
        ),
        ("cwa_tui/store/session.py", "import cwa_daemon.client.connection", "cwa_tui.store.session may not import"),
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
