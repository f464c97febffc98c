"""The layers of the house: who may import whom, and what nobody waits for."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ALLOWED_IN_CWTOOL = {"cwa_daemon.client", "cwa_daemon.protocol"}


def test_the_import_contracts_hold() -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports")], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


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
