"""Small models of every architecture the engine knows, on disk and in a Hub cache, built from their config classes."""

from __future__ import annotations

import functools
import hashlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

VOCABULARY = 300  # 256 bytes, a few merges, the special tokens
_SIZES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_layer": 2, "n_embd": 32, "n_head": 2, "n_positions": 512},
    "neox": {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64},
    "opt": {
        "num_hidden_layers": 2,
        "hidden_size": 32,
        "num_attention_heads": 2,
        "ffn_dim": 64,
        "word_embed_proj_dim": 16,
    },
    "llama": {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64},
    "mixtral": {
        "num_hidden_layers": 2,
        "hidden_size": 32,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 48,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
    },
}
_CLASSES = {"gpt2": "GPT2", "neox": "GPTNeoX", "opt": "OPT", "llama": "Llama", "mixtral": "Mixtral"}
FAMILIES = tuple(_SIZES)


def tiny_model(family: str, seed: int = 0) -> Any:
    """A model of two blocks of width 32 with random weights, larger than their usual start so that texts matter."""
    import torch
    import transformers

    config_class = getattr(transformers, f"{_CLASSES[family]}Config")
    config = config_class(vocab_size=VOCABULARY, bos_token_id=0, eos_token_id=0, pad_token_id=0, **_SIZES[family])
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


@functools.cache
def tiny_tokenizer() -> Any:
    """A byte-level tokenizer, so that every text can be read."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=["<|end|>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(["the weights that a model cannot live without are few and far between"] * 4, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|end|>", eos_token="<|end|>", pad_token="<|end|>"
    )


def save_tiny(family: str, folder: Path, seed: int = 0) -> Path:
    """The model and its tokenizer as `save_pretrained` writes them."""
    tiny_model(family, seed).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def hub_cache(cache: Path, repositories: Mapping[str, str]) -> None:
    """A Hugging Face cache that holds small models as `repositories` (Hub id -> family)."""
    for seed, (repo, family) in enumerate(repositories.items()):
        with tempfile.TemporaryDirectory() as scratch:
            cached_repository(cache, repo, save_tiny(family, Path(scratch), seed))


def cached_repository(cache: Path, repo: str, folder: Path, revision: str = "main") -> None:
    """Put a model's folder into a Hugging Face cache as a revision: blobs, a snapshot of links to them, a ref.

    As the Hub has it, blobs of weights are named by their sha256, all others by the hash that git gives them.
    """
    repository = cache / f"models--{repo.replace('/', '--')}"
    commit = hashlib.sha1((repo if revision == "main" else f"{repo}@{revision}").encode()).hexdigest()
    snapshot, blobs = repository / "snapshots" / commit, repository / "blobs"
    for made in (snapshot, blobs, repository / "refs"):
        made.mkdir(parents=True, exist_ok=True)
    (repository / "refs" / revision).write_text(commit)
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        git_hash = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        blob = blobs / (hashlib.sha256(content).hexdigest() if path.suffix == ".safetensors" else git_hash)
        blob.write_bytes(content)
        (snapshot / path.name).symlink_to(Path("../../blobs") / blob.name)


def truncate(path: Path) -> None:
    """Cut a file in half, as a broken download leaves it."""
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[: len(content) // 2])


def edit_json(path: Path, **fields: Any) -> None:
    """Change fields of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
