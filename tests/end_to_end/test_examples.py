"""Examples run from top to bottom, as a reader would run them, and show what they promise."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = {
    "rank_and_damage.py": "is distinguishable from its controls: zeroing",
    "compare_metrics.py": "magnitude shares",
    "study_and_figure.py": "overturned by:",
    "own_metric.py": "squared_taylor: The critical set",
}
NOTEBOOK = EXAMPLES / "walkthrough.ipynb"


def environment(home: Path) -> dict[str, str]:
    """Of an example: the cwtool under test, folders of its own, one thread."""
    path = os.pathsep.join([str(EXAMPLES.parent), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    own = {
        "CWTOOL_HOME": str(home),
        "TMPDIR": str(home),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": path,
    }
    return {**os.environ, **own}


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_runs_and_says_what_it_found(script: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / script)],
        cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert SCRIPTS[script] in done.stdout
    if script == "study_and_figure.py":
        assert list(tmp_path.glob("cwtool-study-*/figures/*.svg"))


def test_all_scripts_are_run() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == {*SCRIPTS, "demo.py", "tiny_model.py"}


def test_the_notebook_runs_from_top_to_bottom_in_a_real_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(
        notebook, timeout=280, kernel_name="python3", resources={"metadata": {"path": str(EXAMPLES)}}
    ).execute()
    shown = [html_of(cell) for cell in notebook.cells if html_of(cell)]
    assert len(shown) == 5  # report, figure, two frames, card
    assert "Change of loss" in shown[0] and "data:image/svg+xml" in shown[1] and "rank by" in shown[4]
    last = notebook.cells[-1].outputs
    assert r"\toprule" in last[0].text and "top.safetensors" in last[-1].data["text/plain"]


def html_of(cell: Any) -> str:
    return "".join(output.get("data", {}).get("text/html", "") for output in cell.get("outputs", ()))


def test_the_notebook_is_kept_without_outputs() -> None:
    cells = [cell for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"]
    assert cells and not any(cell.outputs or cell.execution_count for cell in cells)
