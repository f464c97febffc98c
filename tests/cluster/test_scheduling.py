"""Who runs what: each model is loaded as rarely as possible, and no slot is idle while a run waits."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cwa_daemon.cluster.scheduling import ModelName, Waiting, next_run
from cwa_daemon.cluster.slots import Node, slot_shapes
from cwa_engine import DoesNotFit


def named(model: str) -> ModelName:
    return ModelName(model, None, "auto", "none")


def waiting(*models: str) -> list[Waiting]:
    return [Waiting(f"{number}-{model}", named(model)) for number, model in enumerate(models)]


def taken(models: Sequence[str], warm: Sequence[str], *others: Sequence[str]) -> str | None:
    elsewhere = {number: [named(model) for model in each] for number, each in enumerate(others)}
    found = next_run(waiting(*models), [named(model) for model in warm], elsewhere)
    return found.run_id if found else None


def test_a_slot_goes_on_with_the_model_that_it_used_last() -> None:
    assert taken(["a", "b", "b", "a"], ["b", "a"], []) == "0-a"
    assert taken(["a", "b", "b"], ["a", "b"], []) == "1-b"


def test_a_cold_slot_takes_the_model_with_most_runs_left_that_nobody_has() -> None:
    assert taken(["a", "b", "c", "c"], [], ["a"]) == "2-c"
    assert taken(["a", "a", "a", "b"], [], ["a"]) == "3-b"


def test_a_slot_shares_the_model_that_has_most_runs_left_for_each_slot() -> None:
    assert taken(["a", "a", "a", "b", "b"], [], ["a"], ["a"], ["b"]) == "3-b"
    assert taken([], ["a"]) is None


@given(
    models=st.lists(st.sampled_from("abcd"), min_size=1, max_size=30),
    seconds=st.lists(st.floats(0.1, 9.0), min_size=30, max_size=30),
    slots=st.integers(1, 4),
)
def test_every_run_begins_once_no_slot_is_idle_and_few_loads_are_made(
    models: list[str], seconds: list[float], slots: int
) -> None:
    warm: dict[int, list[ModelName]] = {slot: [] for slot in range(slots)}
    left, begun, loads = waiting(*models), list[str](), 0
    free = [(0.0, slot) for slot in range(slots)]
    while left:
        now, slot = heapq.heappop(free)
        others = {number: each for number, each in warm.items() if number != slot}
        run = next_run(left, warm[slot], others)
        assert run, "a slot is idle while runs wait"
        loads += run.model not in warm[slot]
        warm[slot] = [*(model for model in warm[slot] if model != run.model), run.model]
        left.remove(run)
        begun.append(run.run_id)
        heapq.heappush(free, (now + seconds[len(begun) % 30], slot))
    assert sorted(begun) == sorted(each.run_id for each in waiting(*models))
    kinds = len(set(models))
    assert loads <= kinds + slots * (slots - 1) // 2  # once each, and where slots share what is left
    if slots == 1:
        assert [model for model, _ in itertools.groupby(each.rpartition("-")[2] for each in begun)] == list(
            dict.fromkeys(each.rpartition("-")[2] for each in begun)
        )


def test_slots_are_gpus_where_there_are_some_else_nodes() -> None:
    cards = [Node("one", 16, 4), Node("other", 8, 1)]
    assert [(s.gpus, s.cpus) for s in slot_shapes(cards, None, None, None)] == [(1, 4.0)] * 4 + [(1, 8.0)]
    assert [(s.gpus, s.cpus) for s in slot_shapes(cards, None, 2, None)] == [(2, 8.0)] * 2
    assert [(s.gpus, s.cpus) for s in slot_shapes(cards, None, 0, None)] == [(0, 16.0), (0, 8.0)]
    plain = [Node("one", 8, 0), Node("other", 4, 0)]
    assert [s.cpus for s in slot_shapes(plain, None, None, None)] == [8.0, 4.0]
    assert [s.cpus for s in slot_shapes(plain, None, None, 4)] == [4.0, 4.0, 4.0]
    assert [(s.cpus, s.threads) for s in slot_shapes([Node("laptop", 2, 0)], 2, None, None)] == [(1.0, 1)] * 2
    assert [(s.cpus, s.threads) for s in slot_shapes([Node("laptop", 1, 0)], 2, None, None)] == [(0.5, 1)] * 2
    assert len(slot_shapes(cards, 9, None, None)) == 9  # a node may still come
    assert sum(s.share for s in slot_shapes(plain, None, None, 4)[:2]) == 1.0
    with pytest.raises(DoesNotFit, match=r"no node .* has 8 GPUs; one has 4 GPUs and 16 CPUs"):
        slot_shapes(cards, None, 8, None)
