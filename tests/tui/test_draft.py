"""A run as it is typed: what it means, what is wrong with it and where, how the command line would say it."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cwa_daemon.protocol import JobOptions
from cwa_engine.options import RUN, options_of
from cwa_engine.spec import RunSpec
from cwa_tui.form.draft import Draft, default_in_words, form_fields, sections

DRAFT = Draft({"model": " gpt2 ", "topk": "10 100, 1000", "eval_limit": "32"})


def changed(**values: Any) -> Draft:
    return Draft({**DRAFT.values, **values})


def test_every_option_of_a_run_and_its_job_is_in_the_form_once() -> None:
    in_form = [entry.field for section in sections() for entry in section.entries]
    assert sorted(in_form) == sorted(entry.field for entry in options_of(RUN, RunSpec, JobOptions))
    assert in_form[0] == "model"


def test_a_draft_becomes_the_spec_that_was_typed() -> None:
    assert DRAFT.checked().spec == RunSpec(model="gpt2", topk=(10, 100, 1000), eval_limit=32)


def test_an_empty_form_is_the_default_run_once_there_is_a_model() -> None:
    assert Draft({"model": "gpt2"}).checked().spec == RunSpec(model="gpt2")
    assert list(Draft().checked().problems) == ["model"]


def test_nothing_ticked_means_none_and_a_path_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "texts.txt").touch()
    monkeypatch.chdir(tmp_path)
    spec = changed(perturbations=(), data_file="texts.txt").checked().spec
    assert spec
    assert spec.perturbations == ()
    assert spec.data_file == tmp_path / "texts.txt"


def test_a_model_may_be_named_with_its_revision_and_a_path_may_begin_at_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "texts.txt").touch()
    spec = changed(model="https://huggingface.co/gpt2/tree/v1", data_file=" ~/texts.txt").checked().spec
    assert spec
    assert (spec.model, spec.revision, spec.data_file) == ("gpt2", "v1", tmp_path / "texts.txt")


def test_options_of_the_job_are_beside_the_spec() -> None:
    checked = changed(priority="5", keep_alive="2h", wait_for_memory=True).checked()
    assert checked.spec == DRAFT.checked().spec
    assert checked.options == JobOptions(priority=5, keep_alive="2h", wait_for_memory=True)


@pytest.mark.parametrize(
    ("values", "field", "said"),
    [
        ({"model": " "}, "model", "no model is given"),
        ({"model": "gpt2@"}, "model", "'gpt2@' names no revision after the @"),
        ({"data_file": "-"}, "data_file", "a form has no standard input"),
        ({"data_file": "/no/such.txt"}, "data_file", "there is no file /no/such.txt"),
        ({"topk": "ten"}, "topk", "--topk ten is no whole number"),
        ({"topk": "0"}, "topk", "--topk 0 is too small"),
        ({"eval_limit": "3 4"}, "eval_limit", "--eval-limit 3 4 is no whole number"),
        ({"device": "gpu"}, "device", "unknown device 'gpu'"),
        (
            {"critical_set": "0.5", "metrics": ("ablation",)},
            "critical_set",
            "critical_set: Input should be greater than 1",
        ),
        ({"weights": "nothing"}, "weights", "--weights"),
        ({"weights": "'open"}, "weights", "a quotation mark is not closed"),
        ({"keep_alive": "soon"}, "keep_alive", "'soon' is no span of time"),
        ({"priority": "1000"}, "priority", "--priority 1000 is too large"),
        # of fields that do not go together, the one that is named first
        ({"metrics": ()}, "metrics", "nothing to rank and nothing to damage"),
        ({"text_column": "body"}, "text_column", "the built-in texts have no columns"),
        ({"metrics": ("ablation",), "topk": "5000"}, "topk", "--topk 5000 is more than the 1000 candidates"),
        ({"metrics": ("ablation",), "topk": "5", "scope": "per_layer"}, "scope", "ablation ranks single weights"),
        ({"critical_set": "10"}, "critical_set", "--critical-set needs single weights that were measured"),
        ({"iterate": "5"}, "iterate", "--iterate zeroes the weights behind spikes"),
        ({"offload": "cpu", "gradients": "resident"}, "offload", "with --offload cpu there is one block at a time"),
        ({"bit": "all"}, "bit", "--bit all is for --perturb bit_flip"),
    ],
)
def test_what_cannot_be_meant_is_said_at_its_field(values: dict[str, Any], field: str, said: str) -> None:
    checked = changed(**values).checked()
    assert checked.spec is None
    assert list(checked.problems) == [field]
    assert checked.problems[field].message.startswith(said) or said == "--weights"
    assert checked.command == ""


def test_every_field_that_is_wrong_is_named_at_once() -> None:
    wrong = {"topk": "0", "device": "gpu", "keep_alive": "soon", "seed": "x"}
    assert Draft(wrong).checked().problems.keys() == {"model", *wrong}


def test_the_command_says_the_same_as_the_draft(tmp_path: Path) -> None:
    texts = tmp_path / "my texts.txt"
    texts.touch()
    draft = changed(data_file=str(texts), fast_perturbation=True, matrices=False, priority="3")
    assert shlex.split(draft.checked().command) == [
        *(
            "cwtool",
            "run",
            "--model",
            "gpt2",
            "--metric",
            "grad_x_weight",
            "--topk",
            "10",
            "100",
            "1000",
            "--no-matrices",
        ),
        *("--data-file", str(texts), "--eval-limit", "32", "--fast-perturbation", "--priority", "3"),
    ]


def test_changes_are_counted_and_one_that_is_taken_back_is_none() -> None:
    ranking = next(section for section in sections() if section.title == "What is ranked")
    draft = changed(probes="4", matrices=False)
    assert draft.changed(ranking) == 2
    assert (
        draft.with_value(form_fields()["matrices"], True).with_value(form_fields()["probes"], "").changed(ranking) == 0
    )


def test_an_empty_field_says_its_default_in_words() -> None:
    said = {name: default_in_words(entry) for name, entry in form_fields().items()}
    assert said["seq_len"] == "default: 512"
    assert said["data_file"] == "default: the built-in texts"
    assert said["fidelity"] == "default: none; 120 is usual"
    assert all(text.startswith("default: ") for name, text in said.items() if name != "model")


SPECS: list[dict[str, Any]] = [
    {},
    {"topk": (1, 10), "metrics": ("magnitude", "obd"), "perturbations": (), "dose": (0.5, 2.0), "kl": True},
    {"weights": ("a.weight[1,2]", "b.weight[:,3]"), "metrics": (), "matrices": False, "batch_size": 4},
    {"metrics": ("ablation",), "critical_set": 10.0, "candidates": 500, "stability": None, "seed": 7},
    {"stability": "halves", "fidelity": 120, "bit": "all", "perturbations": ("bit_flip",), "dtype": "bfloat16"},
    {
        "include": ("down", "*.mlp.*"),
        "exclude": ("lm_head",),
        "bos": "never",
        "output": "/tmp/somewhere",
        "revision": "v1",
    },
]


@pytest.mark.parametrize("fields", SPECS)
def test_a_form_filled_from_a_run_makes_the_same_spec_again(fields: dict[str, Any]) -> None:
    spec = RunSpec(model="gpt2", **fields)
    draft = Draft.of_spec(json.loads(spec.model_dump_json()))
    assert draft.checked().spec == spec
    assert Draft.from_plain(json.loads(json.dumps(draft.to_plain()))) == draft


def test_a_form_filled_from_a_run_names_the_file_and_not_the_daemons_copy(tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.touch()
    plain = RunSpec(model="gpt2", data_file=Path("/state/texts/0123"), data_name=str(texts)).model_dump(mode="json")
    assert Draft.of_spec(plain).values["data_file"] == str(texts)


@pytest.mark.parametrize(
    "kept",
    [
        None,
        [],
        "x",
        {"gone": "1"},
        {"topk": 5},
        {"kl": "yes"},
        {"dtype": "int3"},
        {"metrics": ["gone"]},
        {"metrics": [1]},
    ],
)
def test_a_draft_of_another_version_is_left_out_where_no_field_can_hold_it(kept: object) -> None:
    assert Draft.from_plain(kept) == Draft()


@given(st.dictionaries(st.sampled_from(sorted(form_fields())), st.text(max_size=12)))
def test_whatever_is_typed_makes_a_spec_or_is_explained(values: dict[str, str]) -> None:
    draft = Draft.from_plain(values)
    checked = draft.checked()
    assert (checked.spec is None) == bool(checked.problems)
    assert all(problem.message for problem in checked.problems.values())
