"""Every command line of the model guide works as it stands."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.conftest import CWTOOL, CommandLine
from tests.models import save_tiny

GUIDE = Path(__file__).with_name("guide_commands.txt")
LINES = [line for line in GUIDE.read_text().splitlines() if line and not line.startswith("#")]


def test_the_guide_has_25_lines() -> None:
    assert len(LINES) == 25


@pytest.mark.parametrize("line", LINES)
def test_a_line_of_the_guide_works_as_it_stands(cwtool: CommandLine, line: str) -> None:
    (cwtool.cwd / "code_samples.txt").write_text(
        "def add(a, b):\n    return a + b\n\nfor i in range(3):\n    print(i)\n"
    )
    save_tiny("llama", cwtool.cwd / "your_model")
    typed = line.replace("/path/to/your/model", str(cwtool.cwd / "your_model"))  # a root folder is not ours to make
    env = {**cwtool.env, "PATH": f"{Path(CWTOOL).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        typed, shell=True, cwd=cwtool.cwd, env=env, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "files:" in done.stdout
