"""Options of several values, as the guide and people write them."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cwa_engine.errors import InvalidInput
from cwa_tui.console.options import fill_bare, numbers, repeat_option_names, values, whole_numbers

REPEATABLE = {"--metric", "--topk"}


@pytest.mark.parametrize(
    "typed",
    [
        "--topk 1 10 100 --model gpt2",
        "--topk 1 --topk 10 --model gpt2 --topk 100",
        "--topk=1 10 100 --model gpt2",
        "--model gpt2 --topk 1,10,100",
        "--topk 1,10 100 --model gpt2",
    ],
)
def test_several_values_may_follow_be_repeated_or_stand_between_commas(typed: str) -> None:
    repeated = repeat_option_names(typed.split(), REPEATABLE)
    given_values = [arg.partition("=")[2] for arg in repeated if arg.startswith("--topk=")]
    given_values += [after for name, after in itertools.pairwise(repeated) if name == "--topk"]
    assert whole_numbers("--topk", given_values) == [1, 10, 100]
    assert repeated[repeated.index("--model") + 1] == "gpt2"


def test_a_negative_number_is_a_value_and_a_flag_is_not() -> None:
    typed = ["--topk", "-1", "2", "--fast-perturbation", "x"]
    assert repeat_option_names(typed, REPEATABLE) == ["--topk", "-1", "--topk", "2", "--fast-perturbation", "x"]


@given(st.lists(st.sampled_from(["--model", "gpt2", "-d", "--json", "7"])))
def test_arguments_without_repeatable_options_stay_as_they_are(args: list[str]) -> None:
    assert repeat_option_names(args, REPEATABLE) == args


def test_what_is_no_number_is_named_with_its_option() -> None:
    with pytest.raises(InvalidInput, match="--topk 10 many"):
        whole_numbers("--topk", ["10", "many"])


def test_empty_parts_between_commas_are_no_values() -> None:
    assert values(["a,,b", ","]) == ["a", "b"]


@pytest.mark.parametrize("typed", ["--stability --json", "--json --stability"])
def test_some_options_may_stand_without_a_value(typed: str) -> None:
    filled = fill_bare(typed.split())
    assert filled[filled.index("--stability") + 1] == "halves"
    assert fill_bare(["--stability", "5"]) == ["--stability", "5"]


def test_doses_may_be_negative_and_fractions() -> None:
    typed = repeat_option_names(["--dose", "0", "0.5", "-1", "-.25"], {"--dose"})
    assert numbers("--dose", typed[1::2]) == [0, 0.5, -1, -0.25]
