"""A GGUF file gives the logits of the model it was made from."""

from __future__ import annotations

import hashlib
import math
import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from cwa_engine.base.errors import Cancelled
from cwa_engine.hub.sources import HubAccess, absolute_name, fingerprint
from cwa_engine.models.fake_model import fake_model
from cwa_engine.models.gguf.families import ARCHITECTURES
from cwa_engine.models.gguf.pretokenizers import SPLITTINGS
from cwa_engine.models.loading import load_model, load_without_weights
from tests.gguf_files import FAMILIES, Family, tensors_of, tiny, write_family


def logits(model: Any, length: int = 60) -> torch.Tensor:
    texts = torch.randint(1, 290, (1, length), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model(texts).logits


@pytest.mark.parametrize("name", FAMILIES)
def test_a_file_gives_the_logits_of_the_model_it_was_made_from(name: str, tmp_path: Path) -> None:
    original = tiny(FAMILIES[name])
    loaded = load_model(str(write_family(tmp_path / "model.gguf", FAMILIES[name], original)))
    torch.testing.assert_close(logits(loaded.model), logits(original), rtol=0, atol=1e-6)
    assert sum(p.numel() for p in loaded.model.parameters()) == sum(p.numel() for p in original.parameters())


LLAMA = FAMILIES["llama"]


def written(path: Path, original: Any, family: Family = LLAMA, **options: Any) -> Any:
    """The model, written to a file and loaded from it."""
    return load_model(str(write_family(path / "model.gguf", family, original, **options)))


def llama3_factors(frequencies: torch.Tensor, factor: float, low: float, high: float, original: int) -> torch.Tensor:
    """What `rope_freqs.weight` holds: Llama 3.1's rule, wave by wave."""
    found = []
    for wave in (2 * math.pi / frequencies).tolist():
        if wave < original / high:
            found.append(1.0)
        elif wave > original / low:
            found.append(factor)
        else:
            smooth = (original / wave - low) / (high - low)
            found.append(1 / ((1 - smooth) / factor + smooth))
    return torch.tensor(found)


BASE = 1.0 / 500000.0 ** (torch.arange(0, 16, 2) / 16)


@pytest.mark.parametrize(("low", "high", "length", "kind"), [(1.0, 4.0, 64, "llama3"), (1.5, 3.0, 100, "longrope")])
def test_factors_of_llama_3_are_found_again_or_taken_as_they_are(
    low: float, high: float, length: int, kind: str, tmp_path: Path
) -> None:
    bands = {
        "factor": 8.0,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": length,
    }
    original = tiny(LLAMA, rope_parameters={"rope_type": "llama3", "rope_theta": 500000.0, **bands})
    factors = llama3_factors(BASE, 8.0, low, high, length)
    loaded = written(tmp_path, original, tensors={"rope_freqs.weight": factors})
    assert loaded.model.config.rope_parameters["rope_type"] == kind
    torch.testing.assert_close(logits(loaded.model, 200), logits(original, 200), rtol=0, atol=2e-5)


LINEAR = {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 8.0, "original_max_position_embeddings": 32}
YARN_KEYS = {"scaling.type": "yarn", "scaling.factor": 8.0, "scaling.original_context_length": 32}
SCALED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "linear": (LINEAR, {"scaling.type": "linear", "scaling.factor": 4.0}),
    "linear where it is not said": (LINEAR, {"scaling.factor": 4.0}),
    "linear in old files": (LINEAR, {"scale_linear": 4.0}),
    "none in spite of a factor": ({"rope_theta": 1e4}, {"scaling.type": "none", "scaling.factor": 4.0}),
    "a magnitude": (
        {"rope_type": "longrope", "rope_theta": 1e4, "attention_factor": 1.2, "original_max_position_embeddings": 256}
        | dict.fromkeys(("short_factor", "long_factor"), [2.0] * 8),
        {"scaling.factor": 2.0, "scaling.attn_factor": 1.2},
    ),
    "another base": ({"rope_theta": 12345.0}, {}),
    "YaRN": (YARN, YARN_KEYS),
    "YaRN by all its numbers": (
        YARN | {"beta_fast": 16.0, "beta_slow": 2.0, "attention_factor": 1.05},
        YARN_KEYS | {f"scaling.yarn_{name}": value for name, value in (("beta_fast", 16.0), ("beta_slow", 2.0))}
        | {"scaling.yarn_attn_factor": 1.05, "scaling.yarn_ext_factor": 1.0},
    ),
    "YaRN with a multiplier": (
        YARN | {"mscale": 1.0, "mscale_all_dim": 0.5}, YARN_KEYS | {"scaling.yarn_log_multiplier": 0.5},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SCALED)
def test_scaled_positions_turn_as_in_the_original(name: str, tmp_path: Path) -> None:
    parameters, keys = SCALED[name]
    original = tiny(LLAMA, rope_parameters={"rope_type": "default", **parameters})
    loaded = written(tmp_path, original, keys={f"rope.{key}": value for key, value in keys.items()})
    torch.testing.assert_close(logits(loaded.model, 200), logits(original, 200), rtol=0, atol=1e-5)


def test_phi_3_takes_the_factors_for_long_texts_where_a_text_is_long(tmp_path: Path) -> None:
    short, long = [1.0, 1.1, 1.2, 1.3, 1.5, 2.0], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    longrope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": short, "long_factor": long}
    pretrained = {"original_max_position_embeddings": 64}
    family = FAMILIES["phi3"]
    original = tiny(family, rope_parameters={**longrope, **pretrained, "partial_rotary_factor": 0.75}, **pretrained)
    keys = {
        "rope.dimension_count": 12,
        "rope.scaling.original_context_length": 64,
        "rope.scaling.attn_factor": math.sqrt(1 + math.log(256 / 64) / math.log(64)),
    }
    factors = {f"rope_factors_{name}.weight": torch.tensor(f) for name, f in (("short", short), ("long", long))}
    loaded = written(tmp_path, original, family, keys=keys, tensors=factors)
    for length in (50, 200):
        torch.testing.assert_close(logits(loaded.model, length), logits(original, length), rtol=0, atol=1e-5)


def test_queries_keys_and_values_may_be_one_tensor(tmp_path: Path) -> None:
    original = tiny(FAMILIES["llama with biases"])
    tensors: dict[str, Any] = {}
    stored = tensors_of(original, FAMILIES["llama with biases"])
    for block in range(2):
        for end in ("weight", "bias"):
            parts = [f"blk.{block}.attn_{part}.{end}" for part in "qkv"]
            tensors |= dict.fromkeys(parts) | {f"blk.{block}.attn_qkv.{end}": torch.cat([stored[p] for p in parts])}
    loaded = written(tmp_path, original, FAMILIES["llama with biases"], tensors=tensors)
    assert torch.equal(logits(loaded.model), logits(original))


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q5_1", "Q4_K", "Q6_K", "IQ4_NL", "MXFP4"])
def test_quantised_weights_are_those_that_their_codes_stand_for(kind: str, tmp_path: Path) -> None:
    original = tiny(LLAMA, hidden_size=256, head_dim=64, intermediate_size=512, num_hidden_layers=1)
    name, codes = "blk.0.ffn_down.weight", gguf.GGMLQuantizationType[kind]
    weight = original.model.layers[0].mlp.down_proj.weight
    stored = quantise(weight.detach().numpy(), codes)
    loaded = written(tmp_path, original, raw={name: (stored, kind)})
    expected = torch.from_numpy(gguf.dequantize(stored, codes))
    assert torch.equal(loaded.model.get_parameter("model.layers.0.mlp.down_proj.weight"), expected.float())
    noted = [f"analysed as dequantised from {kind}: 1 of 12 tensors"] if kind not in ("F16", "BF16") else []
    assert list(loaded.notes) == noted


def quantise(weight: np.ndarray[Any, Any], kind: Any) -> np.ndarray[Any, Any]:
    """Quantised by the package, or, where it can only dequantise, random codes with small scales."""
    try:
        return gguf.quantize(weight, kind)
    except NotImplementedError:
        block, size = gguf.GGML_QUANT_SIZES[kind]
        drawn = np.random.default_rng(0).integers(
            0, 256, (*weight.shape[:-1], weight.shape[-1] // block * size), np.uint8
        )
        half = np.float16(0.01).view(np.uint16).item().to_bytes(2, "little")
        rows = drawn.reshape(-1, size)
        for start in {"Q4_K": (0, 2), "Q6_K": (size - 2,), "IQ4_NL": (0,)}.get(kind.name, ()):
            rows[:, start : start + 2] = np.frombuffer(half, np.uint8)
        if kind.name == "MXFP4":
            rows[:, 0] = 120  # an exponent: 2^(120 - 127)
        return rows.reshape(drawn.shape)


def test_an_output_that_repeats_the_embedding_is_tied_to_it(tmp_path: Path) -> None:
    original = tiny(FAMILIES["llama, tied"])
    again = {"output.weight": original.get_input_embeddings().weight.detach()}
    loaded = written(tmp_path, original, FAMILIES["llama, tied"], tensors=again)
    assert loaded.model.get_output_embeddings().weight is loaded.model.get_input_embeddings().weight
    assert loaded.notes == ("output.weight and token_embd.weight are the same numbers: analysed as one tied tensor",)


def test_a_file_without_an_output_is_said_to_be_tied(tmp_path: Path) -> None:
    original = tiny(FAMILIES["llama, tied"])
    assert written(tmp_path, original).notes == ("the file has no output.weight: the output is tied to the embedding",)


def test_any_shard_stands_for_the_model_of_all(tmp_path: Path) -> None:
    original = tiny(LLAMA)
    first = write_family(tmp_path / "model.gguf", LLAMA, original, shards=3)
    shards = sorted(tmp_path.glob("*.gguf"))
    assert first == shards[0] and len(shards) == 3
    for shard in shards:
        loaded = load_model(str(shard))
        assert torch.equal(logits(loaded.model), logits(original))
        assert loaded.files == {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in shards}
    before = fingerprint(loaded.source)
    shards[1].touch()
    assert fingerprint(loaded.source) != before


def test_the_suffix_may_be_written_large(tmp_path: Path) -> None:
    original = tiny(LLAMA)
    write_family(tmp_path / "model.gguf", LLAMA, original, shards=2)
    first, _ = [shard.rename(shard.with_suffix(".GGUF")) for shard in sorted(tmp_path.glob("*.gguf"))]
    assert torch.equal(logits(load_model(str(first)).model), logits(original))


def test_shards_are_found_beside_a_link_of_the_hub_cache(tmp_path: Path) -> None:
    original, snapshot = tiny(LLAMA), tmp_path / "snapshots"
    snapshot.mkdir()
    write_family(tmp_path / "model.gguf", LLAMA, original, shards=2)
    for number, shard in enumerate(sorted(tmp_path.glob("*.gguf"))):
        (snapshot / shard.name).symlink_to(shard.rename(tmp_path / f"blob{number}"))
    loaded = load_model(absolute_name(str(next(snapshot.iterdir()))))
    assert torch.equal(logits(loaded.model), logits(original))


def test_what_is_planned_from_the_header_is_what_is_loaded(tmp_path: Path) -> None:
    family = FAMILIES["gemma3"]
    path = str(write_family(tmp_path / "model.gguf", family, tiny(family)))
    source, config, tokenizer = load_without_weights(path, None, HubAccess())
    loaded = load_model(path)
    fake = fake_model(source, config, tokenizer, torch.float32)
    assert {n: p.shape for n, p in fake.model.named_parameters()} == {
        n: p.shape for n, p in loaded.model.named_parameters()
    }
    assert tokenizer("a b")["input_ids"] == loaded.tokenizer("a b")["input_ids"]


def test_reading_tells_of_every_tensor_and_can_be_ended(tmp_path: Path) -> None:
    path = str(write_family(tmp_path / "model.gguf", LLAMA, tiny(LLAMA)))
    told: list[tuple[int, int]] = []
    load_model(path, read=lambda done, total: told.append((done, total)))
    assert len(told) == 21 and told == sorted(told) and told[-1][0] == told[-1][1]

    def cancel(done: int, total: int) -> None:
        if done > total / 2:
            raise Cancelled("by the user")

    with pytest.raises(Cancelled):
        load_model(path, read=cancel)


def test_nothing_is_written_beside_a_file_or_into_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    written(tmp_path, tiny(LLAMA))
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]


def test_the_page_lists_the_architectures_and_pre_tokenizers_that_are_read() -> None:
    page = (Path(__file__).parents[2] / "docs/gguf.md").read_text()
    architectures, pre_tokenizers = page.split("## Architectures")[1].split("## Tokenizers")
    assert sorted(re.findall(r"^\| `([^`]+)` \|", architectures, re.MULTILINE)) == sorted(ARCHITECTURES)
    rows = [line for line in pre_tokenizers.splitlines() if line.startswith("|") and "tokenizer.ggml.pre" not in line]
    assert sorted(re.findall(r"`([^`]+)`", "".join(rows))) == sorted(SPLITTINGS)
