"""Which models the ladder has, and where their weights lie. torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.ladder.texts import CONTEXT, END

WEIGHTS = Path(__file__).with_name("weights")
CLASSES = {"gpt2": "GPT2", "neox": "GPTNeoX", "opt": "OPT", "llama": "Llama"}


@dataclass(frozen=True)
class Rung:
    """A model of the ladder."""

    family: str  # a name of `CLASSES`
    width: int
    blocks: int
    steps: int = 512
    checkpoints: tuple[int, ...] = ()  # steps after which weights are kept as well
    starts_from: str = ""  # the model that is trained on, on source code; empty for random weights


LADDER = {
    "neox-32": Rung("neox", 32, 2, steps=1),  # the low end: no better than guessing
    "neox-48": Rung("neox", 48, 2, checkpoints=(1, 4, 16, 64, 256)),
    "neox-64": Rung("neox", 64, 3),
    "neox-96": Rung("neox", 96, 3),
    "neox-128": Rung("neox", 128, 3),
    **{f"{family}-{width}": Rung(family, width, blocks) for width, blocks in ((48, 2), (64, 3), (96, 3))
       for family in ("gpt2", "opt", "llama")},
    "neox-64-code": Rung("neox", 64, 3, steps=256, starts_from="neox-64"),
}  # fmt: skip


def weights_file(name: str, step: int | None = None) -> Path:
    """Where the weights of a model lie, at the end or at a checkpoint."""
    return WEIGHTS / (f"{name}.safetensors" if step is None else f"{name}-step{step}.safetensors")


def config_of(rung: Rung) -> Any:
    """The model's configuration: heads of 16 dimensions, no dropout, embeddings tied where the family's own are."""
    import transformers

    heads, wide = rung.width // 16, 4 * rung.width
    shape = {
        "hidden_size": rung.width, "num_hidden_layers": rung.blocks, "num_attention_heads": heads,
        "max_position_embeddings": CONTEXT,
    }  # fmt: skip
    fields: dict[str, dict[str, Any]] = {
        "gpt2": {
            "n_embd": rung.width, "n_layer": rung.blocks, "n_head": heads, "n_positions": CONTEXT,
            "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
        },
        "neox": {**shape, "intermediate_size": wide},
        "opt": {**shape, "ffn_dim": wide, "word_embed_proj_dim": rung.width, "dropout": 0.0},
        "llama": {**shape, "intermediate_size": wide * 2 // 3},
    }  # fmt: skip
    return getattr(transformers, f"{CLASSES[rung.family]}Config")(
        vocab_size=END + 1,
        **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), END),
        initializer_range=0.04,
        dtype="float16",
        **fields[rung.family],
    )
