"""Scores that are known are not computed again, and nothing is taken for the same that is not."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cwa_engine.base.events import Event, Note, StageStarted
from cwa_engine.hub.sources import HubAccess
from cwa_engine.models.loading import LoadedModel, load_model
from cwa_engine.pipeline import analyze
from cwa_engine.records.export import run_tables
from cwa_engine.rows import Ranking, TopWeight
from cwa_engine.sensitivity import score_cache
from cwa_engine.sensitivity.score_cache import ScoreCache
from cwa_engine.spec import RunSpec

FIELDS: dict[str, Any] = {"model": "gpt2", "topk": (5, 20), "eval_limit": 6, "control_seeds": 1, "matrices": False}


@pytest.fixture(scope="module")
def loaded(hub: Path) -> LoadedModel:
    return load_model("gpt2", access=HubAccess(cache_dir=str(hub / "hub"), offline=True))


@pytest.fixture
def cache(tmp_path: Path) -> ScoreCache:
    return ScoreCache(tmp_path / "cache", 10**8, "the-first-run")


class Listener:
    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    @property
    def stages(self) -> list[str]:
        return [event.stage for event in self.events if isinstance(event, StageStarted)]

    @property
    def notes(self) -> str:
        return " | ".join(event.text for event in self.events if isinstance(event, Note))


def tables(loaded: LoadedModel, cache: ScoreCache | None, **fields: Any) -> tuple[dict[str, bytes], Listener, Any]:
    listener = Listener()
    result = analyze(loaded, RunSpec(**{**FIELDS, **fields}), listener, cache)
    return dict(run_tables(result)), listener, result


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"topk": (3,)},
        {"topk": (800,)},
        {"perturbations": ("sign_flip",), "control_seeds": 3},
        {"scope": "per_layer"},
        {"structure": "row"},
        {"controls": ("bottom", "random")},
        {"matrices": True},
        {"metrics": ("grad_x_weight", "magnitude", "wanda")},
    ],
    ids=str,
)
def test_a_run_on_known_scores_finds_the_same_bytes_without_scoring(
    loaded: LoadedModel, cache: ScoreCache, fields: dict[str, Any]
) -> None:
    without, _, _ = tables(loaded, None, **fields)
    kind = {name: fields[name] for name in ("scope", "structure", "controls", "metrics", "matrices") if name in fields}
    tables(loaded, cache, **kind)
    again, listener, result = tables(loaded, cache, **fields)
    assert again == without
    assert "score" not in listener.stages
    assert set(result.scores_from.values()) == {"the-first-run"}
    assert "scores are those of the-first-run" in listener.notes


def test_of_several_metrics_only_those_are_scored_that_are_not_known(loaded: LoadedModel, cache: ScoreCache) -> None:
    without, _, _ = tables(loaded, None, metrics=("magnitude", "grad_x_weight"))
    tables(loaded, cache, metrics=("magnitude",))
    again, listener, result = tables(loaded, cache, metrics=("magnitude", "grad_x_weight"))
    assert (again, list(result.scores_from)) == (without, ["magnitude"])
    assert "score" in listener.stages


@pytest.mark.parametrize(
    "fields",
    [
        {"metrics": ("grad_squared",)},
        {"eval_limit": 8},
        {"seq_len": 16},
        {"packed": True},
        {"bos": "always"},
        {"seed": 1},
        {"include": ("transformer.h.0.*",)},
        {"structure": "row"},
        {"scope": "per_layer"},
        {"batch_size": 2},
        {"gradients": "sweep"},
        {"topk": (2000,)},
        {"controls": ("bottom",)},
        {"fidelity": 2},
    ],
    ids=str,
)
def test_other_inputs_are_scored_anew(loaded: LoadedModel, cache: ScoreCache, fields: dict[str, Any]) -> None:
    tables(loaded, cache)
    _, listener, result = tables(loaded, cache, **fields)
    assert "score" in listener.stages
    assert result.scores_from == {}


def test_other_weights_or_other_code_are_scored_anew(
    loaded: LoadedModel, cache: ScoreCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables(loaded, cache)
    other = dataclasses.replace(loaded, files=dict.fromkeys(loaded.files, "0" * 64))
    assert tables(other, cache)[2].scores_from == {}
    monkeypatch.setattr(score_cache, "code_sha256", lambda: "a formula was changed")
    assert tables(loaded, cache)[2].scores_from == {}


def test_a_damaged_entry_is_computed_again_and_replaced(loaded: LoadedModel, cache: ScoreCache) -> None:
    first, _, _ = tables(loaded, cache)
    for path in cache.folder.iterdir():
        path.write_bytes(path.read_bytes()[:100])
    second, listener, _ = tables(loaded, cache)
    assert (second, "score" in listener.stages) == (first, True)
    assert "score" not in tables(loaded, cache)[1].stages


def test_a_folder_that_cannot_be_written_only_warns(loaded: LoadedModel, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    found, listener, _ = tables(loaded, ScoreCache(tmp_path / "cache", 10**8))
    assert found == tables(loaded, None)[0]
    assert "scores cannot be kept" in listener.notes


rows = st.builds(
    TopWeight,
    rank=st.integers(1, 9),
    parameter=st.text(max_size=9),
    flat_index=st.integers(0, 2**40),
    out_feature=st.none() | st.integers(0, 9),
    in_feature=st.none(),
    value=st.floats(allow_nan=False),
    score=st.none() | st.floats(allow_nan=False),
    layer=st.none() | st.integers(0, 9),
    component=st.text(max_size=9),
    expert=st.none(),
    target=st.text(max_size=9),
)
rankings = st.builds(
    Ranking,
    metric=st.text(max_size=9),
    weights=st.lists(rows, max_size=4).map(tuple),
    lowest=st.lists(rows, max_size=4).map(tuple),
    parameters=st.lists(st.text(max_size=9), max_size=3).map(tuple),
)


@given(rankings)
def test_an_entry_comes_back_as_it_was(tmp_path_factory: pytest.TempPathFactory, ranking: Ranking) -> None:
    cache = ScoreCache(tmp_path_factory.mktemp("cache"), 10**8, "run")
    cache.put("key", ranking, 10)
    kept = cache.get("key", 10, False)
    assert kept and (kept.ranking, kept.run_id) == (ranking, "run")
    assert cache.get("key", 11, False) is None
    assert (cache.get("key", 1, True) is None) == (not ranking.lowest)


def test_above_the_limit_the_least_recently_used_goes(tmp_path: Path) -> None:
    cache = ScoreCache(tmp_path, 10**8)
    ranking = Ranking("magnitude", (), parameters=("x" * 1000,))
    for key in ("a", "b", "c"):
        cache.put(key, ranking, 1)
    cache.get("a", 1, False)
    size = (tmp_path / "a.json").stat().st_size
    (tmp_path / "gone.json").symlink_to(tmp_path / "nowhere")  # as an entry that another worker has just removed
    ScoreCache(tmp_path, 3 * size + 10).put("d", ranking, 1)
    assert sorted(path.stem for path in tmp_path.iterdir() if path.exists()) == ["a", "c", "d"]
