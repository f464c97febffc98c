"""A model for the examples: two decoder blocks, trained here in seconds on sentences of a small grammar. No download."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

ADJECTIVES = ("quiet", "old", "heavy", "narrow", "bright", "cold", "patient", "hollow")
NOUNS = ("harbour", "river", "clock", "miller", "valley", "lantern", "sparrow", "engine")
VERBS = ("watched", "followed", "crossed", "remembered", "carried", "left")
PLACES = ("before first light", "after the rain", "near the bridge", "without a word")
END = "<end>"


def sentences(count: int, seed: int) -> list[str]:
    """Sentences that are all different: each noun has a verb of its own, so there is something to learn."""
    draw = random.Random(seed)
    found: dict[str, None] = {}
    while len(found) < count:
        subject, thing = draw.choice(NOUNS), draw.choice(NOUNS)
        verb = VERBS[NOUNS.index(subject) % len(VERBS)]
        place = PLACES[NOUNS.index(thing) % len(PLACES)]
        found[f"the {draw.choice(ADJECTIVES)} {subject} {verb} the {draw.choice(ADJECTIVES)} {thing} {place} ."] = None
    return list(found)


def tokenizer() -> Any:
    """A token for each word of the grammar."""
    words = sorted({word for text in (*ADJECTIVES, *NOUNS, *VERBS, *PLACES, "the .") for word in text.split()})
    vocabulary = {word: number for number, word in enumerate([END, "<unknown>", *words])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unknown>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token=END, eos_token=END, unk_token="<unknown>")


def trained(width: int = 32, steps: int = 80, seed: int = 0) -> tuple[Any, Any]:
    """(model, tokenizer); the same each time on the same machine."""
    torch.manual_seed(seed)
    words = tokenizer()
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=width, intermediate_size=4 * width, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=64, bos_token_id=0, eos_token_id=0, tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    texts = sentences(32 * steps, seed=1)  # each is seen once
    for step in range(steps):
        batch = torch.tensor([words.encode(text) for text in texts[32 * step : 32 * (step + 1)]])
        loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval(), words


def saved(folder: Path, **options: Any) -> Path:
    """The same in a folder, as `save_pretrained` writes it."""
    model, words = trained(**options)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder
