"""What may be asked for, and how a request that cannot be meant is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cwa_engine.base.errors import InvalidInput
from cwa_engine.methods.metrics import METRICS
from cwa_engine.methods.perturbations import STANDARD
from cwa_engine.spec import RunSpec, parse_spec


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"topk": [0]}, "--topk 0 is too small"),
        ({"topk": [5, -1]}, "--topk -1 is too small"),
        ({"topk": [2**70]}, "is too large"),
        ({"topk": []}, "topk"),
        ({"metrics": []}, "nothing to rank"),
        ({"bits": 1}, "--bits 1"),
        ({"bits": 5000}, "--bits 5000 is too large"),
        ({"bit": -1}, "--bit -1"),
        ({"bit": 64}, "--bit 64"),
        ({"noise_scale": -1.0}, "noise_scale"),
        ({"scale_factor": float("nan")}, "scale_factor"),
        ({"eval_limit": 0}, "--eval-limit 0"),
        ({"eval_limit": 1.5}, "eval_limit"),
        ({"batch_size": 0}, "--batch-size 0"),
        ({"control_seeds": 0}, "--control-seeds 0"),
        ({"seq_len": 1}, "--seq-len 1"),
        ({"seed": -1}, "--seed -1"),
        ({"seed": 2**64}, "--seed 18446744073709551616 is too large"),
        ({"device": "gpu"}, "unknown device 'gpu'"),
        ({"device": "cuda:x"}, "unknown device 'cuda:x'"),
        ({"device": "cuda:128"}, "unknown device 'cuda:128'"),
        ({"device": "cpu:01"}, "unknown device 'cpu:01'"),
        ({"device": "cuda:0+cpu"}, "several NVIDIA devices only"),
        ({"device": "cuda+cuda:1"}, "several NVIDIA devices only"),
        ({"device": "cuda:0+"}, "several NVIDIA devices only"),
        ({"device": "cuda:1+cuda:1"}, "names a device twice"),
        ({"device": "+".join(f"cuda:{n}" for n in range(17))}, "names 17 devices"),
        ({"dtype": "int8"}, "dtype"),
        ({"bos": "yes"}, "unknown bos 'yes'"),
        ({"model": ""}, "model"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_spec_that_cannot_be_meant_is_refused_in_one_sentence(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidInput, match=said) as raised:
        parse_spec({"model": "gpt2", **fields})
    assert raised.value.hint
    assert "\n" not in raised.value.message


@pytest.mark.parametrize(
    ("field", "typed", "meant"),
    [
        ("metrics", "grad_x_wieght", "grad_x_weight"),
        ("metrics", "Magnitude", "magnitude"),
        ("controls", "rnadom", "random"),
        ("perturbations", "zeero", "zero"),
    ],
)
def test_a_misspelt_name_is_answered_with_the_one_that_was_meant(field: str, typed: str, meant: str) -> None:
    with pytest.raises(InvalidInput, match=f"unknown {field[:-1]} '{typed}'") as raised:
        parse_spec({"model": "gpt2", field: [typed]})
    assert f"did you mean '{meant}'" in raised.value.hint


def test_a_name_like_no_other_is_answered_with_all_that_are_known() -> None:
    with pytest.raises(InvalidInput) as raised:
        parse_spec({"model": "gpt2", "metrics": ["xyzzy"]})
    assert raised.value.hint == "known: " + ", ".join(METRICS)


@pytest.mark.parametrize("device", ["auto", "cpu", "cpu:1", "cuda", "cuda:3", "mps", "cuda:0+cuda:1"])
def test_devices_have_the_names_of_torch_and_several_are_joined_by_plus(device: str) -> None:
    assert parse_spec({"model": "gpt2", "device": device}).device == device


@given(st.lists(st.integers(1, 50), min_size=1), st.lists(st.sampled_from(list(METRICS)), min_size=1))
def test_sizes_are_sorted_and_nothing_is_asked_for_twice(sizes: list[int], metrics: list[str]) -> None:
    spec = parse_spec({"model": "gpt2", "topk": sizes, "metrics": metrics})
    assert spec.topk == tuple(sorted(set(sizes)))
    assert spec.largest_k == max(sizes)
    assert sorted(spec.metrics) == sorted(set(metrics))
    assert spec.metrics[0] == metrics[0]  # the order in which they were asked for


def test_standard_stands_for_several_perturbations() -> None:
    spec = parse_spec({"model": "gpt2", "perturbations": ["sign_flip", "standard", "zero"]})
    assert spec.perturbations == ("sign_flip", *STANDARD)


def test_the_hash_of_a_spec_knows_everything_but_the_output_folder() -> None:
    spec = RunSpec(model="gpt2")
    assert spec.sha256() == spec.model_copy(update={"output": Path("/elsewhere")}).sha256()
    others: list[dict[str, Any]] = [
        {"seed": 1},
        {"topk": (99,)},
        {"metrics": ("obd",)},
        {"data_file": Path("a")},
        {"fast_perturbation": True},
        {"bos": "never"},
    ]
    assert len({spec.sha256(), *(spec.model_copy(update=other).sha256() for other in others)}) == 1 + len(others)


def test_the_hash_of_a_spec_does_not_know_in_which_order_sizes_were_typed() -> None:
    one, other = (parse_spec({"model": "gpt2", "topk": sizes}) for sizes in ([10, 1], [1, 10, 10]))
    assert one.sha256() == other.sha256()


def test_a_spec_is_the_same_after_a_way_through_json() -> None:
    spec = RunSpec(model="gpt2", topk=(3, 1), data_file=Path("/a/b.txt"), bit=3)
    assert parse_spec(spec.model_dump(mode="json")) == spec


def test_the_defaults_are_those_of_the_guide() -> None:
    spec = RunSpec(model="gpt2")
    assert (spec.metrics, spec.topk, spec.control_seeds) == (("grad_x_weight",), (100,), 19)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"topk": [0]}, "topk"),
        ({"device": "gpu"}, "device"),
        ({"metrics": ["magnitde"]}, "metrics"),
        ({"critical_set": 0.5}, "critical_set"),
        ({"dtype": "int3"}, "dtype"),
        ({"metrics": []}, ""),  # of several fields together
    ],
)
def test_an_error_of_one_field_names_it(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_spec({"model": "gpt2", **fields})
    assert caught.value.field == named


def test_an_option_that_comes_later_leaves_the_hashes_of_earlier_specs_as_they_were() -> None:
    # as published with runs before --tasks came; a new option of a run goes into spec._CAME_LATER
    assert RunSpec(model="gpt2").sha256() == "778c0c62e4c1bd2328e11e3169e39e379dac232c73a7341629c4aada74f78c7c"
    earlier = RunSpec(
        model="gpt2", topk=(1, 10), metrics=("obd", "wanda"), noise_scale=1e-7, data_file=Path("/x/é.txt")
    )
    assert earlier.sha256() == "0fe42649e369db12f15a530df7f3b366d1e92ba7068ca1cba337de5a25989a6d"
    assert earlier.sha256() != earlier.model_copy(update={"tasks": ("arc_easy",)}).sha256()
