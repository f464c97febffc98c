"""Trains the ladder's models on text that Python ships, and writes their weights into `weights/`.

`python -m tests.ladder.train [NAME ...]` trains these models, or all. All see the same batches in the same order. Weights are
trained in float32 on one thread and saved in float16. It prints rows of the table in README.md.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.ladder.rungs import LADDER, Rung, config_of, weights_file
from tests.ladder.texts import CONTEXT, END, code, split, topics

BATCH = 16  # sequences
SEED = 18


def trained(rung: Rung) -> Iterator[tuple[int, Any]]:
    """Train a model; gives it with the number of steps done, after each checkpoint and at the end."""
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    model = load_weights(rung.starts_from) if rung.starts_from else AutoModelForCausalLM.from_config(
        config_of(rung), dtype=torch.float32
    )  # fmt: skip
    # The highest learning rate: the best of a few trials at widths 48 and 128.
    rate = (0.15 if rung.starts_from else 0.6) / rung.width
    tokens = torch.tensor(split(code() if rung.starts_from else topics())[0])
    matrices, vectors = ([p for p in model.parameters() if (p.dim() > 1) is wanted] for wanted in (True, False))
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95))
    order = torch.Generator().manual_seed(SEED)
    for step in range(1, rung.steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, step / 32) * (0.55 + 0.45 * math.cos(math.pi * step / rung.steps))
        starts = torch.randint(len(tokens) - CONTEXT, (BATCH, 1), generator=order)
        batch = tokens[starts + torch.arange(CONTEXT)]  # [sequences, tokens]
        model(batch, labels=batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step in (*rung.checkpoints, rung.steps):
            yield step, model


def save_weights(model: Any, name: str, step: int | None) -> None:
    """Write each weight once, in float16, under the names that `save_pretrained` gives."""
    file = weights_file(name, step)
    file.parent.mkdir(exist_ok=True)
    save_file({name: weight.detach().half() for name, weight in model.named_parameters()}, file, {"format": "pt"})


def load_weights(name: str, step: int | None = None) -> Any:
    """A model with its saved weights, in float32."""
    model = AutoModelForCausalLM.from_config(config_of(LADDER[name]), dtype=torch.float32)
    weights = load_file(weights_file(name, step))
    assert set(weights) == {name for name, _ in model.named_parameters()}  # which has tied weights once
    model.load_state_dict(weights, strict=False)
    return model


@torch.no_grad()
def nats_per_byte(model: Any, tokens: Sequence[int]) -> float:
    """The mean loss of bytes in windows of `CONTEXT` tokens, whose first tokens are only read."""
    windows = torch.tensor(tokens[: len(tokens) // CONTEXT * CONTEXT]).view(-1, CONTEXT)
    total, count = 0.0, 0
    for batch in windows.split(64):
        following = batch[:, 1:].flatten()
        losses = torch.nn.functional.cross_entropy(
            model(batch).logits[:, :-1].flatten(0, 1), following, reduction="none"
        )
        scored = following != END
        total, count = total + losses[scored].double().sum().item(), count + int(scored.sum())
    return total / count


def row(name: str, step: int | None = None) -> str:
    """A row of the table in README.md, measured on the saved weights."""
    rung, model = LADDER[name], load_weights(name, step)
    losses = [nats_per_byte(model, split(documents)[1]) for documents in (topics(), code())]
    count = sum(weight.numel() for weight in model.parameters())
    cells = (name, rung.width, rung.blocks, f"{count:,}", step or rung.steps, *(f"{loss:.3f}" for loss in losses))
    return "| " + " | ".join(map(str, cells)) + " |"


def main(names: list[str]) -> None:
    for name in names or LADDER:
        for done, model in trained(LADDER[name]):
            step = done if done < LADDER[name].steps else None
            save_weights(model, name, step)
            print(row(name, step), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
