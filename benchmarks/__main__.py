"""`make bench`: measure, print, and write RESULTS.md. Ratios in one run; no figure here is a test."""

from __future__ import annotations

import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks import cases
from benchmarks.measure import in_a_process_of_its_own, ratio_in_turns, spread
from cwa_engine.sensitivity.metrics import Needs

RESULTS = Path(__file__).with_name("RESULTS.md")
ROUNDS = 3
MB = 1e6


def overhead() -> str:
    found = []
    model = cases.smollm2()
    for metric, needs in (("grad_x_weight", Needs.GRADIENT), ("grad_squared", Needs.FISHER)):
        ratio = ratio_in_turns(
            lambda n=needs, m=metric: cases.ranked_at_once(model, n, m),
            lambda: cases.forward_and_backward(model),
            ROUNDS,
        )
        found.append(f"{metric} x{ratio}")
    return ", ".join(found)


def sweep_time() -> str:
    found = []
    for name, model in (("SmolLM2-135M", cases.smollm2()), ("350M of 12 blocks", cases.wide())):
        ratio = ratio_in_turns(
            lambda m=model: cases.ranked_by_sweep(m), lambda m=model: cases.ranked_at_once(m), ROUNDS
        )
        found.append(f"{name} x{ratio}")
    return ", ".join(found)


def sweep_memory() -> str:
    found = []
    for name, model in (("SmolLM2-135M", "smollm2"), ("350M of 12 blocks", "wide")):
        swept, whole = (in_a_process_of_its_own(f"{model}-{source}") for source in ("sweep", "resident"))
        found.append(f"{name} x{swept / whole:.2f} ({swept / MB:,.0f} of {whole / MB:,.0f} MB above the weights)")
    return ", ".join(found)


def selection() -> str:
    cases.scores()
    ratio = ratio_in_turns(cases.selected_by_concatenation, cases.selected_streaming, ROUNDS)
    ours, plain = (in_a_process_of_its_own(name) for name in ("streaming", "concatenation"))
    return f"{ratio} times faster; {ours / MB:,.0f} MB against {plain / MB:,.0f} MB"


def start_up() -> str:
    cwtool = str(Path(sys.executable).with_name("cwtool"))
    times = []
    for _ in range(2 * ROUNDS):
        began = time.perf_counter()
        subprocess.run([cwtool, "--help"], capture_output=True, check=True)
        times.append(time.perf_counter() - began)
    return f"{spread(times)} s"


BENCHMARKS: tuple[tuple[str, str, str, Callable[[], str]], ...] = (
    ("(a)", "score and select over forward and backward alone, SmolLM2-135M", "at most 1.08", overhead),
    ("(b)", "sweep over resident, time", "at most 1.35", sweep_time),
    ("(b)", "sweep over resident, peak memory above the weights", "at most 0.6 and 0.25", sweep_memory),
    ("(d)", "streaming selection against concatenate-and-topk, 108M scores", "at least 8", selection),
    ("(i)", "cwtool --help", "at most 0.4 s", start_up),
)


def main() -> None:
    rows = []
    for letter, what, goal, benchmark in BENCHMARKS:
        rows.append((letter, what, goal, benchmark()))
        print(*rows[-1], sep=" · ", flush=True)
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    lines = [
        "# Results of the benchmarks",
        "",
        f"Made by `make bench`; do not edit. {machine}. Medians (least to most) of {ROUNDS} rounds; {cases.TEXTS} texts of",
        f"up to {cases.TOKENS} tokens with SmolLM2, {cases.FEW} with the 350M model, which has random weights.",
        "",
        "| | what | goal | measured |",
        "|---|---|---|---|",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
    ]
    RESULTS.write_text("\n".join(lines))


if __name__ == "__main__":
    main()
