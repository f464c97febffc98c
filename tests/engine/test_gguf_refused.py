"""What a GGUF file lacks, contradicts or says beyond what is known is named; nothing is made up."""

from __future__ import annotations

import math
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch

from cwa_engine.base.errors import InvalidInput, ModelBroken
from cwa_engine.hub.sources import HubAccess
from cwa_engine.models.loading import load_model, load_without_weights
from tests.gguf_files import FAMILIES, pieces_vocabulary, tiny, write_family

LLAMA = FAMILIES["llama"]


@pytest.fixture(scope="module")
def original() -> Any:
    return tiny(LLAMA)


def refused(tmp_path: Path, original: Any, name: str = "llama", **options: Any) -> str:
    """The message with which the file is refused, by loading and by planning alike, and its hint."""
    path = write_family(tmp_path / "model.gguf", FAMILIES[name], original, **options)
    return refusal(path)


def refusal(path: Path) -> str:
    with pytest.raises(ModelBroken) as loading:
        load_model(str(path))
    with pytest.raises(ModelBroken) as planning:
        load_without_weights(str(path), None, HubAccess())
    assert planning.value.message == loading.value.message
    assert loading.value.hint, "no word on what to do"
    return f"{loading.value.message} | {loading.value.hint}"


@pytest.mark.parametrize("name", ["blk.1.ffn_up.weight", "blk.0.attn_norm.weight", "output_norm.weight"])
def test_a_missing_tensor_is_named(name: str, original: Any, tmp_path: Path) -> None:
    assert f"has no tensor {name}" in refused(tmp_path, original, tensors={name: None})


def test_a_missing_bias_is_named_where_others_are_there(tmp_path: Path) -> None:
    changed = {"blk.1.attn_k.bias": None}
    assert "blk.1.attn_k.bias" in refused(tmp_path, tiny(FAMILIES["qwen2"]), "qwen2", tensors=changed)


def test_an_output_that_an_architecture_always_has_is_missed(tmp_path: Path) -> None:
    changed = {"output.weight": None}
    assert "has no tensor output.weight" in refused(tmp_path, tiny(FAMILIES["gptneox"]), "gptneox", tensors=changed)


@pytest.mark.parametrize(
    "name", ["blk.2.ffn_up.weight", "blk.0.attn_q_norm.weight", "blk.0.ffn_up.scale", "cls.weight"]
)
def test_a_tensor_without_a_place_in_the_model_is_named(name: str, original: Any, tmp_path: Path) -> None:
    assert name in refused(tmp_path, original, tensors={name: torch.ones(16)})


def test_factors_of_another_number_than_frequencies_are_refused(original: Any, tmp_path: Path) -> None:
    assert "has 5 factors for 8 frequencies" in refused(
        tmp_path, original, tensors={"rope_freqs.weight": torch.ones(5)}
    )


def test_tensors_of_other_sizes_than_the_metadata_says_are_named(original: Any, tmp_path: Path) -> None:
    said = refused(tmp_path, original, keys={"feed_forward_length": 100})
    assert "blk.0.ffn_gate.weight of [96, 64]" in said and "gate_proj.weight of [100, 64]" in said


