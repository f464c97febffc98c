"""How time and memory grow with the model and with the texts.

`python -m benchmarks.growth [MILLIONS ...]` measures the rows of these sizes, all of them if none is named, and writes them
into RESULTS.md; other rows keep their figures. Each way of working is measured in a process of its own, one at a time, so
a model of 1B weights needs the memory of the way that is measured and no more.
"""

from __future__ import annotations

import gc
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import psutil
from transformers import LlamaConfig

from benchmarks import cases
from benchmarks.measure import RESULTS, peak_above, ratio_in_turns
from benchmarks.tables import known_rows, table, with_section
from cwa_engine.machine.memory import available_memory
from cwa_engine.models.failures import is_out_of_memory

# (width, inner width, blocks) of models; the key is about their weights in millions
SIZES = {10: (256, 704, 12), 30: (384, 1024, 16), 100: (640, 1728, 20), 300: (1024, 2752, 24), 1000: (2048, 5632, 19)}
MANY_TEXTS = (1, 3, 9)
LONG_S, MOST = 10.0, 7  # work is repeated until it has taken so long in all, or was done so often
SHARE = 0.9  # of free memory that a way may take; beyond, it is stopped instead of the machine

TIME = f"Growth with the model: LLaMAs with random weights, {cases.FEW} texts of {cases.TOKENS} tokens"
TIME_COLUMNS = ("weights", "(a) score and select", "(b) sweep", "(c) F of batches of 2", "(d) selection")
MEMORY = "Growth with the model: peak memory beside the weights, or beside the scores of (d)"
TEXTS = f"Growth with the texts: SmolLM2-135M, {cases.TOKENS} tokens each"
TEXTS_COLUMNS = ("texts", "(a) score and select", "(b) sweep", "(c) F of batches of 2")


@dataclass(frozen=True)
class Measured:
    """One way of working on a model, in a process of its own."""

    seconds: float | None  # of the fastest time; None where memory ran out
    peak_bytes: int  # beside what was there before; what it had reached where it was stopped
    limit_bytes: int  # that it might take in all


@dataclass(frozen=True)
class Way:
    """What is measured: the work, on a model or on as many tensors of scores."""

    title: str
    work: Callable[[cases.Model], object] | None = None
    select: Callable[[int], object] | None = None


WAYS: Mapping[str, Way] = {
    "plain": Way("forward and backward", cases.forward_and_backward),
    "scored": Way("score and select", cases.ranked_at_once),
    "swept": Way("sweep", cases.ranked_by_sweep),
    "plain-2": Way("forward and backward, batches of 2", partial(cases.forward_and_backward, size=2)),
    "fisher-2": Way("F of batches of 2", partial(cases.fisher_of_batches, size=2)),
    "concatenated": Way("concatenate and topk", select=cases.selected_by_concatenation),
    "streamed": Way("streaming selection", select=cases.selected_streaming),
}
MEMORY_COLUMNS = ("weights", *(way.title for way in WAYS.values()))
# There and back, so that a machine that slows down or speeds up meanwhile favours neither side of a ratio.
ORDER = ("plain", "scored", "swept", "swept", "scored", "plain", "plain-2", "fisher-2", "fisher-2", "plain-2",
         "concatenated", "streamed", "streamed", "concatenated")  # fmt: skip
RATIOS = (("scored", "plain"), ("swept", "scored"), ("fisher-2", "plain-2"))


def config(millions: int) -> LlamaConfig:
    width, inner, blocks = SIZES[millions]
    return cases.llama_config(
        hidden_size=width, intermediate_size=inner, num_hidden_layers=blocks, num_attention_heads=width // 64
    )


def weights_of(millions: int) -> int:
    """Exact weights of the model of a size, by its shapes alone."""
    width, inner, blocks = SIZES[millions]
    return blocks * (4 * width**2 + 3 * width * inner + 2 * width) + 2 * cases.VOCABULARY * width + width


