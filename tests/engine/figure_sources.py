"""What figures are made of: a run that was asked everything, planted studies, a comparison, and the card of a weight."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np

from cwa_engine.figures.figure import Source
from cwa_engine.pipeline import analyze
from cwa_engine.questions.critical_set import CriticalSet, CriticalSetStep
from cwa_engine.questions.fidelity import Prediction, Predictions, fidelities
from cwa_engine.records.compared import Comparison
from cwa_engine.records.comparison import compare
from cwa_engine.records.export import ModelRecord, RunRecord
from cwa_engine.records.run_report import RunReport, report_of
from cwa_engine.rows import HalfOverlap
from cwa_engine.spec import RunSpec
from cwa_engine.studies.registry import answered
from cwa_engine.studies.report import StudyReport
from cwa_engine.weight_rows import WeightCard
from cwa_engine.weights.card import weight_card
from tests.engine.conftest import TEXTS, wrap
from tests.engine.study_runs import GPT2, LLAMA, NEOX, Layout, Planted, planted_run, study_runs, targets_in
from tests.models import tiny_model

METRIC = "grad_x_weight"


def _text_file() -> Path:
    path = Path(tempfile.mkdtemp(prefix="cwtool-figures-")) / "texts.txt"
    path.write_text("\n\n".join(TEXTS) + "\n")
    return path


@functools.cache
def measured_run() -> RunReport:
    """A real run of a tiny model of which everything was asked that has a figure."""
    spec = RunSpec(
        model="tiny", data_file=_text_file(), metrics=(METRIC, "magnitude"), topk=(1, 100), matrices=False,
        perturbations=("zero", "bit_flip"), bit="all", dose=(0.0, 0.5, 2.0, 4.0), stability=3, fidelity=8,
        controls=("random",), control_seeds=3,
    )  # fmt: skip
    result = analyze(wrap(tiny_model("llama").bfloat16()), spec)  # whose weights have 16 bits
    model = ModelRecord("tiny", "/nowhere", "folder", None, {}, "bfloat16", "cpu", "", result.parameters)
    return report_of(RunRecord("20260101-000000-tiny-abcd", spec, "cwtool run", model, result, 1.5, []))


def damaged_run(model: str = "acme/llama-1b", **others: Any) -> RunReport:
    """A planted run of four k, the largest of which the model does not survive."""
    tops = [*targets_in(LLAMA, "down", 1, 600), *targets_in(LLAMA, "q", 0, 300), *targets_in(LLAMA, "up", 3, 100)]
    damage = [
        Planted(k=1, delta=0.02, error=0.01, worst=0.001, worst_error=0.0008),
        Planted(k=10, delta=0.5, error=0.1, worst=-0.01),
        Planted(k=100, delta=3.2, error=0.4, worst=0.2, worst_error=0.05),
        Planted(k=1000, delta=float("inf")),
    ]
    return planted_run(model, damage=damage, tops={METRIC: tops}, **others)


def study(question: str, runs: list[RunReport], *grid: str) -> StudyReport:
    """The report of a study of these runs, without a folder."""
    cells = study_runs(runs, *grid)
    return StudyReport(cast(Any, None), (), tuple(cells), answered(question, cells))


SIZES = [1_000_000, 3_000_000, 10_000_000, 30_000_000, 100_000_000]


def scaling(largest: float | None = None) -> StudyReport:
    """Damage by a power law with exponent -0.3, and sets that were searched for; the largest model may have another damage."""
    runs = []
    for place, size in enumerate(SIZES):
        delta = 2 * (size / 1e6) ** -0.3
        planted = Planted(
            k=10, delta=largest if largest is not None and size == SIZES[-1] else delta, error=0.1 * delta, seed=size
        )
        steps = tuple(CriticalSetStep(n, f"w{n}", 2.0, 0.1, 0.05, 0.15, 1.1) for n in range(1, 2 + 3 * place))
        found = [CriticalSet(10.0, True, steps)]
        runs.append(planted_run(f"m{size // 1_000_000}", parameters=size, damage=[planted], answers=found))
    return study("scaling", runs)


def trajectory() -> StudyReport:
    final, others = targets_in(LLAMA, "down", 0, 10), targets_in(LLAMA, "up", 1, 40)
    tops = [final[:2] + others[:8] + final[2:4], final[:5], final[:9], final]
    runs = []
    for place, (name, top) in enumerate(zip(("step1", "step1000", "step64000", "main"), tops, strict=True)):
        filled = top + [target for target in others if target not in top][: 20 - len(top)]
        damage = [Planted(METRIC, k, 0.01 * 5**place, error=0.004 * 3**place) for k in (10, 20)]
        runs.append(planted_run("pythia", tops={METRIC: filled}, damage=damage, revision=name))
    return study("trajectory", runs, "model", "revision")


def transfer() -> StudyReport:
    k, top = 20, targets_in(LLAMA, "down", 1, 20)

    def model(name: str, targets: list[str], delta: float, seed: int) -> RunReport:
        return planted_run(name, damage=[Planted(METRIC, k, delta, error=0.05, seed=seed)], tops={METRIC: targets})

    def given(name: str, delta: float) -> RunReport:
        damage = [Planted("given", k, delta, error=0.05, seed=9)]
        return planted_run(name, damage=damage, metrics=[], weights=top, topk=[k])

    tuned, other = top[:15] + targets_in(LLAMA, "up", 2, 5), targets_in(LLAMA, "o", 3, k)
    runs = [
        model("base", top, 0.8, 0), model("tuned", tuned, 0.6, 1), model("other", other, 0.9, 2), given("tuned", 0.5),
        given("other", 0.004),
    ]  # fmt: skip
    return study("transfer", runs)


def stability() -> StudyReport:
    tops = {"a": targets_in(LLAMA, "down", 0, 20), "b": targets_in(LLAMA, "q", 2, 20)}
    runs = [
        planted_run("m", tops={"taylor": top[: 20 - seed] + targets_in(LLAMA, "o", 3, seed, first=7 * seed)}, topk=[20],
                    seed=seed, dataset=name, text_seed=name)
        for name, top in tops.items()
        for seed in range(3)
    ]  # fmt: skip
    return study("stability", runs, "model", "dataset", "seed")


def metrics() -> StudyReport:
    runs = []
    for number in range(2):
        rng = np.random.default_rng(number)
        harm = rng.normal(size=60)
        noise = {"magnitude": 3.0, METRIC: 0.3, "taylor": 0.8}
        scores = {name: np.exp(3 * (harm + level * rng.normal(size=60))) for name, level in noise.items()}
        rows = [
            Prediction(
                f"w[{n},0]", "all", float(np.exp(3 * harm[n])), 0.0, 1.0, tuple(float(s[n]) for s in scores.values())
            )
            for n in range(60)
        ]
        tops = {name: targets_in(LLAMA, "down", 0, 10, first=4 * place) for place, name in enumerate(noise)}
        answers = [Predictions(tuple(rows), tuple(fidelities(rows, list(noise))))]
        runs.append(planted_run(f"m{number}", answers=answers, fidelity=60, tops=tops))
    return study("metrics", runs)


def architecture() -> StudyReport:
    def model(layout: Layout, name: str, places: dict[tuple[str, int], int]) -> RunReport:
        targets = [t for (part, layer), count in places.items() for t in targets_in(layout, part, layer, count)]
        return planted_run(name, layout=layout, damage=[Planted(METRIC, 40, 0.5)], tops={METRIC: targets})

    runs = [
        model(layout, f"{name}{number}", {("down", 0): 20 + number, ("o", 2): 15 - number, ("up", 3): 5})
        for layout, name in ((LLAMA, "llama"), (NEOX, "neox"), (GPT2, "gpt2"))
        for number in range(2)
    ]
    return study("architecture", runs)


def min_size() -> StudyReport:
    runs = []
    for millions, common in ((1, 3), (10, 12), (100, 15), (1000, 20)):
        halves = [HalfOverlap(METRIC, 20, common, common, common, common, 0.01)]
        tops = {METRIC: targets_in(LLAMA, "down", 1, 20)}
        damage = [Planted(METRIC, 20, 0.5)]
        runs.append(planted_run(f"m{millions}", parameters=millions * 10**6, damage=damage, tops=tops, halves=halves))
    return study("min-size", runs)


STUDIES = {
    "scaling": scaling, "trajectory": trajectory, "transfer": transfer, "stability": stability, "metrics": metrics,
    "architecture": architecture, "min-size": min_size,
}  # fmt: skip


def comparison() -> Comparison:
    """Two runs of one model by other texts."""
    return compare(
        damaged_run(run_id="20260101-000000-aaaa"), damaged_run(text_seed="other texts", run_id="20260101-000000-bbbb")
    )


@functools.cache
def card() -> WeightCard:
    """The card of a weight of a down projection of a tiny model."""
    spec = RunSpec(model="tiny", data_file=_text_file(), weights=("model.layers.0.mlp.down_proj.weight[3,5]",))
    return weight_card(wrap(tiny_model("llama")), spec)


SOURCES: dict[Source, Callable[[], list[Any]]] = {
    "run": lambda: [measured_run(), damaged_run()],
    "study": lambda: [make() for make in STUDIES.values()],
    "comparison": lambda: [comparison()],
    "weight": lambda: [card()],
}
