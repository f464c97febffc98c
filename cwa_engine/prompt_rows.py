"""The same prompt by the intact and by the damaged model, as plain frozen rows."""

from __future__ import annotations

from dataclasses import dataclass

# Why a text ends.
END_TOKEN = "end token"  # the model gave one
LENGTH = "length"  # as many tokens as were asked for
POSITIONS = "positions"  # the model takes no longer sequence
COLLAPSED = "collapsed"  # the prediction of the next token is NaN or infinite


@dataclass(frozen=True, slots=True)
class PromptToken:
    """A token of the intact model's text, given to both models.

    `kl` is the KL divergence KL(intact ‖ damaged) of the predictions of this token, given all tokens before, in nats at
    temperature 1. It is None for the first token, which nobody predicts, where no weights were damaged, and where the damaged
    model's prediction is not finite: then `collapsed` is true, and `damaged` and `damaged_top` are empty as well.
    """

    token: str  # on one line, with invisible characters escaped
    text: str  # what it adds to the text; empty where a character needs further tokens
    token_id: int
    in_prompt: bool
    kl: float | None = None
    intact: float | None = None  # probability that the intact model gives this token
    damaged: float | None = None
    intact_top: str = ""  # its likeliest token
    damaged_top: str = ""
    intact_top_id: int | None = None
    damaged_top_id: int | None = None
    collapsed: bool = False

    @property
    def top1_changed(self) -> bool:
        """Whether the likeliest token is another one, or there is none any more."""
        return self.collapsed or (self.damaged_top_id is not None and self.intact_top_id != self.damaged_top_id)


@dataclass(frozen=True, slots=True)
class PromptAnswer:
    """What both models make of a prompt. Without weights nothing is damaged, and `damaged` is None."""

    model: str
    revision: str | None
    dtype: str
    weights: int  # single weights that were perturbed,
    unchanged: int  # and how many of them had that value already
    perturbation: str
    temperature: float  # 0 is greedy
    seed: int
    prompt: str
    bos: str  # what stands before the prompt; empty for nothing
    intact: str  # what the intact model goes on with, without an end token
    intact_end: str
    damaged: str | None
    damaged_end: str | None
    tokens: tuple[PromptToken, ...]  # of prompt and of the intact model's continuation
    damaged_tokens: tuple[str, ...]  # texts of the tokens of the damaged model's own continuation
    first_difference: int | None  # place of the first generated token that differs, from 0; None where none does
    collapsed_at: str | None  # the first layer whose output is not finite, wherever the damaged model collapsed

    @property
    def predicted(self) -> tuple[PromptToken, ...]:
        """The tokens for which both models' predictions were compared."""
        return tuple(token for token in self.tokens if token.kl is not None or token.collapsed)

    @property
    def collapsed_tokens(self) -> int:
        return sum(token.collapsed for token in self.tokens)

    @property
    def mean_kl(self) -> float | None:
        """Nats per token; None where there is none, or the damaged model collapsed on one: a mean of the rest would lie."""
        known = [token.kl for token in self.predicted if token.kl is not None]
        return sum(known) / len(known) if known and not self.collapsed_tokens else None

    @property
    def top1_changes(self) -> int:
        return sum(token.top1_changed for token in self.predicted)
