"""`make bench`: measure, print, and write RESULTS.md. Ratios are of one run; no test depends on them."""

from __future__ import annotations

import platform
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial

import torch

from benchmarks import cases, growth, lanes, planned, queries, service, terminal
from benchmarks.measure import RESULTS, in_a_process_of_its_own, ratio_in_turns, spread
from cwa_engine.methods.metrics import Needs

ROUNDS = 3
MB = 1e6


def overhead() -> str:
    found = []
    model = cases.smollm2()
    for metric, needs in (("grad_x_weight", Needs.GRADIENT), ("grad_squared", Needs.FISHER)):
        ratio = ratio_in_turns(
            partial(cases.ranked_and_written, model, needs, metric),
            partial(cases.forward_and_backward, model),
            2 * ROUNDS,
        )
        found.append(f"{metric} x{ratio}")
    return ", ".join(found)


def sweep_time() -> str:
    found = []
    for name, model in (("SmolLM2-135M", cases.smollm2()), ("350M of 12 blocks", cases.wide())):
        ratio = ratio_in_turns(partial(cases.ranked_by_sweep, model), partial(cases.ranked_at_once, model), ROUNDS)
        found.append(f"{name} x{ratio}")
    return ", ".join(found)


def sweep_memory() -> str:
    found = []
    for name, model in (("SmolLM2-135M", "smollm2"), ("350M of 12 blocks", "wide")):
        swept, whole = (in_a_process_of_its_own(f"{model}-{source}") for source in ("sweep", "resident"))
        found.append(f"{name} x{swept / whole:.2f} ({swept / MB:,.0f} of {whole / MB:,.0f} MB above the weights)")
    return ", ".join(found)


def fisher() -> str:
    model = cases.smollm2()
    ratio = ratio_in_turns(
        lambda: cases.fisher_of_batches(model, 8), lambda: cases.forward_and_backward(model, 8), ROUNDS
    )
    return f"x{ratio}"


def selection() -> str:
    cases.scores(cases.MANY)
    ratio = ratio_in_turns(
        lambda: cases.selected_by_concatenation(cases.MANY), lambda: cases.selected_streaming(cases.MANY), ROUNDS
    )
    ours, plain = (in_a_process_of_its_own(name) for name in ("streaming", "concatenation"))
    return f"{ratio} times faster; {ours / MB:,.0f} MB against {plain / MB:,.0f} MB"


def ablation() -> str:
    spent, naive, right = cases.exact_top(candidates=1000, k=20, texts=48, tokens=32)
    return f"{naive / spent:.1f} times fewer forward passes ({spent:.1f} for {naive:,.0f}), {right} of 20 right"


def damage() -> str:
    resumed, whole = cases.damage_contexts()
    ratio = ratio_in_turns(lambda: cases.damage_curve(whole), lambda: cases.damage_curve(resumed), ROUNDS)
    return f"{ratio} times faster with it"


def warmth() -> str:
    cold, warm, ratio = service.cold_over_warm(ROUNDS)
    return f"x{ratio} (cold {cold} s, warm {warm} s)"


def talk() -> str:
    return f"{service.round_trips()} ms; {service.replayed_events():,.0f} events a second to one client"


def power_cut() -> str:
    job, event = service.added_jobs()
    return f"{job} ms; an event, which a power cut may lose, {event} ms"


def followers() -> str:
    ratio, share = service.subscribers_over_none(4 * ROUNDS)
    return f"x{ratio}; they and the daemon take {100 * share.median:.1f} % of the processor's time meanwhile"


def neighbour() -> str:
    model = cases.smollm2()
    with cases.busy_neighbour() as busy:
        ratio = ratio_in_turns(
            lambda: cases.ranked_beside(busy, model), lambda: cases.ranked_at_once(model), 2 * ROUNDS
        )
    return f"x{ratio}"


def start_up() -> str:
    times = []
    for _ in range(2 * ROUNDS):
        began = time.perf_counter()
        subprocess.run([service.CWTOOL, "--help"], capture_output=True, check=True)
        times.append(time.perf_counter() - began)
    return f"{spread(times)} s"


def interface_at_rest() -> str:
    loads, memory = terminal.at_rest()
    return f"{_loads(loads)}; {memory / MB:,.0f} MB resident"


def interface_during_a_run() -> str:
    return _loads(terminal.during_a_run())


def _loads(loads: dict[tuple[int, int], terminal.Load]) -> str:
    said = [
        f"{100 * load.processor:.1f} % and {load.bytes_s:,.0f} bytes a second at {columns}x{lines}"
        for (columns, lines), load in loads.items()
    ]
    return ", ".join(said)