def measured(way: Way, millions: int) -> Measured:
    """Measure one way in this process, which must have done nothing else before."""
    if way.work:
        work: Callable[[], object] = partial(way.work, cases.llama(config(millions)))
    else:
        assert way.select
        tensors = max(1, weights_of(millions) // (1536 * 576))
        cases.scores(tensors)
        work = partial(way.select, tensors)
    gc.collect()
    limit = _stopped_beyond(SHARE)
    seconds: list[float] = []

    def repeated() -> None:
        try:
            while len(seconds) < MOST and sum(seconds) < LONG_S:
                began = time.perf_counter()
                work()
                seconds.append(time.perf_counter() - began)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise

    peak = peak_above(repeated)
    return Measured(min(seconds, default=None), peak, limit)


def _stopped_beyond(share: float) -> int:
    """Refuse this process more data than it has and `share` of the free memory; gives the bytes that it may have in all.

    An allocation beyond fails in the process that asks for it, where the kernel would end whichever it likes.
    """
    memory, more = psutil.Process().memory_info(), int(share * available_memory().free_bytes)
    resource.setrlimit(resource.RLIMIT_DATA, (memory.data + more, resource.RLIM_INFINITY))
    return int(memory.rss) + more


def in_a_new_process(way: str, millions: int) -> Measured:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.growth", way, str(millions)], stdout=subprocess.PIPE, text=True, check=True
    )
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def growth(millions: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The rows of a size in both tables."""
    found: dict[str, list[Measured]] = {name: [] for name in WAYS}
    for name in ORDER:
        if any(one.seconds is None for one in found[name]):  # stopped before: it would be again
            continue
        found[name].append(in_a_new_process(name, millions))
        print("growth", millions, name, found[name][-1], sep=" · ", flush=True)
    label = f"{weights_of(millions) / 1e6:,.0f}M"
    chosen = _ratio(found["concatenated"], found["streamed"])
    times = [_ratio(found[ours], found[plain]) for ours, plain in RATIOS]
    row = (label, *(f"x{ratio:.2f}" if ratio else "does not fit" for ratio in times))
    selection = f"{chosen:.1f} times" if chosen else _alone(found["streamed"])
    return (*row, selection), (label, *(_peak(found[name]) for name in WAYS))


def _ratio(ours: Sequence[Measured], plain: Sequence[Measured]) -> float | None:
    """Of the sums of their times; None where one was stopped."""
    mine, other = ([one.seconds for one in side if one.seconds is not None] for side in (ours, plain))
    return sum(mine) / sum(other) if len(mine) == len(other) == 2 else None


def _alone(streamed: Sequence[Measured]) -> str:
    spent = [one.seconds for one in streamed if one.seconds is not None]
    return f"{min(spent):.2f} s; concatenate and topk do not fit" if spent else "does not fit"


def _peak(found: Sequence[Measured]) -> str:
    stopped = [one for one in found if one.seconds is None]
    if stopped:
        return f"stopped: more than the {stopped[0].limit_bytes / 1e9:.1f} GB in all that it might have"
    return f"{max(one.peak_bytes for one in found) / 1e9:.2f} GB"


def growth_with_texts() -> list[tuple[str, ...]]:
    """(a) to (c) by the number of texts, on SmolLM2."""
    rows = []
    for texts in MANY_TEXTS:
        rows.append((str(texts), *growing_ratios(cases.smollm2(texts))))
        print("texts", *rows[-1], sep=" · ", flush=True)
    return rows


def growing_ratios(model: cases.Model) -> list[str]:
    """(a), (b) and (c), each once after a round that does not count."""
    pairs = [
        (lambda: cases.ranked_at_once(model), lambda: cases.forward_and_backward(model)),
        (lambda: cases.ranked_by_sweep(model), lambda: cases.ranked_at_once(model)),
        (lambda: cases.fisher_of_batches(model, 2), lambda: cases.forward_and_backward(model, 2)),
    ]
    return [f"x{ratio_in_turns(ours, plain, 1).median:.2f}" for ours, plain in pairs]


def write(path: Path, sizes: Sequence[int] = tuple(SIZES), texts: bool = True) -> None:
    """Measure and put the tables into the file of results; rows of other sizes stay."""
    for millions in sizes:
        row, peaks = growth(millions)
        for title, columns, measured_row in ((TIME, TIME_COLUMNS, row), (MEMORY, MEMORY_COLUMNS, peaks)):
            before = path.read_text() if path.is_file() else ""
            rows = {known[0]: known for known in known_rows(before, title)} | {measured_row[0]: measured_row}
            ordered = sorted(rows.values(), key=_weights)
            path.write_text(with_section(before, title, table(columns, ordered)))
    if texts:
        path.write_text(with_section(path.read_text(), TEXTS, table(TEXTS_COLUMNS, growth_with_texts())))


def _weights(row: Sequence[str]) -> int:
    return int(row[0].removesuffix("M").replace(",", ""))


def main() -> None:
    if sys.argv[1:2] and sys.argv[1] in WAYS:
        print(json.dumps(asdict(measured(WAYS[sys.argv[1]], int(sys.argv[2])))))
        return
    asked = [int(size) for size in sys.argv[1:]]
    if unknown := set(asked) - SIZES.keys():
        raise SystemExit(f"sizes are {', '.join(map(str, SIZES))} million weights, not {min(unknown)}")
    write(RESULTS, asked or tuple(SIZES), texts=not asked)


if __name__ == "__main__":
    main()
