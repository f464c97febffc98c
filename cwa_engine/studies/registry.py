"""All questions of studies. torch-free."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Sequence

from cwa_engine.base.errors import InvalidInput, did_you_mean
from cwa_engine.studies import questions
from cwa_engine.studies.answer import Answer, StudyQuestion, StudyRun
from cwa_engine.studies.study import Study


def _questions() -> Iterator[StudyQuestion]:
    """The `QUESTION` of every module of `questions/` that has one."""
    for module in pkgutil.iter_modules(questions.__path__, f"{questions.__name__}."):
        found = getattr(importlib.import_module(module.name), "QUESTION", None)
        if isinstance(found, StudyQuestion):
            yield found


STUDY_QUESTIONS: dict[str, StudyQuestion] = {
    question.name: question for question in sorted(_questions(), key=lambda question: (question.place, question.name))
}


def study_question(name: str) -> StudyQuestion:
    """The question of that name. Raises InvalidInput, with near names, where there is none."""
    if name not in STUDY_QUESTIONS:
        hint = did_you_mean(name, STUDY_QUESTIONS) or f"studies ask: {', '.join(STUDY_QUESTIONS)}"
        raise InvalidInput(f"no study asks '{name}'", hint=hint)
    return STUDY_QUESTIONS[name]


def answered(question: str, runs: Sequence[StudyRun]) -> Answer:
    """The answer that these runs give."""
    return study_question(question).answer(runs)


def with_needs(study: Study) -> Study:
    """The study with what its question's runs need under the user's own values; that again is the same.

    Raises InvalidInput for a question that there is not, and for a study that cannot answer it.
    """
    if not study.question:
        return study
    question = study_question(study.question)
    needed = {name: value for name, value in question.run.items() if name not in study.grid}
    whole = Study(question=study.question, name=study.name, run={**needed, **study.shared}, grid=study.grid)
    question.check(whole)
    return whole
