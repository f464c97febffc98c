"""What the command line and the control process need of the engine costs no torch, and what is imported nothing in vain."""

from __future__ import annotations

import subprocess
import sys

import pytest

TORCH_FREE = [
    "cwa_engine.base.errors",
    "cwa_engine.spec",
    "cwa_engine.rows",
    "cwa_engine.result",
    "cwa_engine.questions.registry",
    "cwa_engine.base.events",
    "cwa_engine.guide.catalog",
    "cwa_engine.base.statistics",
    "cwa_engine.base.registry",
    "cwa_engine.records.export",
    "cwa_engine.hub.sources",
    "cwa_engine.models.anatomy",
    "cwa_engine.data.corpus",
    "cwa_engine.data.tokens",
    "cwa_engine.methods.metrics",
    "cwa_engine.methods.perturbations",
    "cwa_engine.methods.controls",
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


LOOKS = """
import gc, sys
import cwa_engine as cwa
[gc.disable, gc.enable][sys.argv[1] == "True"]()
looks = []
gc.callbacks.append(lambda phase, told: looks.append(phase))
cwa.RunSpec
assert looks.count("start") <= 1, "garbage is looked for among what is being imported"  # once, when all is there
assert str(gc.isenabled()) == sys.argv[1]
try:
    cwa.nothing_of_this_name
except AttributeError:
    assert str(gc.isenabled()) == sys.argv[1]
"""


@pytest.mark.parametrize("collects", [True, False])
def test_importing_looks_for_no_garbage_and_leaves_the_collector_as_the_program_had_it(collects: bool) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOOKS, str(collects)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
