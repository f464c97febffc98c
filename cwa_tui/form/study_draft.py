"""A study as typed into the form, and what it makes: the study and its command line, or what is wrong. No Textual in it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache

from cwa_engine.base.errors import CwaError, InvalidInput
from cwa_engine.command_line import option_words
from cwa_engine.options import Kind, Option, OptionField, option_fields, parsed
from cwa_engine.spec import RunSpec
from cwa_engine.studies.registry import STUDY_QUESTIONS, with_needs
from cwa_engine.studies.study import Study, cells_of
from cwa_tui.form.draft import Draft, Problem, Section, sections
from cwa_tui.form.places import model_name

NO_QUESTION = "no question"
_OF_ONE_RUN = ("model", "revision", "output")


@cache
def study_fields() -> Mapping[str, OptionField]:
    """What a study has beside the options of its runs."""
    meanings = {name: f"{entry.asks} Needs {entry.needs}." for name, entry in STUDY_QUESTIONS.items()}
    meanings[NO_QUESTION] = "the grid is run, and nothing is answered."
    questions = (*STUDY_QUESTIONS, NO_QUESTION)
    return {
        "question": OptionField(
            "question",
            Option("What the study asks.", meanings=meanings, commands=()),
            Kind.TEXT, False, questions[0], questions, True,
        ),
        "models": OptionField(
            "models",
            Option(
                "Models, parted by spaces, also as NAME@REVISION; enter opens the list, which adds one after the other.",
                if_empty="none; enter opens the list",
            ),
            Kind.TEXT, True, (), (), False,
        ),
        "name": OptionField("name", Option("What you call it.", if_empty="none"), Kind.TEXT, False, "", (), False),
    }  # fmt: skip


@cache
def study_sections() -> tuple[Section, ...]:
    """The options that all runs of a study share."""
    known = option_fields(RunSpec).keys() - set(_OF_ONE_RUN)
    shared = (
        Section(section.title, tuple(entry for entry in section.entries if entry.field in known))
        for section in sections()
    )
    return tuple(section for section in shared if section.entries)


@dataclass(frozen=True, slots=True)
class CheckedStudy:
    """A draft that was checked: a study and its command line, or problems by field; "" for one of the whole."""

    problems: Mapping[str, Problem]
    study: Study | None = None
    command: str = ""


@dataclass(frozen=True, slots=True)
class StudyDraft:
    """What is typed. Nothing is checked yet."""

    question: str = ""
    models: str = ""
    name: str = ""
    run: Draft = field(default_factory=Draft)

    @property
    def model_names(self) -> list[str]:
        """Raises InvalidInput for a quotation mark that is not closed."""
        try:
            return [model_name(name) for name in shlex.split(self.models)]
        except ValueError:
            raise InvalidInput("a quotation mark is not closed", hint="quote a name that holds spaces") from None

    def with_text(self, name: str, text: str) -> StudyDraft:
        """The draft with one of `study_fields` typed anew."""
        texts = {"question": self.question, "models": self.models, "name": self.name} | {name: text}
        return StudyDraft(**texts, run=self.run)

    def with_model(self, name: str) -> StudyDraft:
        """The draft with one more model."""
        return self.with_text("models", f"{self.models.rstrip()} {shlex.quote(name)}".strip())

    @property
    def needs(self) -> str:
        """What the question's runs have where nothing else is chosen, as options; empty for nothing."""
        needed = STUDY_QUESTIONS[self.question].run if self.question in STUDY_QUESTIONS else {}
        return shlex.join(option_words({name: value for name, value in needed.items() if name not in self.run.values}))

    def checked(self) -> CheckedStudy:
        """The study, or a problem for each field that is wrong."""
        try:
            models = self.model_names
        except InvalidInput as error:
            return CheckedStudy({"models": Problem.of(error)})
        if not models:
            return CheckedStudy({"models": Problem("no model is given", "type names, or press enter for the list")})
        entry = option_fields(RunSpec)["model"]
        of_run = self.run.with_value(entry, models[0]).checked()
        if of_run.spec is None:
            return CheckedStudy(of_run.problems)
        shared = {name for section in study_sections() for name in (entry.field for entry in section.entries)}
        run = {name: getattr(of_run.spec, name) for name in self.run.values if name in shared}
        asked = "" if self.question == NO_QUESTION else self.question
        try:
            fields = {"question": asked, "name": self.name.strip(), "run": run, "grid": {"model": tuple(models)}}
            study = parsed(Study, fields, hint="")
            cells_of(with_needs(study))
        except CwaError as error:
            return CheckedStudy({self.run.field_named(error): Problem.of(error)})
        return CheckedStudy({}, study, _command(study, models))


def _command(study: Study, models: list[str]) -> str:
    words = ["cwtool", "study", "run", *([study.question] if study.question else []), "--models", *models]
    words += ["--name", study.name] if study.name else []
    return shlex.join([*words, *option_words(study.shared)])
