"""The loss is a perplexity: no token sees later ones, and a text's loss does not depend on what is computed beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Phi3Config

from cwa_engine.base.errors import ModelBroken
from cwa_engine.data.corpus import Text
from cwa_engine.data.tokens import tokenize
from cwa_engine.evaluation.perplexity import evaluate
from cwa_engine.methods.metrics import Needs
from cwa_engine.models.loading import load_model
from cwa_engine.sensitivity.gradients import resident
from tests.architectures import tiny_architecture
from tests.engine.conftest import TEXTS
from tests.models import VOCABULARY, save_tiny, tiny_tokenizer


def save(model: Any, folder: Path) -> str:
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def sequences(loaded: Any, max_tokens: int = 64) -> Any:
    return tokenize(loaded.tokenizer, [Text(text, "test") for text in TEXTS], max_tokens)


def plain_nll(model: Any, ids: tuple[int, ...]) -> float:
    """Summed over all tokens but the first, each predicted from those before it alone, in float64."""
    total = 0.0
    with torch.no_grad():
        for place in range(1, len(ids)):
            logits = model(input_ids=torch.tensor([ids[:place]])).logits[0, -1].double()
            total -= float(logits[ids[place]] - logits.logsumexp(0))
    return total


# All that AutoModelForCausalLM has a class for and that see later tokens as their configs have it.
ENCODERS = (
    "bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert", "rembert",
    "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "xlm", "xlm-roberta", "xlm-roberta-xl",
)  # fmt: skip


@pytest.mark.parametrize("model_type", ENCODERS)
def test_an_encoder_is_run_as_a_decoder_and_says_so(model_type: str, tmp_path: Path) -> None:
    loaded = load_model(save(tiny_architecture(model_type), tmp_path))
    (note,) = loaded.notes
    assert note.startswith("run as a decoder (")
    first = sequences(loaded)[0]
    measured = float(evaluate(loaded, [first]).nll_sums[0])
    assert measured == pytest.approx(plain_nll(loaded.model, first.ids), rel=1e-4)


@pytest.mark.parametrize("model_type", ["cpmant", "xlnet"])
def test_a_model_that_cannot_be_kept_from_seeing_later_tokens_is_refused(model_type: str, tmp_path: Path) -> None:
    with pytest.raises(ModelBroken, match="sees later tokens, so its loss is not a perplexity"):
        load_model(save(tiny_architecture(model_type), tmp_path))


def test_a_decoder_that_was_made_bidirectional_is_refused(tmp_path: Path) -> None:
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    config = Gemma3TextConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, use_bidirectional_attention=True,
    )  # fmt: skip
    with pytest.raises(ModelBroken, match=r"\(Gemma3ForCausalLM\) sees later tokens"):
        load_model(save(Gemma3ForCausalLM(config), tmp_path))


def test_decoders_have_nothing_to_note(tmp_path: Path) -> None:
    for dtype in ("float32", "bfloat16", "float16"):
        loaded = load_model(str(save_tiny("mixtral", tmp_path)), dtype=dtype)
        assert (loaded.notes, loaded.unbatched_above) == ((), None)


def longrope(folder: Path, original: int) -> str:
    """A Phi-3 whose positions have other frequencies as soon as a text is longer than `original` tokens."""
    factors = {"short_factor": [1.0] * 8, "long_factor": [1.5 + place for place in range(8)]}
    config = Phi3Config(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=128, original_max_position_embeddings=original,
        rope_parameters={
            "rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": original, **factors
        },
        bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    return save(model, folder)


def test_losses_and_scores_of_a_longrope_model_do_not_depend_on_the_batch_size(tmp_path: Path) -> None:
    loaded = load_model(longrope(tmp_path, 32))
    assert loaded.unbatched_above == 32
    assert "texts of more than 32 tokens are computed alone" in loaded.notes[0]
    texts = sequences(loaded)
    lengths = [len(text.ids) for text in texts]
    assert min(lengths) <= 32 < sorted(lengths)[-2], "there are texts on both sides of the limit"
    alone = evaluate(loaded, texts, 1)
    by_one = resident(loaded, texts, Needs.GRADIENT, 1)
    for size in (2, 6):
        together = evaluate(loaded, texts, size)
        assert together.nll_sums == pytest.approx(alone.nll_sums, rel=1e-5)
        for name, stats in resident(loaded, texts, Needs.GRADIENT, size).items():
            torch.testing.assert_close(stats.gradient, by_one[name].gradient, rtol=1e-4, atol=1e-6)
    first = texts[0]
    with torch.no_grad():
        plain = loaded.model(input_ids=torch.tensor([first.ids])).logits[0].double().log_softmax(-1)
    expected = -sum(float(plain[place - 1, first.ids[place]]) for place in range(1, len(first.ids)))
    assert float(alone.nll_sums[0]) == pytest.approx(expected, rel=1e-5)


def test_a_longrope_model_whose_texts_cannot_be_long_is_batched_as_any_other(tmp_path: Path) -> None:
    loaded = load_model(longrope(tmp_path, 128))
    assert (loaded.unbatched_above, loaded.notes) == (None, ())


@pytest.mark.parametrize("model_type", ["prophetnet", "dots3_note"])
def test_a_text_is_computed_alone_where_a_longer_one_beside_it_changes_its_logits(
    model_type: str, tmp_path: Path
) -> None:
    from cwa_engine.models.causality import depends_on_batch
    from tests.engine.conftest import wrap

    assert depends_on_batch(wrap(tiny_architecture(model_type)).model)
