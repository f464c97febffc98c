"""The ladder is what its README says: small, and trained."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

import cwa_engine as cwa
from tests.ladder.models import SIZES, model_folder
from tests.ladder.rungs import LADDER, WEIGHTS, weights_file
from tests.ladder.texts import CONTEXT, END, code, held_out_text, split, topics, write_texts

README = Path(__file__).with_name("README.md").read_text()
CELLS = [[cell.strip() for cell in line.strip("|").split("|")] for line in README.splitlines() if line.startswith("|")]
ROWS = {(name, int(steps)): rest for name, *rest, steps in ([*c[:4], *c[5:], c[4]] for c in CELLS[2:])}
TOLERANCE = 0.002 if sys.version_info[:2] == (3, 11) else 0.3  # nats per byte; another Python has other topics
CHECKPOINTS = [(name, step) for name, rung in LADDER.items() for step in (*rung.checkpoints, None)]


def plain_nats_per_byte(folder: Path, tokens: Sequence[int]) -> float:
    """The mean over all bytes but the first of each window of 128 tokens, from the log probabilities."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    windows = torch.tensor(tokens[: len(tokens) // CONTEXT * CONTEXT]).view(-1, CONTEXT)
    with torch.no_grad():
        chances = torch.cat([model(batch).logits[:, :-1].log_softmax(-1) for batch in windows.split(32)])
    losses = -chances.gather(2, windows[:, 1:, None])[..., 0]  # [windows, tokens]
    return losses[windows[:, 1:] != END].double().mean().item()


def test_the_weights_are_those_of_the_script_and_less_than_8_mb() -> None:
    files = set(WEIGHTS.iterdir())
    assert files == {weights_file(name, step) for name, step in CHECKPOINTS}
    assert sum(file.stat().st_size for file in files) < 8e6


def test_the_readme_has_each_model_and_checkpoint() -> None:
    assert set(ROWS) == {(name, step or LADDER[name].steps) for name, step in CHECKPOINTS}


@pytest.mark.parametrize(("name", "step"), CHECKPOINTS)
def test_a_model_is_as_large_and_as_good_as_the_readme_says(name: str, step: int | None, tmp_path: Path) -> None:
    from safetensors import safe_open

    rung = LADDER[name]
    width, blocks, weights, on_topics, on_code = ROWS[name, step or rung.steps]
    folder = model_folder(tmp_path, name, step)
    with safe_open(folder / "model.safetensors", "pt") as file:
        shapes = [file.get_slice(key).get_shape() for key in file.keys()]  # noqa: SIM118
    assert sum(map(math.prod, shapes)) == int(weights.replace(",", ""))
    assert (int(width), int(blocks)) == (rung.width, rung.blocks)
    documents, loss = (code(), on_code) if rung.starts_from else (topics(), on_topics)
    assert plain_nats_per_byte(folder, split(documents)[1]) == pytest.approx(float(loss), abs=TOLERANCE)


def test_more_weights_predict_better_as_far_as_the_texts_go_and_the_low_end_guesses() -> None:
    losses = {name: float(cells[3]) for (name, step), cells in ROWS.items() if step == LADDER[name].steps}
    sizes = [losses[name] for name in SIZES.values()]
    assert sizes[0] - 0.1 > sizes[1]
    assert sizes[1] - 0.03 > max(sizes[2:])
    assert losses["neox-32"] > math.log(END + 1) - 0.1
    assert sizes[0] < 2


def test_bits_per_byte_are_nats_per_byte_over_ln_2(tmp_path: Path) -> None:
    """The engine's own measure agrees with a plain pass: a token is a byte."""
    folder = model_folder(tmp_path / "model", "neox-48")
    texts = write_texts(tmp_path / "texts.jsonl", 1)
    report = cwa.analyze(str(folder), data_file=str(texts), topk=[1], perturbations=[])
    nats = plain_nats_per_byte(folder, [*held_out_text(topics())[:CONTEXT].encode()])
    assert report.baseline.bits_per_byte == pytest.approx(nats / math.log(2), rel=1e-5)