KEYS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama.attention.new_trick": ("llama", {"attention.new_trick": 1}),
    "llama.expert_weights_scale": ("llama", {"expert_weights_scale": 2.5}),
    "llama.attention.causal = False": ("llama", {"attention.causal": False}),
    "llama.attention.value_length = 8": ("llama", {"attention.value_length": 8}),
    "llama.vocab_size = 299": ("llama", {"vocab_size": 299}),
    "llama.attention.head_count_kv = [2, 1]": ("llama", {"attention.head_count_kv": [2, 1]}),
    "llama.rope.scaling.type = dynamic": ("llama", {"rope.scaling.type": "dynamic"}),
    "llama.rope.scaling.type = longrope": ("llama", {"rope.scaling.type": "longrope"}),
    "llama.rope.scaling.type = linear: but it also has numbers for yarn": (
        "llama",
        {"rope.scaling.yarn_beta_fast": 8.0},
    ),
    "llama.rope.scaling.yarn_ext_factor = 0.5": (
        "llama",
        {"rope.scaling.type": "yarn", "rope.scaling.factor": 2.0, "rope.scaling.yarn_ext_factor": 0.5},
    ),
    "does not rotate positions as": ("llama", {"rope.dimension_count": 8}),
    "llama.rope.dimension_count = 7": ("llama", {"rope.dimension_count": 7}),
    "does not say llama.attention.layer_norm_rms_epsilon": ("llama", {"attention.layer_norm_rms_epsilon": None}),
    "mixtral.gguf says llama.expert_gating_func = 2": ("mixtral", {"expert_gating_func": 2}),
    "qwen3moe.expert_shared_count": ("qwen3moe", {"expert_shared_count": 1}),
    "falcon.tensor_data_layout = other": ("falcon 40B", {"tensor_data_layout": "other"}),
    "gemma2.rope.freq_base_swa = 500.0": ("gemma2", {"rope.freq_base_swa": 500.0}),
    "gemma3.attention.sliding_window_pattern": ("gemma3", {"attention.sliding_window_pattern": [True, False]}),
    "stablelm.use_parallel_residual = True": ("stablelm", {"use_parallel_residual": True}),
    "gpt2.attention.head_count_kv = 2": ("gpt2", {"attention.head_count_kv": 2}),
    "llama.block_count = 3: it has tensors of 2 blocks": ("llama", {"block_count": 3}),
    "llama.block_count = two: expected is a whole number above 0": ("llama", {"block_count": "two"}),
    "llama.context_length = 0": ("llama", {"context_length": 0}),
    "llama.embedding_length = 32: token_embd.weight has the shape [300, 64]": ("llama", {"embedding_length": 32}),
    "llama.attention.head_count = 0": ("llama", {"attention.head_count": 0}),
    "llama.attention.head_count_kv = 3": ("llama", {"attention.head_count_kv": 3}),
    "llama.attention.layer_norm_rms_epsilon = nan": ("llama", {"attention.layer_norm_rms_epsilon": math.nan}),
    "llama.rope.freq_base = 0.0: expected is a number above 0": ("llama", {"rope.freq_base": 0.0}),
    "llama.rope.freq_base = True": ("llama", {"rope.freq_base": True}),
    "llama.rope.dimension_count = 0": ("llama", {"rope.dimension_count": 0}),
    "cannot make a llama model": ("llama", {"attention.head_count": 6, "attention.head_count_kv": 3}),
    "granite.rope.scaling.finetuned = False": ("granite", {"rope.scaling.finetuned": False}),
}


@pytest.mark.parametrize("said", KEYS)
def test_metadata_that_is_not_known_or_cannot_be_done_is_named(said: str, tmp_path: Path) -> None:
    name, keys = KEYS[said]
    named = refused(tmp_path, tiny(FAMILIES[name]), name, keys=keys)
    assert said.removeprefix(f"{name}.gguf says ") in named


def test_metadata_that_changes_nothing_is_no_reason_to_refuse(original: Any, tmp_path: Path) -> None:
    keys = {"attention.causal": True, "expert_count": 0, "rope.scaling.type": "none", "rope.scaling.finetuned": False}
    general = {"general.name": "x", "general.file_type": 0, "someone.else": "y"}
    path = write_family(tmp_path / "model.gguf", LLAMA, original, keys=keys, general=general)
    assert load_model(str(path)).notes == ("metadata that is not read: someone.else",)


