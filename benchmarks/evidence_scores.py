"""The figures about scores in docs/evidence.md, on SmolLM2-135M: `python -m benchmarks.evidence_scores [PART ...]`.

Prints a Markdown table for each part: units, float16, hessian. On one core they take about 20, 5 and 40 minutes, and 6 GB.
"""

from __future__ import annotations

import copy
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.cases import smollm2
from benchmarks.tables import table
from cwa_engine.base.statistics import jaccard, spearman
from cwa_engine.data.tokens import TokenSequence
from cwa_engine.evaluation.loss_scale import LossScale
from cwa_engine.methods.metrics import Needs, WeightStats, metric
from cwa_engine.models.facts import Facts
from cwa_engine.models.loading import LoadedModel
from cwa_engine.models.structures import find_weights
from cwa_engine.pipeline import analyze
from cwa_engine.questions.fidelity import Predictions
from cwa_engine.sensitivity.candidates import propose
from cwa_engine.sensitivity.finalists import MOST
from cwa_engine.sensitivity.gradients import resident
from cwa_engine.sensitivity.hessian import exact_diagonal, hutchinson_diagonal
from cwa_engine.sensitivity.views import Rankers, View
from cwa_engine.spec import RunSpec
from cwa_engine.targets import parse_target

MODEL = "smollm2-135m"
TEXTS, TOKENS = 16, 64  # of the built-in passages; every second one is scored, the others measured
FEW_TEXTS, FEW_TOKENS = 4, 32  # for the diagonal of the Hessian
PROBES, SEEDS, TOP = 8, (0, 1), 50
GAIN = "model.norm.weight[17]"

Table = list[tuple[str, ...]]


@metric("obd_by_text", "mean_s (dL_s/dw)² w² / 2", Needs.FISHER, "what obd was")
def obd_by_text(weight: Tensor, stats: WeightStats) -> Tensor:
    """obd with the squared gradients of texts instead of those of tokens."""
    assert stats.fisher is not None
    return stats.fisher * weight.square() / 2


@metric("taylor_by_text", "|mean_s (dL_s/dw)² w² / 2 - g w|", Needs.GRADIENT | Needs.FISHER, "what taylor was")
def taylor_by_text(weight: Tensor, stats: WeightStats) -> Tensor:
    """taylor with the squared gradients of texts instead of those of tokens."""
    assert stats.gradient is not None and stats.fisher is not None
    return (stats.fisher * weight.square() / 2 - stats.gradient * weight).abs()


SCORES = ("grad_x_weight", "obd_by_text", "obd", "taylor_by_text", "taylor")


def units() -> Table:
    """Scores of single weights against the measured loss change of zeroing them, and against w² H / 2."""
    asked = RunSpec(
        model=MODEL, metrics=SCORES, topk=(TOP,), eval_limit=TEXTS, seq_len=TOKENS, perturbations=(), fidelity=40,
        gradients="resident",
    )  # fmt: skip
    loaded, sequences = smollm2(TEXTS, TOKENS)
    found = analyze(loaded, asked)
    other = analyze(loaded, asked.model_copy(update={"seed": 1, "fidelity": None}))
    predictions = found.answer(Predictions).rows
    measured = {row.target: row for row in predictions}
    changes = np.abs([row.delta_nll for row in predictions])
    harmful = [predictions[place].target for place in np.argsort(-changes)]
    second_order = half_w_squared_h(loaded, sequences[0::2], list(dict.fromkeys([*harmful[:20], GAIN])))
    rows: Table = [
        (
            "score", f"Spearman, {len(changes)} weights", "10 most harmful in its first 10", "over w² H / 2, median of 20",
            f"`{GAIN}`", f"first {TOP} with another seed",
        )
    ]  # fmt: skip
    for place, name in enumerate(SCORES):
        scores = {target: float(row.scores[place] or 0) for target, row in measured.items()}
        first = sorted(scores, key=lambda target: -scores[target])[:10]
        ratios = [scores[target] / second_order[target] for target in harmful[:20] if second_order[target] > 0]
        tops = [[weight.target for weight in result.rankings[place].weights] for result in (found, other)]
        rows.append(
            (
                f"`{name}`",
                f"{spearman(np.array(list(scores.values())), changes):.2f}",
                str(len(set(first) & set(harmful[:10]))),
                f"{np.median(ratios):.3f}",
                f"{scores[GAIN]:.4g}" if GAIN in scores else "-",
                f"Jaccard {jaccard(*tops):.2f}",
            )
        )  # fmt: skip
    change = f"{measured[GAIN].delta_nll:.4g}" if GAIN in measured else "-"
    return [*rows, ("w² H / 2", "", "", "1", f"{second_order[GAIN]:.4g}", ""), ("measured", "", "", "", change, "")]


def half_w_squared_h(
    loaded: LoadedModel, sequences: Sequence[TokenSequence], targets: Sequence[str]
) -> dict[str, float]:
    """The second-order loss change of zeroing each of these weights, by the exact diagonal of the Hessian."""
    places = [
        (parse_target(t).parameter, int(find_weights(parse_target(t), loaded.anatomy.parameters)[0])) for t in targets
    ]
    values = [float(loaded.model.get_parameter(name).detach().view(-1)[index]) for name, index in places]
    diagonal = exact_diagonal(loaded, sequences, places)
    return {t: value**2 * entry / 2 for t, value, entry in zip(targets, values, diagonal, strict=True)}


