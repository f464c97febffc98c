"""The form of a study without a screen: what is typed becomes the study that its command line asks for."""

from __future__ import annotations

import shlex
from typing import Any

import pytest

from cwa_engine.options import option_fields
from cwa_engine.spec import RunSpec
from cwa_tui.form.draft import Draft
from cwa_tui.form.study_draft import NO_QUESTION, StudyDraft, study_sections

FIELDS = option_fields(RunSpec)


def draft(**typed: str) -> Draft:
    made = Draft()
    for name, value in typed.items():
        made = made.with_value(FIELDS[name], value)
    return made


def test_models_are_the_grid_and_what_was_typed_is_shared_by_all_runs() -> None:
    checked = StudyDraft(NO_QUESTION, "gpt2 distilgpt2", "two sizes", draft(topk="5 50", seed="3")).checked()
    assert not checked.problems
    assert checked.study
    assert checked.study.grid == {"model": ("gpt2", "distilgpt2")}
    assert checked.study.shared == {"topk": (5, 50), "seed": 3}
    assert checked.study.name == "two sizes"


def test_the_command_line_asks_for_the_same_study(monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from cwa_tui.cli import study as command

    checked = StudyDraft(NO_QUESTION, "gpt2 distilgpt2", "two sizes", draft(topk="5 50", seed="3")).checked()
    asked: list[Any] = []
    monkeypatch.setattr(command, "_show_plan", lambda study, runner, as_json: asked.append(study))
    words = shlex.split(checked.command)
    assert words[:3] == ["cwtool", "study", "run"]
    done = CliRunner().invoke(command.study, [*words[2:], "--dry-run"])
    assert done.exit_code == 0, done.output
    assert asked == [checked.study]


def test_what_a_study_cannot_have_is_no_field_of_its_form() -> None:
    fields = {entry.field for section in study_sections() for entry in section.entries}
    assert not fields & {"model", "revision", "output"}
    assert {"metrics", "topk", "seed"} <= fields


@pytest.mark.parametrize(
    ("made", "field", "said"),
    [
        (StudyDraft(NO_QUESTION), "models", "no model is given"),
        (StudyDraft(NO_QUESTION, "'gpt2"), "models", "a quotation mark is not closed"),
        (StudyDraft(NO_QUESTION, "gpt2", "", draft(topk="0")), "topk", "too small"),
    ],
)
def test_a_mistake_is_told_at_its_field(made: StudyDraft, field: str, said: str) -> None:
    checked = made.checked()
    assert checked.study is None
    assert not checked.command
    assert said in checked.problems[field].message