TOKENIZERS: dict[str, dict[str, Any]] = {
    "tokenizer.ggml.pre = 'of-tomorrow'": {"pre": "of-tomorrow"},
    "did you mean 'qwen2'": {"pre": "qwen-2"},
    "does not say how its text is split (tokenizer.ggml.pre = 'None')": {"pre": None},
    "does not say how its text is split (tokenizer.ggml.pre = 'default')": {"pre": "default"},
    "tokenizer.ggml.add_space_prefix": {"add_space_prefix": True},
    "tokenizer.ggml.model = 't5'": {"model": "t5"},
    "tokenizer.ggml.model = 'None'": {"model": None},
    "no vocabulary (tokenizer.ggml.tokens)": {"tokens": None},
    "tokenizer.ggml.merges": {"merges": None},
    "'t' and 'zzz' are merged, but 'zzz' is not a token": {"merges": ["t zzz"]},
    "300 tokens and 2 kinds": {"token_type": [1, 1]},
    "unknown kind 9": {"token_type": [9] * 300},
    "'a' more than once": {"tokens": ["a"] * 300},
    "tokenizer.ggml.eos_token_id is 5000": {"eos_token_id": 5000},
    "tokenizer.ggml.add_bos_token is true": {"add_bos_token": True, "bos_token_id": None},
    "tokenizer.ggml.add_sep_token": {"add_sep_token": True},
    "tokenizer.ggml.tokens = [1, 2]: expected is a list, each entry text": {"tokens": [1, 2]},
    "tokenizer.ggml.bos_token_id = none: expected is a whole number": {"bos_token_id": "none"},
    "tokenizer.ggml.add_bos_token = 1": {"add_bos_token": 1},
    "tokenizer.ggml.precompiled_charsmap": {"precompiled_charsmap": [1, 2]},
    "has 301 tokens, and token_embd.weight has rows for 300": {
        "tokens": [*"ab", "ab", *(f"t{number}" for number in range(298))],
        "token_type": None,
        "merges": ["a b"],
    },
}


@pytest.mark.parametrize("said", TOKENIZERS)
def test_vocabularies_that_are_not_known_or_broken_are_named(said: str, original: Any, tmp_path: Path) -> None:
    assert said in refused(tmp_path, original, tokenizer=TOKENIZERS[said])


def test_a_vocabulary_whose_scores_are_lost_is_refused(tmp_path: Path) -> None:
    vocabulary = pieces_vocabulary(["some words and other words"])
    vocabulary |= {"scores": [-1000.0] * len(vocabulary["tokens"]), "merges": None, "add_bos_token": None}
    model = tiny(LLAMA, vocab_size=len(vocabulary["tokens"]))
    assert "have the same score" in refused(tmp_path, model, tokenizer=vocabulary)


