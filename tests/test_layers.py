"""The layers of the house: who may import whom, and what nobody waits for."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import cwtool

ROOT = Path(__file__).parents[1]


def test_the_import_contracts_hold() -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports")], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_the_command_line_assembles_commands_and_nothing_else() -> None:
    tree = ast.parse((ROOT / "cwtool.py").read_text())
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported == {"__future__", "typing", "cwa_tui.cli.connection", "cwa_tui.cli.lazy", "cwa_tui.cli.process"}


def test_help_imports_no_command_and_nothing_that_takes_long() -> None:
    program = "import sys, cwtool; sys.argv = ['cwtool', '--help']\ntry: cwtool.main()\nfinally: print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    imported = set(done.stdout.splitlines()[-1].split())
    assert "cwtool" in imported
    assert not imported & {"torch", "transformers", "numpy", "pydantic", "zmq", "cwa_daemon", "cwa_engine.spec"}
    assert not imported & {entry.module for entry in cwtool.COMMANDS}


def test_a_list_says_the_name_of_each_command_and_its_module_has_the_command() -> None:
    for entry in cwtool.COMMANDS:
        assert (entry.load().name, bool(entry.load().help)) == (entry.name, True)


@pytest.mark.parametrize(
    "module",
    [
        "cwtool",
        "cwa_daemon.client",
        "cwa_daemon.control.server",
        "cwa_daemon.protocol",
        "cwa_tui.app",
        "cwa_daemon.worker.main",
    ],
)
def test_nothing_a_user_waits_for_imports_torch(module: str) -> None:
    code = f"import sys, {module}; assert not {{'torch', 'transformers'}} & set(sys.modules), 'torch is imported'"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
