"""PromptSpec: the options of `cwtool prompt`, and which kind of job takes which spec."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, FiniteFloat

from cwa_engine.options import PROMPT, Option
from cwa_engine.spec import RunSpec

KIND = "prompt"  # of a job


class PromptSpec(RunSpec):
    """A prompt for the intact and the damaged model. Weights and perturbation are those of a run."""

    prompt: str = Field(max_length=100_000)
    new_tokens: Annotated[int, Option("How many tokens to generate.", commands=(PROMPT,), most=4096)] = 40
    temperature: Annotated[FiniteFloat, Option("0 is greedy; more samples, with --seed.", commands=(PROMPT,))] = Field(
        default=0.0, ge=0
    )


def spec_of_kind(kind: str, fields: Mapping[str, Any]) -> RunSpec:
    """The spec of a job. Raises pydantic's ValidationError."""
    return (PromptSpec if kind == KIND else RunSpec).model_validate(fields)
