"""What the command line and the control process need of the engine costs no torch."""

from __future__ import annotations

import subprocess
import sys

TORCH_FREE = [
    "cwa_engine.errors",
    "cwa_engine.spec",
    "cwa_engine.result",
    "cwa_engine.events",
    "cwa_engine.catalog",
    "cwa_engine.statistics",
    "cwa_engine.registry",
    "cwa_engine.reporting.export",
    "cwa_engine.models.sources",
    "cwa_engine.models.anatomy",
    "cwa_engine.data.corpus",
    "cwa_engine.data.tokens",
    "cwa_engine.sensitivity.metrics",
    "cwa_engine.perturbation.kinds",
    "cwa_engine.perturbation.controls",
]

PROGRAM = """
import importlib, sys
for module in sys.argv[1:]:
    importlib.import_module(module)
    heavy = {"torch", "transformers"} & set(sys.modules)
    assert not heavy, f"{module} imports {heavy}"
"""


def test_what_does_not_compute_imports_neither_torch_nor_transformers() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *TORCH_FREE], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