def many_rows() -> str:
    opened, jumped, memory = terminal.many_rows(ROUNDS)
    return f"{opened} s; to the last row in {jumped} s; {memory / MB:,.0f} MB resident"


def queried() -> str:
    first, later, with_a_new_run = queries.over_many_runs(2 * ROUNDS)
    new, taking_up = queries.said(with_a_new_run), f"{first.wall:.3g} s, {first.processor:.2g} s of them computing"
    return f"{queries.said(later)}; after one new run {new}; the first time, which takes them up, {taking_up}"


def large_k() -> str:
    spent: dict[int, list[float]] = {cases.K: [], cases.LARGE_K: []}
    for number in range(ROUNDS + 1):
        for k, times in spent.items():
            began, computing = time.perf_counter(), time.process_time()
            cases.selected_drawn_and_saved(k)
            if number:
                times.append(time.perf_counter() - began)
                print(
                    f"k={k}: {times[-1]:.2f} s, {time.process_time() - computing:.2f} s of them computing", flush=True
                )
    beyond = spread([much - few for few, much in zip(*spent.values(), strict=True)])
    return f"{beyond} s beyond the same with {cases.K}"


BENCHMARKS: tuple[tuple[str, str, str, Callable[[], str]], ...] = (
    ("(a)", "score, select, save and report over forward and backward alone, SmolLM2-135M", "at most 1.08", overhead),
    ("(b)", "sweep over resident, time", "at most 1.35", sweep_time),
    ("(b)", "sweep over resident, peak memory above the weights", "at most 0.6 and 0.25", sweep_memory),
    ("(c)", "F of batches of 8 over plain backward of batches of 8", "at most 1.3", fisher),
    ("(d)", "streaming selection against concatenate-and-topk, 108M scores", "at least 8", selection),
    ("(e)", "exact top 20 of 1,000, 48 texts of 32 tokens, against one at a time", "at least 8, 19 of 20", ablation),
    ("(f)", "damage from the first changed block on, single weights all over the model", "", damage),
    ("(g)", "first progress of a run, cold process over warm", "at least 15", warmth),
    ("(h)", "request and reply", "at most 1.5 ms", talk),
    ("(h)", "a submitted job is on the disk", "at most 20 ms", power_cut),
    ("(h)", "a run with 50 subscribers over one with none", "at most 1.03", followers),
    ("(i)", "cwtool --help", "at most 0.4 s", start_up),
    ("(j)", "scoring SmolLM2-135M beside a process that keeps a processor busy, over alone", "at most 2.2", neighbour),
    ("(k)", "the full-screen interface at rest, of one core", "at most 1 %, below 100 MB", interface_at_rest),
    ("(k)", "its screen of a run that goes on, of one core", "at most 5 %", interface_during_a_run),
    ("(k)", f"opening a run of {terminal.MANY:,} weights in it", "at most 1 s", many_rows),
    ("(l)", f"cwtool results query of three tables, {queries.RUNS:,} runs", "at most 1 s", queried),
    ("(m)", "a study of 12 cells over 3 models, two CPU lanes over one, a thread each", "at most 0.6", lanes.said),
    (
        "(n)",
        f"select, describe, draw and save {cases.LARGE_K:,} weights and 38 draws of as many",
        "at most 3 s",
        large_k,
    ),
)


def main() -> None:
    """Measure everything, or only the given letters, `growth` and `planned` for the tables below the first one.

    Other rows keep their earlier figures.
    """
    asked = sys.argv[1:]
    before = RESULTS.read_text() if RESULTS.is_file() else ""
    rows = []
    for letter, what, goal, benchmark in BENCHMARKS:
        lead = f"| {letter} | {what} | {goal} | "
        known = next((line for line in before.splitlines() if line.startswith(lead)), None)
        rows.append(known if known and asked and letter.strip("()") not in asked else f"{lead}{benchmark()} |")
        print(rows[-1], flush=True)
    _, heading, sections = before.partition("\n## ")
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    lines = [
        "# Results of the benchmarks",
        "",
        f"Made by `make bench`; do not edit. {machine}. Medians (least to most) of {ROUNDS} rounds or more;",
        f"{cases.TEXTS} texts of up to {cases.TOKENS} tokens with SmolLM2,",
        f"{cases.FEW} with the 350M model, which has random weights.",
        "",
        "| | what | goal | measured |",
        "|---|---|---|---|",
        *rows,
        "",
    ]
    RESULTS.write_text("\n".join(lines) + heading + sections)
    if not asked or "growth" in asked:
        growth.write(RESULTS)
    if not asked or "planned" in asked:
        planned.write(RESULTS)


if __name__ == "__main__":
    main()
