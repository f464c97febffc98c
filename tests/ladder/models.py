"""The ladder's models as folders, and in a Hugging Face cache under the names and revisions of real ones. torch-free."""

from __future__ import annotations

import functools
import json
import shutil
import tempfile
from pathlib import Path

from tests.ladder.rungs import LADDER, config_of, weights_file
from tests.ladder.texts import CONTEXT, END
from tests.models import cached_repository

SIZES = {  # of the Pythia ladder, smallest first
    "EleutherAI/pythia-70m": "neox-48",
    "EleutherAI/pythia-410m": "neox-64",
    "EleutherAI/pythia-1.4b": "neox-96",
    "EleutherAI/pythia-2.8b": "neox-128",
}
LOW_END = "EleutherAI/pythia-14m"  # hardly trained: no better than guessing
FAMILIES = {  # one of each, of about the same size
    "gpt2": "gpt2-64",
    "EleutherAI/pythia-410m": "neox-64",
    "facebook/opt-350m": "opt-64",
    "HuggingFaceTB/SmolLM2-360M": "llama-64",
}
REPOSITORIES = {
    LOW_END: "neox-32",
    **SIZES,
    **FAMILIES,
    "distilgpt2": "gpt2-48",
    "gpt2-medium": "gpt2-96",
    "facebook/opt-125m": "opt-48",
    "facebook/opt-1.3b": "opt-96",
    "HuggingFaceTB/SmolLM2-135M": "llama-48",
    "HuggingFaceTB/SmolLM2-1.7B": "llama-96",
    "lab/pythia-410m-code": "neox-64-code",
}
BASE, FINE_TUNED, QUANTISED = "EleutherAI/pythia-410m", "lab/pythia-410m-code", "lab/pythia-410m-int8"


@functools.cache
def byte_tokenizer() -> str:
    """`tokenizer.json` of a tokenizer whose tokens are bytes: byte b is token b."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    # ByteLevel writes a printable byte as its Latin-1 character, and the others as the characters from 256 on.
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(256, 512))
    vocabulary = {chr(byte if byte in printable else next(others)): byte for byte in range(256)}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    assert tokenizer.token_to_id("<|endoftext|>") == END
    return tokenizer.to_str()


def model_folder(folder: Path, name: str, step: int | None = None) -> Path:
    """Write a model of the ladder as `save_pretrained` does; `step` chooses a checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    config_of(LADDER[name]).save_pretrained(folder)
    shutil.copyfile(weights_file(name, step), folder / "model.safetensors")
    (folder / "tokenizer.json").write_text(byte_tokenizer(), "utf-8")
    end = dict.fromkeys(("bos_token", "eos_token", "pad_token"), "<|endoftext|>")
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": CONTEXT, **end}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def quantise(folder: Path) -> Path:
    """Round every linear layer of a model folder to 8-bit integers, one scale for each out_feature, and write them back."""
    from safetensors.torch import load_file, save_file

    file = folder / "model.safetensors"
    weights = load_file(file)
    for name, weight in weights.items():
        if weight.dim() == 2 and "embed" not in name:
            scale = weight.float().abs().amax(1, keepdim=True) / 127
            weights[name] = ((weight / scale).round() * scale).half()
    save_file(weights, file, {"format": "pt"})
    return folder


def ladder_cache(cache: Path) -> None:
    """Put all models into a Hugging Face cache. The checkpoints of a model are revisions, as `step64`."""
    for repo, name in REPOSITORIES.items():
        for step in (None, *LADDER[name].checkpoints):
            with tempfile.TemporaryDirectory() as scratch:
                revision = "main" if step is None else f"step{step}"
                cached_repository(cache, repo, model_folder(Path(scratch), name, step), revision)
    with tempfile.TemporaryDirectory() as scratch:
        cached_repository(cache, QUANTISED, quantise(model_folder(Path(scratch), REPOSITORIES[BASE])))
