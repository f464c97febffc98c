"""PromptSpec: the options of `cwtool prompt`, and which kind of job takes which spec."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import FiniteFloat, field_validator, model_validator

from cwa_engine.base.errors import InvalidInput
from cwa_engine.options import PROMPT, Option, parsed
from cwa_engine.spec import RunSpec

KIND = "prompt"  # of a job
MOST_CHARACTERS = 100_000


class PromptSpec(RunSpec):
    """A prompt for the intact and the damaged model. Weights and perturbation are those of a run; there may be no weights."""

    prompt: str
    new_tokens: Annotated[
        int, Option("How many tokens to generate at most.", commands=(PROMPT,), least=0, most=4096)
    ] = 40
    temperature: Annotated[
        FiniteFloat,
        Option("0 is greedy; more samples, with --seed and the same draws for both models.", commands=(PROMPT,)),
    ] = 0.0

    @field_validator("prompt", mode="before")
    @classmethod
    def _readable(cls, text: Any) -> Any:
        if not isinstance(text, str):
            return text
        if len(text) > MOST_CHARACTERS:
            raise InvalidInput(
                f"the prompt has {len(text):,} characters", hint=f"a prompt has at most {MOST_CHARACTERS:,}"
            )
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidInput(
                f"the prompt is no text: character {error.start + 1:,} is a byte or half of a character that is not UTF-8",
                hint="write it in UTF-8; `iconv -t utf-8` converts a file",
            ) from error
        return text

    @field_validator("temperature")
    @classmethod
    def _not_negative(cls, temperature: float) -> float:
        if temperature < 0:
            raise InvalidInput(f"--temperature {temperature:g} is negative", hint="0 is greedy, 1 samples as predicted")
        return temperature

    @model_validator(mode="after")
    def _one_change(self) -> PromptSpec:
        if self.weights and len(self.perturbations) != 1:
            raise InvalidInput(
                f"a prompt is answered with one perturbation, not {len(self.perturbations)}",
                hint="give one --perturb, like zero",
            )
        if self.bit == "all":
            raise InvalidInput("a prompt is answered with one bit flipped", hint="give --bit a number, or leave it out")
        return self


def parse_prompt(fields: dict[str, object]) -> PromptSpec:
    """A PromptSpec from plain fields. Raises InvalidInput with one sentence instead of pydantic's ValidationError."""
    return parsed(PromptSpec, fields, hint="`cwtool prompt --help` lists the options")


def spec_of_kind(kind: str, fields: Mapping[str, Any]) -> RunSpec:
    """The spec of a job. Raises pydantic's ValidationError."""
    return (PromptSpec if kind == KIND else RunSpec).model_validate(fields)
