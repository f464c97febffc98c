"""Models of 7B to 70B weights on devices of 24, 48 and 80 GB, planned without weights and without such a device.

`python -m benchmarks.ladder` writes the table into docs/how-to/large-models.md; `--share` and `--copies` are other
assumptions about speed. The memory is the planner's, by counting on tensors that have none; the time is arithmetic on
stated speeds, and was measured nowhere.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.tables import table
from cwa_engine.command_line import command_of
from cwa_engine.hub.sources import HubAccess
from cwa_engine.plan_ways import ways_that_fit
from cwa_engine.planning import LEAST_TO_HALVE, plan
from cwa_engine.rows import PlanRow
from cwa_engine.spec import RunSpec
from cwa_engine.studies.passes import passes_of, sequences_of

PAGE = Path(__file__).parents[1] / "docs/how-to/large-models.md"
BEGIN, END = "<!-- by python -m benchmarks.ladder -->", "<!-- end -->"
MODELS = (
    "meta-llama/Llama-2-7b-hf",
    "meta-llama/Llama-2-13b-hf",
    "codellama/CodeLlama-34b-hf",
    "meta-llama/Llama-2-70b-hf",
)
SHARE = 0.4  # of a card's peak that matrix products of such sizes reach
COPIES = 20e9  # bytes a second from page-locked CPU memory to the card, of the 32 that PCIe 4.0 x16 has at most
UNLIMITED = 1 << 60
COLUMNS = ("model", "memory", "way that fits", "batch", "on the device", "CPU memory", "passes", "time",
           "the whole run this way: passes", "time")  # fmt: skip


@dataclass(frozen=True)
class Card:
    """A device of so much memory, and its peak speed without sparsity, as its data sheet has it."""

    name: str
    gigabytes: int
    float32: float  # operations a second; not TF32, which cwtool does not use
    bfloat16: float


CARDS = (
    Card("RTX 4090", 24, 82.6e12, 165.2e12),
    Card("L40S", 48, 91.6e12, 362e12),
    Card("A100 80GB", 80, 19.5e12, 312e12),
)


@dataclass(frozen=True)
class Speed:
    """What is assumed: the share of a card's peak that is reached, and bytes a second from CPU memory."""

    share: float = SHARE
    copies: float = COPIES


@dataclass(frozen=True)
class Cost:
    """Of a run: forward passes over one sequence, a backward pass counted as two, and the time they take."""

    passes: int
    seconds: float


def cost(spec: RunSpec, row: PlanRow, parameters: int, tokens: int, card: Card, speed: Speed) -> Cost:
    """Of a run whose sequences all have `tokens` tokens.

    A forward pass takes 2·N·D operations for N weights and D tokens and a backward pass twice as many, 6·N·D together. The
    sweep computes the blocks once more to differentiate them, 8·N·D. With offload every batch takes the blocks to the device
    once; on the way back, a block serves all batches of one half of the texts.
    """
    sequences = sequences_of(spec)
    assert sequences
    passes = passes_of(spec, sequences)
    if row.gradients != "resident":
        passes += sequences.scoring
    peak = {"float32": card.float32, "bfloat16": card.bfloat16}[row.dtype]
    seconds = 2 * parameters * tokens * passes / (speed.share * peak)
    if row.gradients == "offload":
        back = 2 if sequences.scoring >= LEAST_TO_HALVE else 1
        # A scoring sequence is passed four times, of which one takes the blocks to the device and three are on the way back.
        forward = passes - 3 * sequences.scoring
        itemsize = {"float32": 4, "bfloat16": 2}[row.dtype]
        seconds += (math.ceil(forward / row.batch_size) + back) * parameters * itemsize / speed.copies
    return Cost(passes, seconds)


def rows(speed: Speed) -> Iterator[tuple[str, ...]]:
    """The table, model by model; what is counted for one card serves the next."""
    for name in MODELS:
        for card in CARDS:
            yield row_of(name, card, speed)


def row_of(name: str, card: Card, speed: Speed) -> tuple[str, ...]:
    """One model on one card."""
    spec = RunSpec(model=name, topk=(100,))
    free = int(card.gigabytes * 1e9)
    # No folder of models: planned from the config in the guide, whatever is on this machine.
    access = HubAccess(cache_dir="/nonexistent", offline=True)
    found = plan(spec, access, "cuda:0", room=lambda dtype, weights: free, cpu_bytes=UNLIMITED, with_options=False)
    label, memory = f"{name} ({found.parameters:,} weights)", f"{card.gigabytes} GB ({card.name})"
    ways = ways_that_fit(spec, found.rows, "float32")
    if not ways:
        return (label, memory, "none", *7 * ("",))
    asked, row, _ = ways[0]
    known = command_of(spec).split()
    added = " ".join(word for word in command_of(asked).split() if word not in known)
    asked_cost = cost(asked, row, found.parameters, found.longest, card, speed)
    whole = spec.model_copy(update={"dtype": row.dtype, "gradients": "sweep" if row.gradients == "sweep" else "auto"})
    whole_cost = cost(whole, row, found.parameters, found.longest, card, speed)
    return (
        label,
        memory,
        f"{row.dtype}, {row.gradients}: `{added or 'nothing'}`",
        str(row.batch_size),
        _gb(row.total_bytes),
        _gb(row.cpu_bytes) if row.cpu_bytes else "",
        f"{asked_cost.passes:,}",
        _time(asked_cost.seconds),
        f"{whole_cost.passes:,}",
        _time(whole_cost.seconds),
    )


def _time(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"


def _gb(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.1f} GB"


def written(page: str, lines: Sequence[tuple[str, ...]], speed: Speed) -> str:
    """The page with the table and what it rests on between its marks."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"{PAGE} lacks the line {BEGIN} or {END}")
    peaks = "; ".join(
        f"{card.name}: {card.float32 / 1e12:g} in float32 without TF32, {card.bfloat16 / 1e12:g} in bfloat16"
        for card in CARDS
    )
    rests_on = (
        f"Assumed: {speed.share:.0%} of the peak in each card's data sheet (10¹² operations a second, {peaks})\n"
        f"and copies from CPU memory at {speed.copies / 1e9:g} GB a second, as if nothing were computed meanwhile. "
        "No card was at hand:\nmemory is counted, times are arithmetic."
    )
    return f"{before}{begin}\n{table(COLUMNS, lines)}\n\n{rests_on}\n{end}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=SHARE, help="of a card's peak that is reached")
    parser.add_argument("--copies", type=float, default=COPIES, help="bytes a second from CPU memory to the card")
    asked = parser.parse_args()
    speed, lines = Speed(asked.share, asked.copies), []
    for row in rows(speed):
        lines.append(row)
        print(*row, sep=" · ", flush=True)
    PAGE.write_text(written(PAGE.read_text(), lines, speed))


if __name__ == "__main__":
    main()
