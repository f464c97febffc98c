"""`make bench-gpu`: measure a GPU in about ten minutes, print, and write RESULTS-gpu.md.

Models have the shapes of known ones and random weights, so that nothing is downloaded; texts are random tokens. Ratios are of
one process, in alternating rounds. With `--device cpu` the same pieces of work run on a model that a CPU can do, which shows
that they run, and nothing is written.
"""

from __future__ import annotations

import argparse
import gc
import platform
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers

from benchmarks import gpu_cases as cases
from benchmarks.gpu_cases import BATCH, ROUNDS, Case
from cwa_engine.base.version import __version__
from cwa_engine.machine.memory import available_memory
from cwa_engine.models.loading import torch_device
from cwa_engine.models.memory import device_name, free_bytes, release

RESULTS = Path(__file__).with_name("RESULTS-gpu.md")
MINUTES = 10.0
TEXTS, TOKENS = 16, 512
WHOLE = 66  # texts of the whole run

ON_A_GPU, ON_A_CPU = ("135M", "1B", "8B"), ("2M",)
STATISTICS = 4  # bytes of a gradient in float32
ROOM = 1.4  # times what weights and gradients take, to measure a model with all gradients at once


@dataclass(frozen=True)
class Row:
    """What was measured on which model."""

    what: str
    model: str
    found: str


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="begin nothing more after so many")
    parser.add_argument("--texts", type=int, default=TEXTS)
    parser.add_argument("--tokens", type=int, default=TOKENS, help="of each text")
    parser.add_argument("--whole", type=int, default=WHOLE, help="texts of the whole run at the end")
    parser.add_argument("--output", type=Path, help=f"default: {RESULTS.name} beside this file; on a CPU none")
    chosen = parser.parse_args(arguments)
    device = torch_device(chosen.device)
    output = chosen.output or (None if device.type == "cpu" else RESULTS)
    about = described(device)
    print(about)
    rows = list(measured(device, chosen.texts, chosen.tokens, chosen.whole, time.monotonic() + 60 * chosen.minutes))
    if output:
        output.write_text(written(about, rows))
        print(f"written to {output}")
    return rows


def measured(device: torch.device, texts: int, tokens: int, whole: int, end: float) -> Iterator[Row]:
    """Every row, as soon as it is there; none is begun after `end`."""
    products = cases.rate_of_products(device)
    yield _told(Row("products of bfloat16 matrices", "", f"{products / 1e12:,.2f} TFLOP/s"))
    for name in ON_A_CPU if device.type == "cpu" else ON_A_GPU:
        needed = 2 * cases.weights_of(name)
        if needed > 0.8 * free_bytes(device):
            yield _told(Row("left out", name, f"{needed / 1e9:.1f} GB of weights do not fit"))
            continue
        case = cases.made(name, device, texts, tokens)
        for what, measure in pieces(case, products):
            if time.monotonic() > end:
                yield _told(Row(what, name, "not begun: the time was over"))
                continue
            try:
                found = measure()
            except torch.OutOfMemoryError as error:
                found = f"out of memory: {str(error).splitlines()[0]}"
            yield _told(Row(what, name, found))
            release()
        del case, what, measure
        gc.collect()
        release()
    if time.monotonic() < end:
        yield _told(Row(f"a whole run on {whole} texts", "SmolLM2-135M", cases.whole_run(device, whole)))


def pieces(case: Case, products: float) -> Iterator[tuple[str, Callable[[], str]]]:
    """What is measured of a model."""
    numel = case.loaded.anatomy.numel
    if (case.loaded.size_bytes + STATISTICS * numel) * ROOM < free_bytes(case.loaded.device) + case.loaded.size_bytes:
        yield "gradients: ranking over forward and backward alone", lambda: cases.overhead(case)
        yield "gradients: share of the rate of products", lambda: cases.utilisation(case, products)
        yield "sweep over all gradients at once, time", lambda: cases.sweep_time(case)
        yield (
            "all gradients at once: peak beside the weights, planned and measured",
            lambda: cases.memory(case, "resident"),
        )
    yield "sweep: peak beside the weights, planned and measured", lambda: cases.memory(case, "sweep")
    yield "squared gradients of sequences over gradients", lambda: cases.squares(case)
    yield "ranking a block: pieces for a CPU over pieces for a GPU", lambda: cases.piece_sizes(case)
    yield "damage: evaluating the texts", lambda: cases.evaluating(case)
    yield "damage: writing and undoing 1,000 weights", lambda: cases.edits(case)
    yield "checksum of all weights", lambda: cases.checksums(case)
    yield "repeatable kernels over the fastest ones, time", lambda: cases.repeatable(case)
    yield "the same loss and gradients again", lambda: cases.differences(case)
    yield "offload over the sweep without it, time", lambda: cases.offloaded(case)


def _told(row: Row) -> Row:
    print(f"{row.model}: {row.what}: {row.found}", flush=True)
    return row


# what is written


def described(device: torch.device) -> str:
    """The card, its driver and the versions, as lines of a table."""
    gpu = device.type == "cuda"
    versions = {"cwtool": __version__, "torch": torch.__version__, "transformers": transformers.__version__}
    lines = {
        "device": device_name(device),
        "memory": _gb(torch.cuda.get_device_properties(device).total_memory) if gpu else "that of the machine",
        "driver": _driver() if gpu else "none",
        "CUDA": f"{torch.version.cuda}, cuDNN {_cudnn()}" if gpu else "none",
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "Python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} threads",
        "its memory": _gb(available_memory().total_bytes),
        "day": time.strftime("%Y-%m-%d"),
    }
    return "\n".join(f"| {name} | {value} |" for name, value in lines.items())


def _gb(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:,.1f} GB"


def _cudnn() -> object:
    return torch.backends.cudnn.version()  # type: ignore[no-untyped-call]


def _driver() -> str:
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split("\n")[0]
    except (OSError, subprocess.CalledProcessError):
        return "not known"


def written(about: str, rows: Sequence[Row]) -> str:
    said = (
        "Written by `make bench-gpu`. Models have random weights in bfloat16 and the shapes of SmolLM2-135M, Llama-3.2-1B and "
        f"Llama-3.1-8B; {TEXTS} texts of {TOKENS} random tokens, {BATCH} at once. Medians of {ROUNDS} rounds, with the least "
        "and the most. The whole run is that of the real SmolLM2-135M."
    )
    table = "\n".join(f"| {row.what} | {row.model} | {row.found} |" for row in rows)
    header = "| what | model | figure |\n|---|---|---|"
    return f"# On a GPU\n\n{said}\n\n| | |\n|---|---|\n{about}\n\n{header}\n{table}\n"


if __name__ == "__main__":
    main()
