"""Perplexity against a plain loop over tokens."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch

from cwa_engine.data.corpus import Text
from cwa_engine.data.tokens import TokenSequence, tokenize
from cwa_engine.evaluation.perplexity import baseline_of, evaluate
from cwa_engine.rows import TextUse, exp
from tests.engine.conftest import TEXTS, doubled, wrap


def sequences_of(loaded: Any, max_tokens: int = 512) -> list[TokenSequence]:
    return tokenize(loaded.tokenizer, [Text(text, "a text") for text in TEXTS], max_tokens)


def nll_by_hand(loaded: Any, ids: list[int]) -> float:
    """Token after token, each with nothing but what stands before it."""
    total = 0.0
    for place in range(1, len(ids)):
        with torch.no_grad():
            logits = loaded.model(input_ids=torch.tensor([ids[:place]])).logits[0, -1].double()
        total -= float(logits.log_softmax(0)[ids[place]])
    return total


@pytest.mark.parametrize("batch_size", [1, 3])
def test_perplexity_is_exp_of_the_mean_over_all_scored_tokens(loaded: Any, batch_size: int) -> None:
    sequences = sequences_of(loaded)
    measured = evaluate(loaded, sequences, batch_size)
    total = sum(nll_by_hand(loaded, loaded.tokenizer(text)["input_ids"]) for text in TEXTS)
    tokens = sum(len(loaded.tokenizer(text)["input_ids"]) - 1 for text in TEXTS)
    assert measured.perplexity == pytest.approx(math.exp(total / tokens), rel=1e-5)
    baseline = baseline_of(measured, sequences, TextUse("", "", 3, 3, 3, False, 0, seq_len=512), 300)
    assert (baseline.tokens, baseline.sequences) == (tokens, len(TEXTS))
    first = [loaded.tokenizer.decode(loaded.tokenizer(text)["input_ids"][:1]) for text in TEXTS]  # not scored
    utf8_bytes = sum(len(text.encode()) for text in TEXTS) - sum(map(len, first))
    assert baseline.bits_per_byte == pytest.approx(total / math.log(2) / utf8_bytes, rel=1e-5)


def test_each_sequence_has_its_own_loss_in_the_order_it_was_given_whatever_the_batch(loaded: Any) -> None:
    exact = wrap(doubled(loaded.model))
    sequences = sequences_of(exact)
    expected = [nll_by_hand(exact, list(sequence.ids)) for sequence in sequences]
    for batch_size in (1, 3, 100):
        measured = evaluate(exact, sequences, batch_size)
        np.testing.assert_allclose(measured.nll_sums, expected, rtol=1e-6)
        assert measured.tokens.tolist() == [len(sequence.ids) - 1 for sequence in sequences]


def test_the_batch_size_moves_the_loss_by_less_than_a_millionth_in_single_precision(loaded: Any) -> None:
    losses = [evaluate(loaded, sequences_of(loaded), size).nll for size in (1, 2, 3, 8)]
    assert losses == pytest.approx([losses[0]] * 4, rel=1e-6)


def test_a_text_is_measured_up_to_the_length_it_was_cut_at(loaded: Any) -> None:
    measured = evaluate(loaded, sequences_of(loaded, max_tokens=6))
    expected = [nll_by_hand(loaded, loaded.tokenizer(text)["input_ids"][:6]) for text in TEXTS]
    np.testing.assert_allclose(measured.nll_sums, expected, rtol=1e-5)
    assert set(measured.tokens.tolist()) == {5}


def test_progress_counts_the_sequences_that_are_measured(llama: Any) -> None:
    heard: list[int] = []
    evaluate(llama, sequences_of(llama), 3, heard.append)
    assert heard == [3, 6, 8]


def test_half_precision_logits_are_added_up_in_single_precision(llama: Any) -> None:
    half = wrap(copy.deepcopy(llama.model).bfloat16())
    assert evaluate(half, sequences_of(half)).nll == pytest.approx(evaluate(llama, sequences_of(llama)).nll, rel=0.02)


def test_a_loss_beyond_what_a_float_can_hold_is_an_infinite_perplexity() -> None:
    assert exp(1000.0) == math.inf
