"""A run as it is typed: what it means, what is wrong with it, how the command line would say it."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from cwa_engine.base.errors import InvalidInput
from cwa_engine.command_line import command_of
from cwa_engine.spec import RunSpec
from cwa_tui.draft import Draft, about_model, model_names

DRAFT = Draft({"model": " gpt2 ", "metrics": ("grad_x_weight",), "topk": "10 100, 1000", "eval_limit": "32"})


def changed(**values: object) -> Draft:
    return Draft({**DRAFT.values, **values})


def test_a_draft_becomes_the_spec_that_was_typed() -> None:
    assert DRAFT.spec() == RunSpec(model="gpt2", topk=(10, 100, 1000), eval_limit=32)


def test_no_perturbation_means_none_and_a_path_is_absolute() -> None:
    spec = changed(perturbations=True, data_file="texts.txt").spec()
    assert spec.perturbations == ()
    assert spec.data_file == Path.cwd() / "texts.txt"


def test_a_model_may_be_named_with_its_revision_and_a_path_may_begin_at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    spec = changed(model="https://huggingface.co/gpt2/tree/v1", data_file=" ~/texts.txt").spec()
    assert (spec.model, spec.revision, spec.data_file) == ("gpt2", "v1", Path("/home/ann/texts.txt"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": " "}, "no model is given"),
        ({"model": "gpt2@"}, "'gpt2@' names no revision after the @"),
        ({"data_file": "-"}, "a form has no standard input"),
        ({"metrics": ()}, "no metric is chosen"),
        ({"topk": "ten"}, "--topk ten is no whole number"),
        ({"topk": "0"}, "--topk 0 is too small"),
        ({"eval_limit": "3 4"}, "--eval-limit 3 4 is no whole number"),
        ({"eval_limit": "-1"}, "--eval-limit -1 is too small"),
    ],
)
def test_what_cannot_be_meant_is_said_with_a_hint(change: dict[str, object], said: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        changed(**change).spec()
    assert caught.value.message == said
    assert caught.value.hint


def test_the_command_says_the_same_as_the_draft() -> None:
    words = shlex.split(command_of(changed(data_file="/data/my texts.txt", fast_perturbation=True).spec()))
    assert words == [
        *("cwtool", "run", "--model", "gpt2", "--metric", "grad_x_weight", "--topk", "10", "100", "1000"),
        *("--data-file", "/data/my texts.txt", "--eval-limit", "32", "--fast-perturbation"),
    ]


def test_warm_models_are_suggested_first() -> None:
    assert model_names(["my/model"])[0] == "my/model"
    assert "gpt2" in model_names([])


def test_a_name_being_typed_shows_what_the_guide_knows_of_it() -> None:
    assert about_model("", ["gpt2"]) == "warm: gpt2"
    assert about_model("gpt2@main", []).startswith("gpt2, 124 M weights")
    assert about_model("GPT2", ["gpt2"]) == "gpt2, 124 M weights, MIT, warm"
    assert "needs HF_TOKEN" in about_model("meta-llama/Llama-2-7b-hf", [])
    assert about_model("gpt2-meduim", []).startswith("known: gpt2-medium")
    assert about_model("qqqqqqqqqq", []) == "not in the guide: taken as a Hub id or a path"
