"""What `pip install cwtool` gives: a wheel with all its files, a command, and types that a user's own mypy sees."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

import cwa_engine
from tests.models import save_tiny

ROOT = Path(__file__).parents[1]
PACKAGES = ("cwa_daemon", "cwa_engine", "cwa_tui")

# What a user may write. Its last two lines are wrong: where types are missing, mypy says that their `# type: ignore` is unused.
USERS_SCRIPT = """
import sys

import cwa_engine as cwa
from cwa_daemon.client import Client, DaemonRunner

TEXTS = ["The harbour was quiet.", "Nobody had told the clock.", "Count: 1, 2, 3, 4, 5.", "The rain stopped at noon."]

def first_rank(model: cwa.LoadedModel) -> str:
    report: cwa.RunReport = cwa.analyze(model, topk=[3], control_seeds=2, texts=TEXTS)
    return report.topk("grad_x_weight")[0].target

def by_the_daemon() -> cwa.RunReport:
    with Client.connect() as client:
        return DaemonRunner(client).submit(cwa.RunSpec(model="gpt2", topk=(10,))).report()

def wrong() -> None:
    number: int = cwa.load_model("gpt2")  # type: ignore[assignment]
    cwa.RunSpec(model=3)  # type: ignore[arg-type]

if __name__ == "__main__":
    print(first_rank(cwa.load_model(sys.argv[1])))
    try:
        cwa.analyze(sys.argv[1], top_k=[3])
    except cwa.InvalidInput as error:
        print(error.hint)
    print([name for name in cwa.__all__ if getattr(cwa, name, None) is None])
"""
# What cwtool stands on is not looked into, which takes a minute for torch alone.
USERS_MYPY = """
[mypy]
strict = True
follow_imports = silent
[mypy-torch.*,transformers.*,numpy.*,pydantic_core.*,huggingface_hub.*,tokenizers.*,zmq.*,rich.*]
follow_imports = skip
ignore_missing_imports = True
"""


def ran(command: Sequence[str | Path], cwd: Path) -> str:
    """What a command prints. It must succeed, and does not hear of this folder by PYTHONPATH."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this tree, built from a copy, for a build leaves files."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "cwtool.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation")
    ran([*pip, "--wheel-dir", folder, source], folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path) -> Path:
    """Python of a fresh environment that holds the wheel; what it needs is looked up in the environment of the tests."""
    folder = wheel.parent / "environment"
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    packages = Path(ran([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], folder).strip())
    (packages / "of_the_tests.pth").write_text(sysconfig.get_path("purelib"))
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index")
    ran([*pip, "--ignore-installed", wheel], folder)
    return python


def test_the_wheel_holds_every_file_of_the_packages_and_no_other_package(wheel: Path) -> None:
    meant = {
        str(path.relative_to(ROOT))
        for name in PACKAGES
        for path in (ROOT / name).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert held == meant | {"cwtool.py"}


def test_the_installed_command_and_package_are_those_of_the_wheel(installed: Path, tmp_path: Path) -> None:
    where = ran([installed, "-c", "import cwa_engine; print(cwa_engine.__file__)"], tmp_path)
    assert where.startswith(str(installed.parents[1]))
    said = ran([installed, installed.with_name("cwtool"), "version"], tmp_path)
    assert said.startswith(f"cwtool {cwa_engine.__version__}")


def test_a_users_script_is_type_checked_and_runs(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(USERS_SCRIPT)
    (tmp_path / "mypy.ini").write_text(USERS_MYPY)
    ran([sys.executable, "-m", "mypy", "--python-executable", installed, "script.py"], tmp_path)
    printed = ran([installed, "script.py", save_tiny("llama", tmp_path / "model")], tmp_path).splitlines()
    assert ".weight[" in printed[0]
    assert printed[1:] == ["did you mean 'topk'?", "[]"]
