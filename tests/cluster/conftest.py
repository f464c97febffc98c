"""A Ray of this machine with room for two actors, which the tests of this folder share."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cwa_daemon.cluster.runner import RayRunner
from cwa_engine import RunSpec
from tests import isolation
from tests.engine.conftest import TEXTS
from tests.models import save_tiny

LONG = 3000  # draws of controls, for a run that others can meet in its middle


@pytest.fixture(scope="session")
def ray() -> Iterator[Any]:
    """Ray, joined by this process."""
    module = pytest.importorskip("ray")
    module.init(
        address="local",
        num_cpus=3,  # two for the runner of a module, and some for others
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=200 * 2**20,
        _system_config={"worker_niceness": 0},  # else it starves beside other tests
        _temp_dir=str(isolation.FOLDER / "ray"),
    )
    yield module
    module.shutdown()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The state folder of this module's runs."""
    folder = tmp_path_factory.mktemp("state")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CWTOOL_HOME", str(folder))
        yield folder


@pytest.fixture(scope="module")
def runner(ray: Any, home: Path) -> Iterator[RayRunner]:
    with RayRunner(slots=2, cpus=1) as runner:
        yield runner


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("models")
    return save_tiny("gpt2", folder / "one"), save_tiny("llama", folder / "other")


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "texts.txt"
    path.write_text("\n\n".join(TEXTS) + "\n")
    return path


@pytest.fixture
def spec(models: tuple[Path, Path], texts: Path) -> Callable[..., RunSpec]:
    def made(**options: Any) -> RunSpec:
        asked = {"topk": (3,), "control_seeds": 2, "controls": ("random",), "data_file": texts, "individually": True}
        return RunSpec(**{"model": str(models[0]), **asked, **options})

    return made
