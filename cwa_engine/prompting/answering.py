"""What the intact and the damaged model make of a prompt, token by token."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from cwa_engine.base.errors import InvalidInput, ModelBroken, RunFailed
from cwa_engine.base.events import Emit, Generated, Note, Progress
from cwa_engine.damage.patch import patched
from cwa_engine.data.encoding import encode
from cwa_engine.data.prefix import Prefix, prefix_of
from cwa_engine.data.token_text import token_text
from cwa_engine.data.tokens import TokenSequence
from cwa_engine.evaluation.collapse import first_non_finite_layer
from cwa_engine.methods.controls import Selection
from cwa_engine.methods.perturbations import PERTURBATIONS
from cwa_engine.models.determinism import with_exact_kernels
from cwa_engine.models.end_tokens import end_tokens
from cwa_engine.models.loading import LoadedModel
from cwa_engine.models.structures import find_weights
from cwa_engine.prompt_rows import COLLAPSED, END_TOKEN, PromptAnswer, PromptToken
from cwa_engine.prompt_spec import PromptSpec
from cwa_engine.prompting.comparing import IntactNotFinite, Prediction, compared
from cwa_engine.prompting.generation import Choice, Continuation, cache_is_right, continuation
from cwa_engine.prompting.text_pieces import text_of, text_pieces
from cwa_engine.targets import parse_target

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

STAGE = "prompt"
MOST_TOKENS = 16_384  # of a prompt: what is said of each takes 250 bytes on the wire
TEXT_INTERVAL_S = 0.1  # between two events with the texts so far


@dataclass(frozen=True, slots=True)
class _Damage:
    """What the damaged model does."""

    weights: int
    unchanged: int
    continued: Continuation
    predictions: Sequence[Prediction]
    collapsed_at: str | None


@with_exact_kernels
def answer_prompt(loaded: LoadedModel, spec: PromptSpec, emit: Emit) -> PromptAnswer:
    """Generate by both models and compare their predictions. The model is bit for bit the same afterwards.

    Raises InvalidInput for weights that the model lacks and a prompt that it cannot go on with, RunFailed where the intact
    model's predictions are not finite, and whatever `emit` raises.
    """
    for note in loaded.notes:
        emit(Note(note, "warning"))
    selection = _selection(loaded, spec)
    prefix = prefix_of(loaded.tokenizer, loaded.model.config.model_type, spec.bos)
    prompt = _prompt_tokens(loaded, spec, prefix)
    cache_is_right(loaded)  # found out by the intact model
    ends, said = end_tokens(loaded.model, loaded.tokenizer), _TextSoFar(loaded, spec, emit)

    def continued() -> Continuation:
        return continuation(loaded, prompt, spec.new_tokens, Choice(spec.temperature, spec.seed), ends, said)

    intact = continued()
    if intact.end == COLLAPSED:
        raise _intact_not_finite(loaded, [*prompt, *intact.ids])
    if not selection:
        return _answer(loaded, spec, prefix, prompt, intact, None)
    said.next_model(intact.ids)
    with _damaged(loaded, spec, selection) as changed:
        damaged = continued()
        collapsed_at = _collapsed_layer(loaded, [*prompt, *damaged.ids]) if damaged.end == COLLAPSED else None
    ids = [*prompt, *intact.ids]
    try:
        predictions = compared(loaded, ids, lambda: _damaged(loaded, spec, selection))
    except IntactNotFinite:
        raise _intact_not_finite(loaded, ids) from None
    if collapsed_at is None and any(prediction.kl is None for prediction in predictions):
        with _damaged(loaded, spec, selection):
            collapsed_at = _collapsed_layer(loaded, ids)
    if changed[0] == changed[1]:
        emit(Note(f"{spec.perturbations[0]} leaves all of these weights as they are", "warning"))
    return _answer(loaded, spec, prefix, prompt, intact, _Damage(*changed, damaged, predictions, collapsed_at))


def _selection(loaded: LoadedModel, spec: PromptSpec) -> Selection:
    """Flat indices of all weights that are named, each once. Raises InvalidInput."""
    found: dict[str, list[np.ndarray[tuple[int], np.dtype[np.int64]]]] = {}
    for text in spec.weights:
        target = parse_target(text)
        found.setdefault(target.parameter, []).append(find_weights(target, loaded.anatomy.parameters))
    return {name: np.unique(np.concatenate(indices)) for name, indices in found.items()}


@contextmanager
def _damaged(loaded: LoadedModel, spec: PromptSpec, selection: Selection) -> Iterator[tuple[int, int]]:
    """The damaged model; gives (weights perturbed, those of them that had their new value already)."""
    change = PERTURBATIONS[spec.perturbations[0]]
    with patched(loaded.model, selection, change, spec.perturbation_options, loaded.anatomy.offsets) as receipts:
        yield sum(len(receipt.old) for receipt in receipts), sum(receipt.unchanged for receipt in receipts)


def _prompt_tokens(loaded: LoadedModel, spec: PromptSpec, prefix: Prefix) -> list[int]:
    """The prompt as a run reads a text: after the same prefix, which a prompt that begins with it does not get twice.

    Raises InvalidInput for a prompt without a token to go on from, and for one that is too long; ModelBroken for a token that
    the model lacks.
    """
    read = list(encode(loaded.tokenizer, spec.prompt).ids) if spec.prompt else []
    ids = [*prefix.ids, *read[prefix.length_at(read, 0) :]]
    if not ids:
        raise InvalidInput(
            "the prompt is empty, and nothing stands before a text of this model"
            if not spec.prompt
            else "the prompt has no token",
            hint="give a text, or --bos always to begin with BOS alone",
        )
    known = loaded.model.get_input_embeddings().get_parameter("weight").shape[0]
    if max(ids) >= known:
        raise ModelBroken(
            f"the tokenizer of {loaded.source.name} gives token {max(ids)}, but the model has only {known}",
            hint="the tokenizer belongs to another model; download or save the two together",
        )
    if len(ids) > MOST_TOKENS:
        raise InvalidInput(f"the prompt has {len(ids):,} tokens", hint=f"a prompt has at most {MOST_TOKENS:,} tokens")
    most = loaded.max_tokens
    if most is not None and len(ids) + min(1, spec.new_tokens) > most:
        raise InvalidInput(
            f"the prompt has {len(ids):,} tokens, and {spec.model} takes {most:,} with those that follow",
            hint="shorten the prompt",
        )
    return ids


class _TextSoFar:
    """Tells of the texts as they grow."""

    def __init__(self, loaded: LoadedModel, spec: PromptSpec, emit: Emit) -> None:
        self._tokenizer, self._emit = loaded.tokenizer, emit
        self._each, self._total = spec.new_tokens, spec.new_tokens * (2 if spec.weights else 1)
        self._finished: list[str] = []  # the text of the intact model, while the damaged one is at it
        self._last = 0.0

    def next_model(self, intact: Sequence[int]) -> None:
        self._finished, self._last = [text_of(self._tokenizer, intact)], 0.0

    def __call__(self, ids: Sequence[int]) -> None:
        now = time.monotonic()
        if now - self._last >= TEXT_INTERVAL_S:
            self._last = now
            texts = [*self._finished, text_of(self._tokenizer, ids)]
            self._emit(Generated(texts[0], texts[1] if len(texts) > 1 else None))
        # After the text: a follower hears of the first progress at once, and of all that came before it.
        self._emit(Progress(STAGE, len(self._finished) * self._each + len(ids), self._total, "token"))


def _collapsed_layer(loaded: LoadedModel, ids: Sequence[int]) -> str:
    return first_non_finite_layer(loaded, [TokenSequence(tuple(ids), None, False)])


def _intact_not_finite(loaded: LoadedModel, ids: Sequence[int]) -> RunFailed:
    return RunFailed(
        f"the intact model's predictions are not finite, first at {_collapsed_layer(loaded, ids)}",
        hint="float16 overflows easily; try --dtype float32 or bfloat16",
    )


def _answer(
    loaded: LoadedModel,
    spec: PromptSpec,
    prefix: Prefix,
    prompt: Sequence[int],
    intact: Continuation,
    damage: _Damage | None,
) -> PromptAnswer:
    tokenizer, ids = loaded.tokenizer, [*prompt, *intact.ids]
    return PromptAnswer(
        model=spec.model,
        revision=loaded.revision,
        dtype=loaded.dtype,
        weights=damage.weights if damage else 0,
        unchanged=damage.unchanged if damage else 0,
        perturbation=spec.perturbations[0] if damage else "",
        temperature=spec.temperature,
        seed=spec.seed,
        prompt=spec.prompt,
        bos=prefix.text,
        intact=_text(tokenizer, intact),
        intact_end=intact.end,
        damaged=_text(tokenizer, damage.continued) if damage else None,
        damaged_end=damage.continued.end if damage else None,
        tokens=tuple(_tokens(loaded, ids, len(prompt), damage.predictions if damage else ())),
        damaged_tokens=tuple(text_pieces(tokenizer, damage.continued.ids)) if damage else (),
        first_difference=_first_difference(intact.ids, damage.continued.ids) if damage else None,
        collapsed_at=damage.collapsed_at if damage else None,
    )


def _tokens(
    loaded: LoadedModel, ids: Sequence[int], in_prompt: int, predictions: Sequence[Prediction]
) -> Iterator[PromptToken]:
    def named(token: int | None) -> str:
        return "" if token is None else token_text(loaded.tokenizer, token)

    predicted = [None, *predictions] if predictions else [None] * len(ids)  # nobody predicts the first
    pieces = text_pieces(loaded.tokenizer, ids)
    for place, (token, text, found) in enumerate(zip(ids, pieces, predicted, strict=True)):
        row = PromptToken(named(token), text, token, place < in_prompt)
        yield (
            row
            if found is None
            else replace(
                row,
                kl=found.kl,
                intact=found.intact,
                damaged=found.damaged,
                intact_top=named(found.intact_top),
                damaged_top=named(found.damaged_top),
                intact_top_id=found.intact_top,
                damaged_top_id=found.damaged_top,
                collapsed=found.kl is None,
            )
        )


def _text(tokenizer: PreTrainedTokenizerBase, continued: Continuation) -> str:
    return text_of(tokenizer, continued.ids[:-1] if continued.end == END_TOKEN else continued.ids)


def _first_difference(intact: Sequence[int], damaged: Sequence[int]) -> int | None:
    """The place of the first token that differs, or at which one of them has ended."""
    for place, (mine, theirs) in enumerate(zip(intact, damaged, strict=False)):
        if mine != theirs:
            return place
    return None if len(intact) == len(damaged) else min(len(intact), len(damaged))