def float16() -> Table:
    """Gradients of float16 weights, with and without the loss scaled, against those of the same weights in float32."""
    loaded, sequences = smollm2(TEXTS, TOKENS)
    scored = sequences[0::2]
    rounded: Any = copy.deepcopy(loaded.model)
    half = replace(loaded, model=rounded.half(), facts=Facts())
    full = replace(loaded, model=copy.deepcopy(rounded).float(), facts=Facts())
    weights = torch.cat([full.model.get_parameter(name).detach().flatten() for name in full.anatomy.parameters])
    exact = flat_gradients(full, scored, None)
    first = (exact * weights).abs().topk(TOP).indices
    heading = f"of the first {TOP} by `grad_x_weight`", "largest error among these"
    rows: Table = [("loss times", "gradients that vanish", *heading)]
    for scale in (None, LossScale(half.model).of(scored)):
        found = flat_gradients(half, scored, scale)
        vanished = float(((found == 0) & (exact != 0)).float().mean())
        same = set((found * weights).abs().topk(TOP).indices.tolist()) & set(first.tolist())
        error = float((found[first] / exact[first]).abs().log().abs().exp().max())
        rows.append((f"{scale or 1:,.0f}", f"{100 * vanished:.2f} %", str(len(same)), f"times {error:.2f}"))
    return rows


def flat_gradients(loaded: LoadedModel, sequences: Sequence[TokenSequence], scale: float | None) -> Tensor:
    """g of all weights, one parameter after the other."""
    found = resident(loaded, sequences, Needs.GRADIENT, 1, scale=scale)
    return torch.cat([stats.gradient.flatten() for stats in found.values() if stats.gradient is not None])


Place = tuple[str, int]  # (parameter, flat index) of a weight


@dataclass(frozen=True)
class Estimates:
    """The first places by estimates, signed and with their standard errors, and the finalists of a run."""

    top: dict[Place, tuple[float, float]]
    finalists: list[Place]
    seconds: float  # of the probes


def hessian() -> Table:
    """How far two seeds agree on the largest |diag H|, and how far estimates are off."""
    loaded, sequences = smollm2(FEW_TEXTS, FEW_TOKENS)
    now = [estimates(loaded, sequences, seed) for seed in SEEDS]
    wanted = list(dict.fromkeys(p for entry in now for p in (*entry.top, *entry.finalists)))
    began = time.perf_counter()
    exact = dict(zip(wanted, exact_diagonal(loaded, sequences, wanted), strict=True))
    each = (time.perf_counter() - began) / len(wanted)
    rows: Table = [
        ("by", *(f"first {k} with another seed" for k in (10, TOP)), "wrong signs", "within 2 errors", "seconds")
    ]
    tops = [list(entry.top) for entry in now]
    wrong = np.mean([sum(value * exact[place] < 0 for place, (value, _) in entry.top.items()) for entry in now])
    near = [abs(value - exact[place]) <= 2 * error for entry in now for place, (value, error) in entry.top.items()]
    within, took = f"{100 * float(np.mean(near)):.0f} %", f"{now[0].seconds:,.0f}"
    rows.append((f"{PROBES} probes for each text", *agreement(tops), f"{wrong:.0f}", within, took))
    ranked = [sorted(entry.finalists, key=lambda place: -abs(exact[place])) for entry in now]
    seconds = now[0].seconds + MOST * each
    return [*rows, (f"{MOST} finalists, exactly", *agreement(ranked), "0", "-", f"{seconds:,.0f}")]


def agreement(rankings: Sequence[Sequence[Place]]) -> list[str]:
    one, other = rankings
    return [f"Jaccard {jaccard(one[:k], other[:k]):.2f}" for k in (10, TOP)]


def estimates(loaded: LoadedModel, sequences: Sequence[TokenSequence], seed: int) -> Estimates:
    began = time.perf_counter()
    found = hutchinson_diagonal(loaded, sequences, PROBES, seed)
    seconds = time.perf_counter() - began
    fisher = resident(loaded, sequences, Needs.TOKEN_FISHER, 1, seed=seed)
    name = "hutchinson_diag"
    spec = RunSpec(model=MODEL, metrics=(name,), topk=(TOP,), seed=seed)
    rankers = Rankers([View(name, name, loaded)], spec, MOST)
    rankers.offer(
        {
            parameter: replace(stats, hessian=found.estimate[parameter], hessian_error=found.error[parameter])
            for parameter, stats in fisher.items()
        }
    )
    ranking, by_fisher = rankers.rankings()[name], rankers.proposals()[name]
    first = ranking.top(TOP)
    top = {
        (row.parameter, row.flat_index): (
            float(found.estimate[row.parameter].view(-1)[row.flat_index]),
            row.standard_error or math.nan,
        )
        for row in first
    }
    named = propose([ranking, by_fisher], MOST)
    return Estimates(top, [(row.parameter, row.flat_index) for row in named], seconds)


PARTS: dict[str, Callable[[], Table]] = {"units": units, "float16": float16, "hessian": hessian}


def main() -> None:
    for name in sys.argv[1:] or PARTS:
        heading, *rows = PARTS[name]()
        print(f"{table(heading, rows)}\n", flush=True)


if __name__ == "__main__":
    main()
