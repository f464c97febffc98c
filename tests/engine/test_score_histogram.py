"""scores.csv: how many of all units have a score of what size, counted in the pass that ranks them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import cwa_engine as cwa
from cwa_engine.pipeline import analyze
from cwa_engine.records import tables
from cwa_engine.records.export import run_tables
from cwa_engine.records.verification import verify
from cwa_engine.rows import ScoreBin
from cwa_engine.sensitivity.score_cache import ScoreCache
from cwa_engine.sensitivity.score_counts import ScoreCounts
from cwa_engine.spec import RunSpec
from tests.engine.conftest import TEXTS, wrap, write_texts
from tests.models import tiny_model, tiny_tokenizer

FINEST = 2.0**-126  # the smallest normal float32; below it all bins are as wide as the lowest of those above


def edges() -> np.ndarray[Any, np.dtype[np.float64]]:
    """The edges of all bins of positive scores, by the rule of docs/method.md: eight bins for each doubling."""
    normal = [2.0**power * (1 + part / 8) for power in range(-126, 128) for part in range(8)]
    return np.array([2.0**-149, *(FINEST * part / 8 for part in range(1, 8)), *normal, 2.0**128])


def counted(rows: list[ScoreBin] | tuple[ScoreBin, ...]) -> dict[int, dict[float, int]]:
    """sign -> lower edge -> count."""
    found: dict[int, dict[float, int]] = {1: {}, -1: {}}
    for row in rows:
        if row.sign:
            assert row.low is not None and row.low not in found[row.sign]
            found[row.sign][row.low] = row.count
    return found


def by_numpy(sizes: np.ndarray[Any, np.dtype[np.float64]]) -> dict[float, int]:
    """Lower edge -> count of the |scores|, without empty bins."""
    counts, lows = np.histogram(sizes, edges())
    return {float(low): int(count) for low, count in zip(lows, counts, strict=False) if count}


def analysed(model: Any, folder: Path, cache: ScoreCache | None = None, **fields: Any) -> tuple[Any, bytes]:
    spec = {"model": "tiny", "data_file": write_texts(folder), "topk": (3,), "perturbations": (), "matrices": False}
    result = analyze(wrap(model), RunSpec(**{**spec, **fields}), cache=cache)
    return result, dict(run_tables(result))["scores.csv"]


def reported() -> cwa.RunReport:
    options: dict[str, Any] = {"metrics": ["grad_x_weight"], "topk": [3], "perturbations": (), "matrices": False}
    return cwa.analyze(tiny_model("llama"), tokenizer=tiny_tokenizer(), texts=TEXTS, **options)


def magnitudes(model: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.concatenate([p.detach().abs().double().flatten().numpy() for p in model.parameters()])


@pytest.mark.parametrize("family", ["gpt2", "llama", "mixtral"])
def test_the_counts_are_those_of_numpy_over_all_scores(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    next(model.parameters()).data.view(-1)[:6] = torch.tensor([0.0, -0.0, 1e-45, -3e-39, 2.0**-126, 1.0])
    result, content = analysed(model, tmp_path, metrics=("magnitude",), eval_limit=2)
    rows = tables.SCORES.from_bytes(content)
    scores = magnitudes(model)
    assert counted(rows) == {1: by_numpy(scores[scores > 0]), -1: {}}
    assert next(row.count for row in rows if row.sign == 0) == int((scores == 0).sum()) >= 2
    assert rows[-1] == ScoreBin("magnitude", None, None, None, 0)
    assert sum(row.count for row in rows) == result.eligible


def test_the_gradient_times_the_weight_of_every_unit_is_counted(tmp_path: Path) -> None:
    model = tiny_model("llama")
    _, content = analysed(model, tmp_path, eval_limit=2)  # the first text is scored, the second evaluated
    tokens = torch.tensor([tiny_tokenizer()(TEXTS[0])["input_ids"]])
    torch.nn.functional.cross_entropy(model(tokens).logits[0, :-1], tokens[0, 1:]).backward()
    scores = torch.cat([(p.detach() * p.grad).abs().double().flatten() for p in model.parameters()]).numpy()
    found, expected = counted(tables.SCORES.from_bytes(content))[1], by_numpy(scores[scores > 0])
    assert sum(found.values()) == sum(expected.values())
    moved = sum(abs(found.get(low, 0) - expected.get(low, 0)) for low in {*found, *expected})
    assert moved < len(scores) / 1000  # what rounding moves over an edge


@given(arrays(np.float32, st.integers(0, 200), elements=st.floats(width=32)), st.integers(1, 7))
def test_any_floats_in_any_pieces_are_counted_where_they_belong(values: np.ndarray[Any, Any], piece: int) -> None:
    counts = ScoreCounts()
    for start in range(0, max(1, len(values)), piece):
        counts.offer(torch.from_numpy(values[start : start + piece]))
    rows = counts.rows("any")
    exact = values.astype(np.float64)
    finite = exact[np.isfinite(exact)]
    assert counted(rows) == {1: by_numpy(finite[finite > 0]), -1: by_numpy(-finite[finite < 0])}
    zeros, odd = (next(row.count for row in rows if row.sign == sign) for sign in (0, None))
    assert (zeros, odd) == (int((finite == 0).sum()), len(exact) - len(finite))
    signed = [row.sign * row.low for row in rows if row.sign is not None and row.low is not None]
    assert signed == sorted(signed)


@pytest.mark.parametrize("structure", ["weight", "row", "column", "head"])
def test_block_by_block_gives_the_same_bytes_as_all_at_once(structure: str, tmp_path: Path) -> None:
    model = tiny_model("gpt2")
    metrics = ("grad_x_weight", "obd", "wanda", "magnitude")
    _, resident = analysed(model, tmp_path, gradients="resident", structure=structure, metrics=metrics)
    result, sweep = analysed(model, tmp_path, gradients="sweep", structure=structure, metrics=metrics)
    assert sweep == resident
    units = {m: sum(row.units for row in result.ranked if m in row.metrics) for m in metrics}
    rows = tables.SCORES.from_bytes(sweep)
    assert {m: sum(row.count for row in rows if row.metric == m) for m in metrics} == units


def test_repeats_and_halves_count_nothing_twice(tmp_path: Path) -> None:
    model = tiny_model("llama")
    _, plain = analysed(model, tmp_path)
    _, repeated = analysed(model, tmp_path, stability=3)
    assert repeated == plain


def test_the_matrices_are_counted_under_their_own_name(tmp_path: Path) -> None:
    result, content = analysed(tiny_model("llama"), tmp_path, matrices=True)
    rows = tables.SCORES.from_bytes(content)
    sums = {m: sum(row.count for row in rows if row.metric == m) for m in ("grad_x_weight", "grad_x_weight_matrices")}
    assert sums["grad_x_weight"] == result.eligible > sums["grad_x_weight_matrices"] > 0


@pytest.mark.parametrize("k", [(3,), (2, 5)])
def test_scores_that_were_kept_come_with_their_counts(k: tuple[int, ...], tmp_path: Path) -> None:
    model, cache = tiny_model("llama"), ScoreCache(tmp_path / "cache", 10**8, "first")
    _, cold = analysed(model, tmp_path, cache)
    result, warm = analysed(model, tmp_path, cache, topk=k)
    assert result.scores_from == {"grad_x_weight": "first"}
    assert warm == cold


def test_the_tail_is_that_of_the_ranking(tmp_path: Path) -> None:
    result, content = analysed(tiny_model("llama"), tmp_path, topk=(200,))
    (ranking,) = result.rankings
    scores = np.array([weight.score for weight in ranking.weights])
    rows = [row for row in tables.SCORES.from_bytes(content) if row.low is not None and row.low > scores.min()]
    assert rows and {row.low: row.count for row in rows} == by_numpy(scores[scores >= rows[0].low])


def test_given_weights_and_measured_ones_have_no_counts(tmp_path: Path) -> None:
    weights = ("model.norm.weight[3]",)
    spec = RunSpec(model="tiny", data_file=write_texts(tmp_path), metrics=(), weights=weights, topk=(1,))
    assert "scores.csv" not in dict(run_tables(analyze(wrap(tiny_model("llama")), spec)))


def test_a_report_has_the_counts_and_one_of_an_earlier_version_has_none(tmp_path: Path) -> None:
    report = reported()
    assert report.scores == tuple(tables.SCORES.from_bytes(report.files.read("scores.csv")))
    frame = report.frame("scores")
    assert list(frame.columns) == ["metric", "sign", "low", "high", "count"]
    assert frame["count"].sum() == report.summary.eligible
    earlier = dataclasses.replace(report, hashes={n: h for n, h in report.hashes.items() if n != "scores.csv"})
    assert earlier.scores == () and earlier.frame("scores").empty


def test_a_count_that_was_altered_is_found(tmp_path: Path) -> None:
    report = reported()
    folder = report.save(tmp_path / "run")
    assert verify(folder).agrees
    path = folder / "scores.csv"
    rows = list(report.scores)
    tail = next(place for place in reversed(range(len(rows))) if rows[place].sign == 1)
    for place, what in ((3, "all counts"), (tail, "the tail")):
        changed = [dataclasses.replace(row, count=row.count + (at == place)) for at, row in enumerate(rows)]
        path.write_bytes(tables.SCORES.to_bytes(changed))
        assert any(what in found.where for found in verify(folder).disagreements)
