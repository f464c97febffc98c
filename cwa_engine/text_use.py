"""The scoring texts and the evaluation texts of a run, as tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cwa_engine.base.errors import DataError, ModelBroken
from cwa_engine.base.events import Emit, Note
from cwa_engine.data import corpus
from cwa_engine.data.corpus import Text
from cwa_engine.data.prefix import Prefix, prefix_of
from cwa_engine.data.tokens import TokenSequence, pack, tokenize
from cwa_engine.models.loading import LoadedModel
from cwa_engine.rows import TextUse
from cwa_engine.spec import RunSpec

FAST_SHARE = 4  # --fast-perturbation uses one of this many evaluation texts,
FAST_LEAST = 4  # but at least this many
VOCABULARY_SHARE = 0.9  # at least this share of the embedding's rows has a token: models pad it by less than a tenth


@dataclass(frozen=True, slots=True)
class _Halves:
    """The texts of both halves, and their tokens."""

    texts: tuple[list[Text], list[Text]]
    sequences: tuple[list[TokenSequence], list[TokenSequence]]
    truncated: int = 0
    too_short: tuple[int, ...] = ()  # numbers of the texts that are in neither half


def use_texts(
    loaded: LoadedModel, spec: RunSpec, emit: Emit, texts: Sequence[str] | None = None
) -> tuple[TextUse, list[TokenSequence], list[TokenSequence]]:
    """Scoring and evaluation texts as tokens, and a record of which text was used for what.

    They are `texts` if a program passes them, else those that the spec names.

    Raises DataError for texts that cannot be used, ModelBroken if the tokenizer belongs to another model.
    """
    given = (
        corpus.load_texts(
            spec.data_file, spec.eval_limit, spec.dataset, spec.text_column, name=spec.data_name, emit=emit
        )
        if texts is None
        else corpus.given_texts(texts, spec.eval_limit, emit)
    )
    different = corpus.distinct(given)
    if repeated := len(given) - len(different):
        emit(Note(f"{repeated} of {len(given)} texts are repetitions and were left out", "warning"))
    limit = min(spec.seq_len, loaded.max_tokens or spec.seq_len)
    prefix = prefix_of(loaded.tokenizer, loaded.model.config.model_type, spec.bos)
    halves = (
        _windows(loaded, different, limit, prefix)
        if spec.packed
        else _one_by_one(loaded, different, limit, prefix, emit)
    )
    (scoring_texts, evaluation_texts), (scoring, evaluation) = halves.texts, halves.sequences
    shared = len(different) - len(halves.too_short) < 2
    if shared:
        emit(Note("there is only one text: weights are scored and damage is measured on the same one", "warning"))
    _check_tokens(loaded, scoring + evaluation, emit)
    if spec.fast_perturbation and spec.damages:
        evaluation = evaluation[: max(FAST_LEAST, math.ceil(len(evaluation) / FAST_SHARE))]
    use = TextUse(
        source=spec.data_name or spec.dataset or (corpus.BUILTIN if spec.data_file is None else str(spec.data_file)),
        sha256=corpus.data_sha256(given),
        texts=len(different),
        scoring=len(scoring_texts),
        evaluation=len(evaluation_texts),
        shared=shared,
        truncated=halves.truncated,
        scoring_sha256=corpus.data_sha256(scoring_texts),
        evaluation_sha256=corpus.data_sha256(evaluation_texts),
        repeated=repeated,
        overlap=corpus.overlap(scoring_texts, evaluation_texts),
        packed=spec.packed,
        seq_len=limit,
        bos=prefix.text,
        too_short=halves.too_short,
        damage=len(evaluation) if spec.damages else 0,
    )
    return use, scoring, evaluation


def _windows(loaded: LoadedModel, texts: Sequence[Text], limit: int, prefix: Prefix) -> _Halves:
    scoring, evaluation = corpus.split(texts)
    windows = pack(loaded.tokenizer, scoring, limit, prefix)
    others = windows if scoring == evaluation else pack(loaded.tokenizer, evaluation, limit, prefix)
    return _Halves((scoring, evaluation), (windows, others))


def _one_by_one(loaded: LoadedModel, texts: Sequence[Text], limit: int, prefix: Prefix, emit: Emit) -> _Halves:
    """One sequence for each text. Texts that are too short are left out before the split."""
    sequences = tokenize(loaded.tokenizer, texts, limit, prefix)
    too_short = _too_short(texts, sequences, emit)
    used = [number for number, sequence in enumerate(sequences) if sequence.scored_tokens]
    truncated = sum(sequences[number].truncated for number in used)
    if truncated:
        emit(
            Note(
                f"{truncated} of {len(texts)} texts are longer than {limit} tokens and were cut to that length",
                "warning",
            )
        )
    first, second = corpus.split(used)
    return _Halves(
        ([texts[number] for number in first], [texts[number] for number in second]),
        ([sequences[number] for number in first], [sequences[number] for number in second]),
        truncated,
        too_short,
    )


def _too_short(texts: Sequence[Text], sequences: Sequence[TokenSequence], emit: Emit) -> tuple[int, ...]:
    """Numbers, from 1, of the texts without a token to score; emits a note. Raises DataError if no text has one."""
    short = [number for number, sequence in enumerate(sequences, start=1) if not sequence.scored_tokens]
    if not short:
        return ()
    text, length = texts[short[0] - 1], len(sequences[short[0] - 1].ids)
    example = f"{text.where} has {length} token{'s' * (length != 1)}: '{text.content[:40]}'"
    if len(short) == len(texts):
        raise DataError(
            f"no text is long enough to score: {example}",
            hint="a text needs at least two tokens, so that one can be predicted; with --bos always one is enough",
        )
    emit(Note(f"{len(short)} of {len(texts)} texts are too short to score and were left out: {example}", "warning"))
    return tuple(short)


def _check_tokens(loaded: LoadedModel, sequences: Sequence[TokenSequence], emit: Emit) -> None:
    """Raises ModelBroken for a token beyond the embedding. On a GPU such an index would end the whole process."""
    known = loaded.model.get_input_embeddings().get_parameter("weight").shape[0]
    largest = max(max(sequence.ids) for sequence in sequences)
    if largest >= known:
        raise ModelBroken(
            f"the tokenizer of {loaded.source.name} gives token {largest}, but the model has only {known}",
            hint="the tokenizer belongs to another model; download or save the two together",
        )
    given = len(loaded.tokenizer)
    if given < VOCABULARY_SHARE * known:
        emit(
            Note(
                f"the tokenizer of {loaded.source.name} has {given:,} tokens, and its model an embedding of {known:,}: "
                "it may belong to another model",
                "warning",
            )
        )
