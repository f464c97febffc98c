"""Whether the Hub has a model, asked of a stand-in for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from cwa_engine.hub.asking import ask_hub
from cwa_engine.hub.sources import HubAccess
from tests.stand_in_hub import stand_in_hub


def access(endpoint: str, token: str = "") -> HubAccess:
    return HubAccess(token, "/no/cache", False, endpoint, "", False)


@pytest.mark.parametrize(
    ("repo", "has_it"), [("lab/present", True), ("lab/absent", False), ("lab/gated", False), ("lab/overloaded", None)]
)
def test_the_hub_says_whether_it_has_a_model(tmp_path: Path, repo: str, has_it: bool | None) -> None:
    served = tmp_path / "served"
    served.mkdir()
    with stand_in_hub(tmp_path, served) as env:
        answer = ask_hub(repo, None, access(env["HF_ENDPOINT"]))
    assert answer.has_it is has_it
    assert bool(answer.reason) == (has_it is None)


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:1", "no address"])
def test_a_hub_that_cannot_be_asked_is_no_answer(endpoint: str) -> None:
    answer = ask_hub("lab/present", "v1", access(endpoint))
    assert answer.has_it is None
    assert endpoint in answer.reason
