"""The same prompt by the intact and by the damaged model, as plain frozen rows."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PromptToken:
    """A token of the intact model's text, given to both models.

    `kl` is the KL divergence, in nats, of the damaged model's prediction of this token from the intact one's, given all tokens
    before; None for the first token, which nobody predicts.
    """

    token: str
    token_id: int
    in_prompt: bool
    kl: float | None
    intact: float | None  # probability that the intact model gives this token
    damaged: float | None
    intact_top: str  # its likeliest token
    damaged_top: str

    @property
    def top1_changed(self) -> bool:
        return self.intact_top != self.damaged_top


@dataclass(frozen=True, slots=True)
class PromptAnswer:
    """What both models make of a prompt."""

    model: str
    weights: int  # that are changed
    perturbation: str
    temperature: float  # 0 is greedy
    seed: int
    prompt: str
    intact: str  # what the intact model goes on with
    damaged: str
    tokens: tuple[PromptToken, ...]  # of prompt and of the intact model's continuation
    damaged_tokens: tuple[str, ...]  # of the damaged model's own continuation
    first_difference: int | None  # place of the first generated token that differs; None where none does
    collapsed_at: str | None
