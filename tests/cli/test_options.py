"""Options of several values, as the guide and people write them."""

from __future__ import annotations

import itertools
import os
import shlex
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cwa_engine.base.errors import InvalidInput
from cwa_engine.command_line import command_of
from cwa_engine.options import ABLATE, PLAN, RUN, option_fields
from cwa_engine.spec import RunSpec
from cwa_engine.typed import parts
from cwa_tui.cli.options import fill_bare, repeat_option_names
from cwa_tui.cli.run_options import Given, spec_of
from cwa_tui.form.typed import typed_value
from tests.conftest import CWTOOL

REPEATABLE = {"--metric": False, "--topk": True, "-k": True}  # name -> whether its values are numbers
FIELDS = option_fields(RunSpec)


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
    assert typed_value(FIELDS["topk"], given_values) == (1, 10, 100)
    assert repeated[repeated.index("--model") + 1] == "gpt2"


def test_a_negative_number_is_a_value_and_a_flag_is_not() -> None:
    typed = ["--topk", "-1", "2", "--fast-perturbation", "x"]
    assert repeat_option_names(typed, REPEATABLE) == ["--topk", "-1", "--topk", "2", "--fast-perturbation", "x"]


@pytest.mark.parametrize("typed", ["-k 10 100 gpt2", "-k10 100 gpt2", "--topk 10,100 gpt2", "--topk=10 100 gpt2"])
def test_behind_numbers_a_model_may_stand(typed: str) -> None:
    repeated = repeat_option_names(typed.split(), REPEATABLE)
    assert repeated[-1] == "gpt2" and repeated[-2] not in REPEATABLE


def test_what_was_meant_as_a_number_stays_a_value_and_is_refused_as_one() -> None:
    assert repeat_option_names(["-k", "10", "1e3", "10k"], REPEATABLE)[2:] == ["-k", "1e3", "-k", "10k"]


@given(st.lists(st.sampled_from(["--model", "gpt2", "-d", "--json", "7"])))
def test_arguments_without_repeatable_options_stay_as_they_are(args: list[str]) -> None:
    assert repeat_option_names(args, REPEATABLE) == args


def test_what_is_no_number_is_named_with_its_option() -> None:
    with pytest.raises(InvalidInput, match="--topk many is no whole number"):
        typed_value(FIELDS["topk"], ["10", "many"])


def test_empty_parts_between_commas_are_no_values() -> None:
    assert parts(["a,,b", ","]) == ["a", "b"]


@pytest.mark.parametrize("typed", ["--stability --json", "--json --stability"])
def test_some_options_may_stand_without_a_value(typed: str) -> None:
    meant = {"--stability": "halves"}
    filled = fill_bare(typed.split(), meant)
    assert filled[filled.index("--stability") + 1] == "halves"
    assert fill_bare(["--stability", "5"], meant) == ["--stability", "5"]


def test_doses_may_be_negative_and_fractions() -> None:
    typed = repeat_option_names(["--dose", "0", "0.5", "-1", "-.25"], {"--dose": True})
    assert typed_value(FIELDS["dose"], typed[1::2]) == (0, 0.5, -1, -0.25)


def read_back(command: str) -> RunSpec:
    """The spec of a command line, as the program itself reads it."""
    from typer.main import get_command

    import cwtool
    from cwa_tui.cli import run as run_commands

    kept: list[Given] = []
    words = shlex.split(command)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_commands, "_submit", lambda name, given, *_: kept.append(given))
        get_command(cwtool.app).main(words[1:], standalone_mode=False)
    return spec_of(words[1], kept[0])


def specs() -> st.SearchStrategy[RunSpec]:
    """Specs with any options that go together."""
    fraction = st.floats(-1e6, 1e6)
    fields = st.fixed_dictionaries(
        {
            "model": st.just("gpt2"),
            "revision": st.none() | st.just("v1"),
            "dtype": st.sampled_from(FIELDS["dtype"].choices),
            "metrics": st.lists(st.sampled_from(["obd", "wanda"])).map(lambda names: (*names, "super_weight")),
            "topk": st.lists(st.integers(1, 10**6), min_size=1, max_size=3).map(tuple),
            "structure": st.sampled_from(FIELDS["structure"].choices),
            "matrices": st.booleans(),
            "include": st.lists(st.sampled_from(["down", "*.mlp.*"])).map(tuple),
            "probes": st.integers(1, 99),
            "iterate": st.none() | st.integers(1, 20),
            "eval_limit": st.none() | st.integers(1, 99),
            "packed": st.booleans(),
            "batch_size": st.none() | st.integers(1, 64),
            "perturbations": st.lists(st.sampled_from(["zero", "mean", "scale"])).map(tuple),
            "noise_scale": st.floats(0, 1e3),
            "scale_factor": fraction,
            "bit": st.none() | st.integers(0, 63),
            "controls": st.lists(st.sampled_from(["random", "same_row"])).map(tuple),
            "dose": st.lists(fraction, max_size=3).map(tuple),
            "stability": st.none() | st.just("halves") | st.integers(2, 9),
            "seed": st.integers(0, 2**32 - 1),
            "data_file": st.none() | st.sampled_from([Path("/data/my texts.txt"), Path("/data/-odd.txt")]),
            "output": st.none() | st.just(Path("/results/here it is")),
        }
    )
    return fields.map(RunSpec.model_validate)


@settings(max_examples=150, deadline=None)
@given(specs())
def test_the_command_line_of_a_spec_asks_for_the_same_spec(spec: RunSpec) -> None:
    assert read_back(command_of(spec)) == spec


def test_an_option_that_is_not_typed_has_the_default_of_its_command() -> None:
    assert read_back("cwtool run --model gpt2") == RunSpec(model="gpt2")
    ablated = read_back("cwtool ablate --model gpt2")
    assert (ablated.metrics, ablated.topk, ablated.critical_set) == (("ablation",), (20,), 10.0)
    assert read_back("cwtool ablate --model gpt2 --critical-set 0 --topk 5").critical_set is None


@pytest.mark.parametrize("command", [RUN, ABLATE, PLAN])
def test_the_help_of_a_command_names_each_of_its_options(command: str) -> None:
    asked = subprocess.run([CWTOOL, command, "--help"], capture_output=True, text=True, check=True, env=WIDE)
    missing = [e.flag for e in FIELDS.values() if command in e.option.commands and f"{e.flag} " not in asked.stdout]
    assert missing == []


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("cwtool re", ["rerun", "results", "report", "reproduce"]),
        ("cwtool jobs pa", ["pause"]),
        ("cwtool daemon keys re", ["revoke"]),
        ("cwtool run --metric gr", ["grad_x_weight", "grad_squared"]),
        ("cwtool results topk --met", ["--metric"]),
    ],
)
def test_a_shell_completes_commands_options_and_their_values(typed: str, completed: list[str]) -> None:
    place = str(len(typed.split()) - 1)
    environment = {**os.environ, "_CWTOOL_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": place}
    done = subprocess.run([CWTOOL], capture_output=True, text=True, check=False, env=environment)
    assert done.stdout.split() == completed


def test_a_mistyped_command_is_named_beside_the_nearest_one() -> None:
    mistyped = "resutls"  # codespell:ignore resutls
    done = subprocess.run([CWTOOL, mistyped], capture_output=True, text=True, check=False, env=WIDE)
    assert done.returncode == 2
    assert f"no such command '{mistyped}'" in done.stderr and "did you mean 'results'?" in done.stderr


WIDE = {**os.environ, "COLUMNS": "200"}
