"""What the intact and the damaged model make of a prompt, token by token."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cwa_engine.base.errors import InvalidInput
from cwa_engine.base.events import Emit
from cwa_engine.prompt_spec import PromptSpec

if TYPE_CHECKING:
    from cwa_engine.models.loading import LoadedModel
    from cwa_engine.prompt_rows import PromptAnswer


def answer_prompt(loaded: LoadedModel, spec: PromptSpec, emit: Emit) -> PromptAnswer:
    """Generate by both models and compare their predictions. The model is bit for bit the same afterwards."""
    raise InvalidInput("prompts cannot be answered yet")
