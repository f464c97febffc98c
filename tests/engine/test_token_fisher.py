"""The token-level Fisher diagonal against one backward pass for each token, and against the Hessian it stands for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from cwa_engine.data.tokens import TokenSequence
from cwa_engine.methods.metrics import METRICS, Needs
from cwa_engine.sensitivity.gradients import resident
from cwa_engine.sensitivity.signs import token_signs
from cwa_engine.sensitivity.sweep import sweep
from tests.engine.conftest import doubled, wrap
from tests.engine.test_metrics import hessian_by_hand, sequences_of
from tests.models import VOCABULARY, tiny_model


def one_backward_per_token(model: Any, sequences: list[TokenSequence]) -> dict[str, torch.Tensor]:
    """Mean over tokens of the squared gradient of each token's NLL, in float64."""
    exact = doubled(model)
    found = {name: torch.zeros_like(p) for name, p in exact.named_parameters()}
    tokens = sum(sequence.scored_tokens for sequence in sequences)
    for sequence in sequences:
        ids = torch.tensor([sequence.ids])
        predicted = exact(input_ids=ids).logits[0].log_softmax(-1)
        for position in range(sequence.unscored, len(sequence.ids)):
            exact.zero_grad()
            (-predicted[position - 1, sequence.ids[position]]).backward(retain_graph=True)
            for name, p in exact.named_parameters():
                found[name] += p.grad**2 / tokens
    return found


def fisher_of(loaded: Any, sequences: list[TokenSequence], source: str, batch_size: int, seed: int = 0) -> Any:
    if source == "resident":
        statistics = resident(loaded, sequences, Needs.TOKEN_FISHER, batch_size, seed=seed)
    else:
        parts = sweep(loaded, sequences, Needs.TOKEN_FISHER, batch_size, seed=seed)
        statistics = {name: stats for part in parts for name, stats in part.items()}
    return {name: stats.token_fisher for name, stats in statistics.items()}


@pytest.mark.parametrize(("source", "batch_size"), [("resident", 1), ("resident", 4), ("sweep", 4)])
def test_where_each_text_has_one_scored_token_it_is_exact(loaded: Any, source: str, batch_size: int) -> None:
    texts = enumerate(sequences_of(loaded), start=1)
    sequences = [TokenSequence(text.ids[: number + 1], 1, False, unscored=number) for number, text in texts]
    exact = one_backward_per_token(loaded.model, sequences)
    for name, found in fisher_of(loaded, sequences, source, batch_size).items():
        torch.testing.assert_close(found.double(), exact[name], rtol=1e-3, atol=1e-5 * float(exact[name].max()) + 1e-12)


def test_over_many_seeds_its_mean_is_that_of_one_backward_per_token(loaded: Any) -> None:
    sequences = [TokenSequence(sequence.ids[:7], 1, False) for sequence in sequences_of(loaded)[:3]]
    exact = one_backward_per_token(loaded.model, sequences)
    seeds = 100
    draws = [fisher_of(loaded, sequences, "resident", 1, seed) for seed in range(seeds)]
    for name, right in exact.items():
        if name not in draws[0]:  # tied
            continue
        stacked = torch.stack([draw[name] for draw in draws]).double()
        off = (stacked.mean(0) - right) / (stacked.std(0) / seeds**0.5 + 1e-6 * right.max() + 1e-12)
        assert float(off.abs().max()) < 7  # standard errors, of up to ten thousand weights


def test_signs_are_those_of_the_seed_and_the_text_whatever_comes_with_it(llama: Any) -> None:
    sequences = sequences_of(llama)
    forward, backward = (
        fisher_of(llama, texts, "resident", size) for texts, size in ((sequences, 1), (sequences[::-1], 3))
    )
    for name, found in forward.items():
        torch.testing.assert_close(found, backward[name], rtol=1e-4, atol=1e-4 * float(found.max()))
    other = fisher_of(llama, sequences, "resident", 1, seed=1)
    assert any(not torch.allclose(other[name], found, rtol=0.01) for name, found in forward.items())
    signs = np.concatenate([token_signs(sequence, seed) for sequence in sequences for seed in range(20)])
    assert set(signs.tolist()) == {-1, 1} and abs(signs.mean()) < 4 / len(signs) ** 0.5


def texts_of_its_own(model: Any, texts: int, tokens: int) -> list[TokenSequence]:
    """Texts drawn from what the model itself predicts: to these it is trained perfectly."""
    torch.manual_seed(0)
    ids = torch.randint(VOCABULARY, (texts, 1))
    with torch.no_grad():
        for _ in range(tokens):
            likely = model(input_ids=ids).logits[:, -1].softmax(-1)
            ids = torch.cat([ids, likely.multinomial(1)], 1)
    return [TokenSequence(tuple(row), 1, False) for row in ids.tolist()]


def test_on_texts_that_the_model_predicts_well_obd_is_half_w_squared_times_the_hessian() -> None:
    loaded = wrap(tiny_model("llama"))
    sequences = texts_of_its_own(loaded.model, texts=400, tokens=12)
    name = "model.norm.weight"
    weight = loaded.model.get_parameter(name).detach()
    only = loaded.with_parameters([name])
    stats = resident(only, sequences, Needs.TOKEN_FISHER | Needs.FISHER, 20)[name]
    curvature = hessian_by_hand(only, name, [list(sequence.ids) for sequence in sequences[:100]]).diagonal()
    expected = weight.double().square() / 2 * curvature
    score = METRICS["obd"].score
    assert score is not None
    obd = score(weight, stats).double()
    assert float((obd / expected).median()) == pytest.approx(1, abs=0.15)
    assert float(torch.corrcoef(torch.stack([obd, expected]))[0, 1]) > 0.95
    by_sequence = weight.square() / 2 * stats.fisher  # twelve times too small: a text's mean has little of one token
    assert float((by_sequence / expected).median()) == pytest.approx(1 / 12, rel=0.25)
