"""Which texts a run scores and which it measures, as tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence

from cwa_engine.data import corpus
from cwa_engine.data.tokens import TokenSequence, pack, tokenize
from cwa_engine.errors import ModelBroken
from cwa_engine.events import Emit, Note
from cwa_engine.models.loading import LoadedModel
from cwa_engine.result import TextUse
from cwa_engine.spec import RunSpec

FAST_SHARE = 4  # --fast-perturbation uses a quarter of the evaluation texts,
FAST_LEAST = 4  # but at least four


def use_texts(
    loaded: LoadedModel, spec: RunSpec, emit: Emit
) -> tuple[TextUse, list[TokenSequence], list[TokenSequence]]:
    """Scoring and evaluation texts as tokens, and the account of which were used for what.

    Raises DataError for texts that cannot be used, ModelBroken for a tokenizer of another model.
    """
    given = corpus.load_texts(
        spec.data_file, spec.eval_limit, spec.dataset, spec.text_column, name=spec.data_name, emit=emit
    )
    texts = corpus.distinct(given)
    if repeated := len(given) - len(texts):
        emit(Note(f"{repeated} of {len(given)} texts had occurred before and were left out", "warning"))
    scoring_texts, evaluation_texts = corpus.split(texts)
    shared = len(texts) < 2
    if shared:
        emit(Note("there is only one text: weights are scored and damage is measured on the same one", "warning"))
    limit = min(spec.seq_len, loaded.max_tokens or spec.seq_len)
    as_sequences = pack if spec.packed else tokenize
    scoring = as_sequences(loaded.tokenizer, scoring_texts, limit)
    evaluation = as_sequences(loaded.tokenizer, evaluation_texts, limit)
    _check_tokens(loaded, scoring + evaluation)
    truncated = sum(sequence.truncated for sequence in (scoring if shared else scoring + evaluation))
    if truncated:
        emit(Note(f"{truncated} of {len(texts)} texts are longer than {limit} tokens and were cut there", "warning"))
    if spec.fast_perturbation and spec.damages:
        evaluation = evaluation[: max(FAST_LEAST, math.ceil(len(evaluation) / FAST_SHARE))]
    use = TextUse(
        source=spec.data_name or spec.dataset or (corpus.BUILTIN if spec.data_file is None else str(spec.data_file)),
        sha256=corpus.data_sha256(given),
        texts=len(texts),
        scoring=len(scoring_texts),
        evaluation=len(evaluation_texts),
        shared=shared,
        truncated=truncated,
        scoring_sha256=corpus.data_sha256(scoring_texts),
        evaluation_sha256=corpus.data_sha256(evaluation_texts),
        repeated=repeated,
        overlap=corpus.overlap(scoring_texts, evaluation_texts),
        packed=spec.packed,
        damage=len(evaluation) if spec.damages else 0,
    )
    return use, scoring, evaluation


def _check_tokens(loaded: LoadedModel, sequences: Sequence[TokenSequence]) -> None:
    """On a GPU an index beyond the embedding ends the whole process, so it is looked for before."""
    known = loaded.model.get_input_embeddings().get_parameter("weight").shape[0]
    largest = max(max(sequence.ids) for sequence in sequences)
    if largest >= known:
        raise ModelBroken(
            f"the tokenizer of {loaded.source.name} gives token {largest}, but the model knows only {known}",
            hint="the tokenizer belongs to another model; download or save the two together",
        )
