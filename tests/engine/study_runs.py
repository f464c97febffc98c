"""Finished runs with planted figures, for questions of studies: no model is loaded, and every figure is the test's own.

run = planted_run("tiny-1", parameters=10**6, damage=[Planted("grad_x_weight", 10, delta=0.5, error=0.02)])
runs = study_runs([run, other])
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from cwa_engine.records.export import ModelRecord, RunRecord
from cwa_engine.records.run_report import RunReport, report_of
from cwa_engine.result import RunResult
from cwa_engine.rows import (
    Baseline,
    DamagePoint,
    HalfOverlap,
    NumericalFloor,
    RankedParameter,
    Ranking,
    Separation,
    SequenceNll,
    TextUse,
    TopWeight,
    Verdict,
)
from cwa_engine.spec import parse_spec
from cwa_engine.studies.answer import StudyRun
from cwa_engine.studies.study import Cell

TOKENS = 20  # scored tokens of each text

# (name of a parameter of a block, its component, out_features and in_features as multiples of the width)
Layout = tuple[tuple[str, str, int, int], ...]
LLAMA: Layout = (
    ("model.layers.#.self_attn.q_proj.weight", "q", 1, 1),
    ("model.layers.#.self_attn.o_proj.weight", "o", 1, 1),
    ("model.layers.#.mlp.up_proj.weight", "up", 4, 1),
    ("model.layers.#.mlp.down_proj.weight", "down", 1, 4),
)
NEOX: Layout = (
    ("gpt_neox.layers.#.attention.query_key_value.weight", "qkv", 3, 1),
    ("gpt_neox.layers.#.attention.dense.weight", "o", 1, 1),
    ("gpt_neox.layers.#.mlp.dense_h_to_4h.weight", "up", 4, 1),
    ("gpt_neox.layers.#.mlp.dense_4h_to_h.weight", "down", 1, 4),
)
GPT2: Layout = (
    ("transformer.h.#.attn.c_attn.weight", "qkv", 3, 1),
    ("transformer.h.#.attn.c_proj.weight", "o", 1, 1),
    ("transformer.h.#.mlp.c_fc.weight", "up", 4, 1),
    ("transformer.h.#.mlp.c_proj.weight", "down", 1, 4),
)


@dataclass(frozen=True)
class Planted:
    """A critical set and its worst control: changes of the loss in nats per token, with their standard errors.

    `delta` may be infinite: the model collapsed. Without `worst` there are no controls. Texts differ by random numbers of
    their own for every `seed`; `changes` are those of each text in nats per token, instead of `delta` and `error`.
    """

    metric: str = "grad_x_weight"
    k: int = 10
    delta: float = 0.5
    error: float = 0.02
    worst: float | None = 0.01
    worst_error: float = 0.002
    outcome: str | None = None  # by default what `delta` and `worst` come to
    perturbation: str = "zero"
    control: str = "random"
    changes: tuple[float, ...] = ()
    seed: int = 0


def planted_run(model: str = "tiny", **planted: Any) -> RunReport:
    """The report of `planted_record`, which takes the same."""
    return report_of(planted_record(model, **planted))


def planted_record(
    model: str = "tiny",
    *,
    parameters: int = 1_000_000,
    layers: int = 4,
    layout: Layout = LLAMA,
    width: int = 64,
    damage: Sequence[Planted] = (),
    tops: Mapping[str, Sequence[str]] | None = None,  # metric -> targets, best first
    halves: Sequence[HalfOverlap] = (),
    answers: Sequence[object] = (),  # of questions to the run, as in RunResult
    texts: int = 32,  # evaluation texts
    nll: float = 3.0,
    bits_per_byte: float | None = 1.2,
    vocabulary: int = 50_000,
    tokens: int = TOKENS,  # of each text
    text_seed: str = "texts",  # runs with the same have the same texts
    truncated: int = 0,  # texts that were cut
    dtype: str = "float32",
    revision: str | None = None,
    files: Mapping[str, str] | None = None,  # by default those of a model of this name and revision
    floor: float = 1e-7,
    run_id: str = "",
    **options: Any,  # of the spec
) -> RunRecord:
    """The record of a run that found this. Perplexities, intervals and losses of each text follow from `damage`."""
    ranked = ranked_parameters(layout, layers, width, tuple(tops or ()) or ("grad_x_weight",))
    rankings = tuple(_ranking(metric, targets, ranked) for metric, targets in (tops or {}).items())
    ks = sorted({case.k for case in damage}) or [max([len(t) for t in (tops or {}).values()], default=10)]
    names = list(tops or {}) or list(dict.fromkeys(case.metric for case in damage)) or ["grad_x_weight"]
    asked = {
        "metrics": [name for name in names if name != "given" and not name.endswith("_matrices")],
        "topk": ks,
        "perturbations": list(dict.fromkeys(case.perturbation for case in damage)),
        "controls": list(dict.fromkeys(case.control for case in damage if case.worst is not None)),
    }
    spec = parse_spec({"model": model, "revision": revision, "dtype": dtype, "matrices": False, **asked, **options})
    result = RunResult(
        parameters=parameters,
        eligible=sum(row.units for row in ranked),
        texts=_texts(text_seed, texts, bool(damage), truncated),
        baseline=Baseline(
            nll, math.exp(nll), bits_per_byte, texts, texts * tokens, "texts of at most 512 tokens", vocabulary
        ),
        rankings=rankings,
        ranked=ranked,
        layers=layers,
        halves=tuple(halves),
        damage=tuple(row for case in damage for row in _points(case, nll, texts, tokens)),
        separations=tuple(_separation(case, texts) for case in damage if case.worst is not None),
        verdicts=tuple(Verdict(c.metric, c.k, c.perturbation, _outcome(c), f"planted: {_outcome(c)}") for c in damage),
        evaluations=tuple(_evaluations(damage, nll, texts, tokens)) if damage else (),
        answers=tuple(answers),
        floor=NumericalFloor(0.0, floor),
    )
    known = files if files is not None else {"model.safetensors": _sha256(f"{model}@{revision}")}
    record = ModelRecord(model, f"/models/{model}", "folder", revision, dict(known), dtype, "cpu", "", parameters)
    name = run_id or f"20260101-000000-{_sha256(f'{model}{revision}{spec.sha256()}{text_seed}')[:4]}"
    return RunRecord(name, spec, "", record, result, 1.5, [])


def study_runs(reports: Sequence[RunReport], *grid: str) -> list[StudyRun]:
    """The cells of a study over these fields of the spec, by default its models, each with its run."""
    names = grid or ("model",)
    return [
        StudyRun(Cell(number, {name: str(getattr(report.spec, name)) for name in names}, report.spec), report)
        for number, report in enumerate(reports, start=1)
    ]


def ranked_parameters(
    layout: Layout, layers: int, width: int, metrics: Sequence[str] = ("grad_x_weight",)
) -> tuple[RankedParameter, ...]:
    """Every parameter of a model of this layout, as its runs list them."""
    return tuple(
        RankedParameter(name.replace("#", str(layer)), component, layer, rows * columns * width * width, tuple(metrics))
        for layer in range(layers)
        for name, component, rows, columns in layout
    )


def targets_in(layout: Layout, component: str, layer: int, count: int, *, first: int = 0) -> list[str]:
    """`count` different weights of one parameter, from the diagonal on: the same call names the same weights."""
    name = next(name for name, of, _, _ in layout if of == component).replace("#", str(layer))
    return [f"{name}[{number % 64},{number // 64}]" for number in range(first, first + count)]


def _ranking(metric: str, targets: Sequence[str], ranked: Sequence[RankedParameter]) -> Ranking:
    by_name = {row.parameter: row for row in ranked}
    weights = []
    for rank, target in enumerate(targets, start=1):
        parameter, _, inside = target.removesuffix("]").rpartition("[")
        out_feature, in_feature = (int(index) for index in inside.split(","))
        place = by_name[parameter]
        weights.append(
            TopWeight(
                rank, parameter, out_feature * 64 + in_feature, out_feature, in_feature, 0.1, 1 / rank, place.layer,
                place.component, None, target,
            )
        )  # fmt: skip
    return Ranking(metric, tuple(weights), parameters=tuple(by_name))


def _texts(seed: str, count: int, damaged: bool, truncated: int) -> TextUse:
    return TextUse(
        source=seed,
        sha256=_sha256(seed),
        texts=2 * count,
        scoring=count,
        evaluation=count,
        shared=False,
        truncated=truncated,
        scoring_sha256=_sha256(f"{seed} scoring"),
        evaluation_sha256=_sha256(f"{seed} evaluation"),
        seq_len=512,
        damage=count if damaged else 0,
    )


def _changes(case: Planted, delta: float, error: float, texts: int) -> np.ndarray[Any, Any]:
    """Changes of each text, in nats per token, whose mean has exactly this standard error."""
    if case.changes and delta == case.delta:
        return np.array(case.changes)
    if not math.isfinite(delta):
        return np.full(texts, math.inf)
    spread = np.random.default_rng([case.seed, case.k, round(1e6 * delta) % 2**32]).normal(size=texts)
    spread = (spread - spread.mean()) / spread.std(ddof=1)
    return delta + error * math.sqrt(texts) * spread


def _points(case: Planted, nll: float, texts: int, tokens: int) -> list[DamagePoint]:
    points = [_point(case, "critical", None, case.delta, case.error, nll, texts)]
    if case.worst is not None:
        points.append(_point(case, case.control, 0, case.worst, case.worst_error, nll, texts))
    return points


def _point(
    case: Planted, selection: str, seed: int | None, delta: float, error: float, nll: float, texts: int
) -> DamagePoint:
    changes = _changes(case, delta, error, texts)
    mean = float(changes.mean())
    finite = math.isfinite(mean)
    reach = half_interval(float(changes.std(ddof=1)) / math.sqrt(texts), texts) if finite else math.nan
    return DamagePoint(
        case.metric, case.k, case.perturbation, selection, seed, case.k, nll + mean,
        math.exp(nll + mean) if finite else math.inf, mean, mean - reach, mean + reach,
        math.exp(mean) if finite else math.inf, collapsed_at=None if finite else "block 0", sequences=texts,
    )  # fmt: skip


def half_interval(error: float, texts: int) -> float:
    """Half a 95 % interval of a run, of a standard error: Student's t, widened by 1 + 2/n."""
    return (1 + 2 / texts) * float(stats.t.ppf(0.975, texts - 1)) * error


