"""Every causal architecture of transformers that passed when docs/architectures.md was written still passes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.architectures import analyse_tiny, causal_architectures, listed

PAGE = Path(__file__).parents[2] / "docs/architectures.md"
PASSES, FAILS = listed(PAGE.read_text())


def test_the_page_lists_every_architecture_of_this_version_of_transformers_once() -> None:
    assert sorted([*PASSES, *FAILS]) == sorted(causal_architectures())
    assert len(PASSES) >= 100


@pytest.mark.parametrize("model_type", PASSES)
def test_weights_are_scored_selected_zeroed_and_put_back(model_type: str) -> None:
    analyse_tiny(model_type)


@pytest.mark.parametrize("model_type", FAILS)
def test_what_the_page_says_does_not_work_does_not(model_type: str) -> None:
    with pytest.raises(Exception):  # noqa: B017  whatever its config, its model or we raise
        analyse_tiny(model_type)
