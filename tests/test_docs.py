"""What is written about the project is true."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_tables_in_docs_are_those_of_the_registries(tmp_path: Path) -> None:
    copy = tmp_path / "generate.py"
    copy.write_text((ROOT / "docs/generate.py").read_text())
    subprocess.run([sys.executable, copy], check=True, cwd=ROOT)
    for page in ("metrics.md", "options.md"):
        assert (tmp_path / page).read_text() == (ROOT / "docs" / page).read_text(), "run `make docs`"


def test_every_command_that_the_readme_names_exists() -> None:
    help_text = {}
    for group in ("", "jobs", "results", "daemon"):
        asked = [Path(sys.executable).with_name("cwtool"), *group.split(), "--help"]
        help_text[group] = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
    named = set(re.findall(r"^cwtool ([a-z]+)(?: ([a-z]+)\b)?", (ROOT / "README.md").read_text(), re.MULTILINE))
    assert named
    for command, second in named:
        assert f" {command} " in help_text[""]
        if command in help_text and second:
            assert f" {second} " in help_text[command]
