"""What tests of the interface share."""

from __future__ import annotations

import pytest

from tests.tui.looks import SIZES


@pytest.fixture
def size(request: pytest.FixtureRequest) -> tuple[int, int]:
    """Cells of the terminal, for a picture whose `app` is in one of LOOKS."""
    return SIZES[request.node.callspec.params["app"][0]]