def _outcome(case: Planted) -> str:
    if case.outcome is not None:
        return case.outcome
    if case.worst is None:
        return "not tested"
    if not abs(case.delta) > abs(case.worst):
        return "indistinguishable"
    return "harmful" if case.delta > 0 else "helpful"


def _separation(case: Planted, texts: int) -> Separation:
    assert case.worst is not None
    beyond = abs(case.delta) > abs(case.worst)
    reach = half_interval(case.worst_error, texts)
    finite = math.isfinite(case.delta) and math.isfinite(case.worst)
    return Separation(
        metric=case.metric,
        k=case.k,
        perturbation=case.perturbation,
        control=case.control,
        draws=19,
        texts=texts,
        critical=case.delta if math.isfinite(case.delta) else None,
        median=case.worst / 2 if math.isfinite(case.worst) else None,
        as_extreme=0 if beyond else 10,
        p_value=0.05 if beyond else 0.55,
        largest=case.worst if math.isfinite(case.worst) else None,
        largest_low=case.worst - reach if math.isfinite(case.worst) else None,
        largest_high=case.worst + reach if math.isfinite(case.worst) else None,
        ratio=abs(case.delta) / abs(case.worst) if finite and case.worst else None,
        beyond=beyond,
    )


def _evaluations(damage: Sequence[Planted], nll: float, texts: int, tokens: int) -> list[SequenceNll]:
    rows = [SequenceNll("", None, "", "intact", None, text + 1, tokens, nll * tokens) for text in range(texts)]
    for case in damage:
        cases: list[tuple[str, int | None, float, float]] = [("critical", None, case.delta, case.error)]
        if case.worst is not None:
            cases.append((case.control, 0, case.worst, case.worst_error))
        for selection, seed, delta, error in cases:
            changes = _changes(case, delta, error, texts)
            rows += [
                SequenceNll(
                    case.metric, case.k, case.perturbation, selection, seed, text + 1, tokens,
                    (nll + float(change)) * tokens,
                )
                for text, change in enumerate(changes)
            ]  # fmt: skip
    return rows


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