def test_an_architecture_that_is_not_read_is_named(original: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    gguf.GGUFWriter(path, "qwen2vl").close()
    writer = gguf.GGUFWriter(path, "qwen2vl")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    said = refusal(path)
    assert "'qwen2vl'" in said and "did you mean 'qwen2'" in said


@pytest.mark.parametrize("kind", ["adapter", "mmproj", "imatrix"])
def test_a_file_that_holds_no_model_is_named(kind: str, original: Any, tmp_path: Path) -> None:
    assert f"does not hold a model but a {kind}" in refused(tmp_path, original, general={"general.type": kind})


def test_a_missing_shard_is_named(original: Any, tmp_path: Path) -> None:
    first = write_family(tmp_path / "model.gguf", LLAMA, original, shards=2)
    (tmp_path / "model-00002-of-00002.gguf").unlink()
    assert "lacks 1 of them: model-00002-of-00002.gguf" in refusal(first)


def test_a_shard_under_another_name_is_not_taken_for_the_model(original: Any, tmp_path: Path) -> None:
    first = write_family(tmp_path / "model.gguf", LLAMA, original, shards=2)
    assert "one of 2 shards" in refusal(first.rename(tmp_path / "whole.gguf"))


def test_shards_of_two_models_are_not_joined(original: Any, tmp_path: Path) -> None:
    first = write_family(tmp_path / "model.gguf", LLAMA, original, shards=2)
    second = first.with_name("model-00002-of-00002.gguf")
    second.write_bytes(first.read_bytes())
    assert "says that it is shard 0 of 2" in refusal(first)


def test_shards_that_lack_tensors_are_not_the_whole_model(original: Any, tmp_path: Path) -> None:
    first = write_family(tmp_path / "model.gguf", LLAMA, original, shards=2)
    content, key = bytearray(first.read_bytes()), b"split.tensors.count"
    place = content.index(key) + len(key) + 4
    assert struct.unpack("<i", content[place : place + 4]) == (21,)
    content[place : place + 4] = struct.pack("<i", 22)
    first.write_bytes(content)
    assert "hold 21 tensors, where split.tensors.count says 22" in refusal(first)


def test_a_truncated_file_is_called_so_wherever_it_ends(original: Any, tmp_path: Path) -> None:
    path = write_family(tmp_path / "model.gguf", LLAMA, original)
    content = path.read_bytes()
    for length in (0, 3, 20, 100, 1000, 9000, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        assert "is broken or truncated" in refusal(path), length


def test_a_file_of_another_format_or_byte_order_is_named(original: Any, tmp_path: Path) -> None:
    path = write_family(tmp_path / "model.gguf", LLAMA, original)
    content = path.read_bytes()
    path.write_bytes(content[:4] + struct.pack(">I", 3) + content[8:])
    assert "is big-endian" in refusal(path) and "gguf-convert-endian" in refusal(path)
    path.write_bytes(content[:4] + struct.pack("<I", 1) + content[8:])
    assert "is of GGUF version 1" in refusal(path)


def test_tensors_that_overlap_or_are_not_aligned_are_named(original: Any, tmp_path: Path) -> None:
    path = write_family(tmp_path / "model.gguf", LLAMA, original)
    content, name = bytearray(path.read_bytes()), b"output_norm.weight"
    offset = content.index(name) + len(name) + 4 + 8 + 4  # after the number of axes, one axis and the kind
    content[offset : offset + 8] = bytes(8)
    path.write_bytes(content)
    assert "output_norm.weight does not begin where the tensor before it ends" in refusal(path)
    path = write_family(tmp_path / "model.gguf", LLAMA, original, general={"general.alignment": 3})
    assert "general.alignment is 3, not a power of 2" in refusal(path)


def test_a_way_of_quantising_that_is_not_known_is_named(original: Any, tmp_path: Path) -> None:
    path = write_family(tmp_path / "model.gguf", LLAMA, original)
    name = b"token_embd.weight"
    kind = path.read_bytes().index(name) + len(name) + 4 + 16
    content = bytearray(path.read_bytes())
    content[kind : kind + 4] = struct.pack("<I", 4000)
    path.write_bytes(content)
    assert "token_embd.weight of model.gguf is stored in a way that the package gguf cannot dequantise" in refusal(path)


def test_a_file_that_shrinks_while_it_is_read_is_broken(original: Any, tmp_path: Path) -> None:
    path = write_family(tmp_path / "model.gguf", LLAMA, original)
    length = path.stat().st_size

    def shrink(done: int, total: int) -> None:
        with path.open("r+b") as file:
            file.truncate(length // 2)

    with pytest.raises(ModelBroken, match=r"it ends inside|changed while they were read"):
        load_model(str(path), read=shrink)


def test_without_the_package_gguf_the_extra_is_named(original: Any, tmp_path: Path) -> None:
    path = write_family(tmp_path / "model.gguf", LLAMA, original)
    code = f"""
import sys
sys.modules["gguf"] = None
from cwa_engine.models.loading import load_model
try:
    load_model({str(path)!r})
except Exception as error:
    print(type(error).__name__, error.message, error.hint)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (
        done.stdout.strip()
        == f"{InvalidInput.__name__} reading a GGUF file needs the package gguf pip install 'cwtool[gguf]'"
    )
