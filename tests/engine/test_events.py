"""Events that travel as JSON and come back as what they were."""

from __future__ import annotations

import dataclasses
import json
import math
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cwa_engine import prompt_rows, rows, weight_rows
from cwa_engine.base import events
from cwa_engine.base.errors import VersionMismatch
from cwa_engine.base.event_reader import event_from_plain
from cwa_engine.base.events import BaselineMeasured, DamageMeasured, Event, Note, StageFinished, describe, to_dict
from cwa_engine.rows import Baseline, DamagePoint

KINDS = {found.kind: found for found in vars(events).values() if isinstance(found, type) and hasattr(found, "kind")}

BASIC: dict[Any, st.SearchStrategy[Any]] = {
    str: st.text(),
    int: st.integers(),
    bool: st.booleans(),
    float: st.floats(allow_nan=False, allow_infinity=False),
}


def values(type_: Any) -> st.SearchStrategy[Any]:
    """Any value of a field's type, numbers being finite."""
    if isinstance(type_, UnionType):
        return st.none() | values(get_args(type_)[0])
    if get_origin(type_) is tuple:
        return st.lists(values(get_args(type_)[0]), max_size=3).map(tuple)
    if get_origin(type_) is dict:
        return st.dictionaries(*(values(part) for part in get_args(type_)), max_size=3)
    if dataclasses.is_dataclass(type_):
        kind: Any = type_
        types = get_type_hints(kind, localns=vars(rows) | vars(prompt_rows) | vars(weight_rows))
        return st.builds(kind, **{field.name: values(types[field.name]) for field in dataclasses.fields(kind)})
    return BASIC[type_]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_an_event_that_travelled_as_json_is_the_event_it_was(kind: str, data: st.DataObject) -> None:
    event = data.draw(values(KINDS[kind]))
    assert isinstance(event, Event)
    assert event_from_plain(json.loads(json.dumps(to_dict(event)))) == event


def test_every_kind_of_event_is_tried() -> None:
    assert {"stage_started", "progress", "note", "baseline", "topk", "damage", "verdict", "plan"} < KINDS.keys()


BASELINE = Baseline(nll=800.0, perplexity=math.inf, bits_per_byte=None, sequences=2, tokens=9, protocol="one text each")


def test_a_number_that_json_does_not_hold_comes_back_as_nan_and_not_as_zero() -> None:
    plain = to_dict(BaselineMeasured(BASELINE))
    assert plain["baseline"]["perplexity"] is None
    read = event_from_plain(plain)
    assert isinstance(read, BaselineMeasured)
    assert math.isnan(read.baseline.perplexity)
    assert (read.baseline.nll, read.baseline.bits_per_byte) == (800.0, None)
    assert describe(plain) == "baseline perplexity beyond a float on 2 sequences, 9 tokens"


def test_the_line_of_a_draw_says_on_how_many_texts_it_was_measured_and_a_small_change_in_full() -> None:
    draw = DamagePoint(
        "grad_x_weight", 10, "zero", "random", 3, 10, nll=3.36, perplexity=28.83, delta_nll=-3.25e-05, delta_low=-1e-04,
        delta_high=3.5e-05, perplexity_ratio=1.0, sequences=2,
    )  # fmt: skip
    assert describe(to_dict(DamageMeasured(draw))) == (
        "grad_x_weight k=10 zero random seed 3: perplexity 28.8300 on 2 sequences, change of the loss -3.25e-05 nats per token "
        "[-0.0001, +3.5e-05]"
    )


def test_an_event_of_another_version_is_read_as_far_as_it_can_be() -> None:
    assert event_from_plain({"kind": "ablation_measured", "table": []}) is None
    assert event_from_plain({"kind": "note", "text": "new", "author": "a later field"}) == Note("new")
    older = to_dict(BaselineMeasured(BASELINE))
    del older["baseline"]["vocabulary"]
    assert isinstance(event_from_plain(older), BaselineMeasured)


def test_an_event_without_what_it_must_have_is_of_another_version() -> None:
    assert event_from_plain({"kind": "stage_finished", "stage": "score", "seconds": 2}) == StageFinished("score", 2.0)
    with pytest.raises(VersionMismatch, match=r"of kind 'stage_finished' comes from another version.*'seconds'"):
        event_from_plain({"kind": "stage_finished", "stage": "score"})
