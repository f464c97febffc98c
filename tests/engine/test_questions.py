"""Questions to a run: one module each, found by being there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cwa_engine.questions.question import Moment, StageQuestion
from cwa_engine.questions.registry import QUESTIONS, asked_at, asked_of_damage
from cwa_engine.spec import parse_spec
from tests.engine.conftest import TEXTS

MODULE = '''
"""How long are the texts that weights are scored by?"""

from __future__ import annotations

from dataclasses import dataclass

from cwa_engine.base.table import Table
from cwa_engine.questions.question import Moment, StageQuestion, TableRows


@dataclass(frozen=True)
class Length:
    text: int
    tokens: int


@dataclass(frozen=True)
class Lengths:
    rows: tuple[Length, ...]


def count_tokens(run, findings):
    return Lengths(tuple(Length(n, len(text.ids)) for n, text in enumerate(findings.scoring, start=1)))


def tables(result):
    if found := result.get(Lengths):
        yield TableRows(Table("lengths.csv", Length), found.rows)


QUESTION = StageQuestion(
    name="lengths",
    place=1000,
    asks="How long are the texts that weights are scored by?",
    asked=lambda spec: spec.seed == 7,
    stage="count",
    moment=Moment.RANKED,
    answer=count_tokens,
    tables=tables,
    summary=lambda result: {"lengths": len(found.rows) if (found := result.get(Lengths)) else None},
    sentence=lambda answer: f"{len(answer.rows)} texts are scored",
)
'''

PROGRAM = """
import sys
from cwa_engine import questions
questions.__path__.append(sys.argv[1])
from cwa_engine.pipeline import analyze
from cwa_engine.records.export import run_tables
from cwa_engine.records.summary import answers_in_summary
from cwa_engine.spec import RunSpec
from tests.engine.conftest import wrap
from tests.models import tiny_model

said = []
spec = RunSpec(model="tiny", data_file=sys.argv[2], metrics=("magnitude",), topk=(2,), perturbations=(), seed=7)
result = analyze(wrap(tiny_model("llama")), spec, said.append)
assert dict(run_tables(result))["lengths.csv"].decode().splitlines()[0] == "text,tokens"
assert answers_in_summary(result)["lengths"] == 4
assert "count" in result.timings
assert any(getattr(event, "text", "") == "4 texts are scored" for event in said)
"""


def test_a_question_is_added_by_a_module_of_its_own_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "lengths.py").write_text(MODULE)
    texts = tmp_path / "texts.txt"
    texts.write_text("\n\n".join(TEXTS))
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path), str(texts)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=root,
        env={**os.environ, "PYTHONPATH": root},
    )
    assert done.returncode == 0, done.stderr


def test_every_question_has_a_place_a_name_and_words_of_its_own() -> None:
    assert len({question.place for question in QUESTIONS}) == len(QUESTIONS)
    assert len({question.name for question in QUESTIONS}) == len(QUESTIONS)
    assert all(question.asks.endswith("?") for question in QUESTIONS)
    stages = [question.stage for question in QUESTIONS if isinstance(question, StageQuestion)]
    assert len(set(stages)) == len(stages)


@pytest.mark.parametrize(
    ("fields", "asked"),
    [
        ({}, []),
        ({"individually": True}, ["interactions"]),
        ({"individually": True, "perturbations": ()}, []),
        ({"stability": "halves"}, ["stability"]),
        ({"fidelity": 40, "perturbations": ()}, ["fidelity"]),
        ({"metrics": ("ablation",), "critical_set": 2.0}, ["ablation", "critical_set"]),
        ({"metrics": ("super_weight",), "iterate": 3}, ["spike_removal"]),
        ({"dose": (0.5,)}, ["doses"]),
        ({"perturbations": ("bit_flip",), "bit": "all"}, ["bits"]),
        ({"perturbations": ("bit_flip",), "bit": 3}, []),
        ({"position_test": True}, ["position_test"]),
    ],
)
def test_a_spec_asks_what_its_options_say(fields: dict[str, object], asked: list[str]) -> None:
    spec = parse_spec({"model": "tiny", **fields})
    found = [question for moment in Moment for question in asked_at(moment, spec)]
    assert [question.name for question in (*found, *asked_of_damage(spec))] == asked
