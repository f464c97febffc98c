"""All questions, and what a spec asks of them. torch-free."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

from cwa_engine import questions
from cwa_engine.questions.question import DamageQuestion, Moment, Question, StageQuestion

if TYPE_CHECKING:
    from cwa_engine.damage.treatments import Treatment
    from cwa_engine.spec import RunSpec


def _questions() -> Iterator[Question]:
    """The `QUESTION` of every module of this folder that has one."""
    for module in pkgutil.iter_modules(questions.__path__, f"{questions.__name__}."):
        if module.name != __name__:
            found = getattr(importlib.import_module(module.name), "QUESTION", None)
            if isinstance(found, Question):
                yield found


QUESTIONS: tuple[Question, ...] = tuple(sorted(_questions(), key=lambda question: (question.place, question.name)))
STAGE_QUESTIONS = tuple(question for question in QUESTIONS if isinstance(question, StageQuestion))
DAMAGE_QUESTIONS = tuple(question for question in QUESTIONS if isinstance(question, DamageQuestion))


def check_ready(spec: RunSpec, trust_code: bool = False) -> None:
    """Raises a CwaError, before a model is loaded, where one of the questions that a spec asks cannot be answered."""
    for question in QUESTIONS:
        if question.asked(spec):
            question.ready(spec, trust_code)


def asked_at(moment: Moment, spec: RunSpec) -> list[StageQuestion]:
    """The questions that a spec asks and that can be answered then, in order."""
    return [question for question in STAGE_QUESTIONS if question.moment is moment and question.asked(spec)]


def asked_of_damage(spec: RunSpec) -> list[DamageQuestion]:
    """The questions that a spec asks and that are answered beside the damage."""
    return [question for question in DAMAGE_QUESTIONS if question.asked(spec)]


def all_treatments(spec: RunSpec, dtype: str) -> list[Treatment]:
    """Every way in which a run changes its critical sets: its perturbations, and those of the questions it is asked."""
    from cwa_engine.damage.treatments import treatments

    found = treatments(spec)
    for question in asked_of_damage(spec):
        found = question.treatments(found, spec, dtype)
    return found
