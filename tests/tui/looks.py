"""The sizes and looks that pictures of the interface are taken in."""

from __future__ import annotations

import pytest

from cwa_tui.app import CwtoolApp
from tests.tui.fake_client import FakeDaemon, app_on

SIZES = {"80x24": (80, 24), "160x48": (160, 48)}
LOOKS = [("80x24", "colour"), ("80x24", "no-colour"), ("80x24", "ascii"), ("160x48", "colour")]


def app_in_look(look: str, daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> CwtoolApp:
    if look == "no-colour":
        monkeypatch.setenv("NO_COLOR", "1")
    return app_on(daemon, ascii=look == "ascii")
