"""The device of these tests: the first NVIDIA one, or what CWTOOL_TEST_DEVICE says."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.engine.conftest import write_texts


@pytest.fixture
def device() -> str:
    import torch

    name = os.environ.get("CWTOOL_TEST_DEVICE", "cuda:0")
    if name.startswith("cuda") and not torch.cuda.is_available():
        pytest.skip("this machine has no NVIDIA device that torch can use; CWTOOL_TEST_DEVICE names another")
    return name


@pytest.fixture
def data_file(tmp_path: Path) -> Path:
    return write_texts(tmp_path)
