"""A run as typed into the form, and what it makes: the spec, the job's options, or what is wrong with it. No Textual in it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from pydantic import BaseModel

from cwa_daemon.protocol import JobOptions
from cwa_engine.base.errors import CwaError, InvalidInput
from cwa_engine.base.files import near_files
from cwa_engine.command_line import command_of
from cwa_engine.options import GENERAL, RUN, Kind, OptionField, option_fields, options_of, parsed
from cwa_engine.spec import RunSpec
from cwa_engine.typed import STDIN
from cwa_tui.form.typed import typed_value

Value = str | bool | tuple[str, ...]  # a text, whether it is ticked, or what is ticked of several
BASIC = "Run"  # title of the fields that the form shows at once
OTHERS = "Revision, speed and files"  # title of what is left
_PLACEHOLDER = "model"  # stands for the model while the other fields are checked


@dataclass(frozen=True, slots=True)
class Section:
    """Fields of the form under one title."""

    title: str
    entries: tuple[OptionField, ...]


@cache
def sections() -> tuple[Section, ...]:
    """All options of a run and of its job: first what most runs set, then the other groups of options."""
    entries = options_of(RUN, RunSpec, JobOptions)
    basic = tuple(entry for entry in entries if entry.option.basic)
    groups = sorted(dict.fromkeys(entry.option.group for entry in entries), key=GENERAL.__eq__)  # this one last
    folded = {group: tuple(e for e in entries if e.option.group == group and not e.option.basic) for group in groups}
    others = (Section(OTHERS if group == GENERAL else group, found) for group, found in folded.items())
    return Section(BASIC, basic), *others


@cache
def form_fields() -> Mapping[str, OptionField]:
    """The options in the form, by field."""
    return {entry.field: entry for section in sections() for entry in section.entries}


def default_value(entry: OptionField) -> Value:
    """What the form shows before anything is typed."""
    if entry.kind is Kind.FLAG:
        return bool(entry.default)
    if entry.several and entry.closed:
        return tuple(entry.default)
    return str(entry.default) if entry.closed else ""


def default_in_words(entry: OptionField) -> str:
    """What an empty field stands for: `default: 512`. It never looks like something that was typed."""
    option, default = entry.option, entry.default
    if entry.is_required:
        return "a name, a folder or a .gguf file; enter opens the list"
    shown = option.if_empty or option.shown_default
    if not shown:
        shown = " ".join(map(str, default)) if entry.several else "" if default is None else str(default)
    usual = f"; {option.bare} is usual" if option.bare else ""
    return f"default: {shown or 'none'}{usual}"


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with a field, in one sentence, and what to do about it."""

    message: str
    hint: str = ""

    @classmethod
    def of(cls, error: Exception) -> Problem:
        if isinstance(error, CwaError):
            return cls(error.message, error.hint)
        return cls(f"{type(error).__name__}: {error}")


@dataclass(frozen=True, slots=True)
class Checked:
    """A draft that was checked: a spec and the job's options, or problems by field."""

    problems: Mapping[str, Problem]
    spec: RunSpec | None = None
    options: JobOptions = field(default_factory=JobOptions)

    @property
    def command(self) -> str:
        """The command line of the run; empty where something is wrong."""
        return command_of(self.spec, self.options) if self.spec else ""


@dataclass(frozen=True, slots=True)
class Draft:
    """What differs from the defaults, by field. Nothing is checked yet; an empty text stands for the default."""

    values: Mapping[str, Value] = field(default_factory=dict)

    def value(self, entry: OptionField) -> Value:
        return self.values.get(entry.field, default_value(entry))

    def changed(self, section: Section) -> int:
        """How many fields of a section are not as they are by default."""
        return sum(entry.field in self.values for entry in section.entries)

    def with_value(self, entry: OptionField, value: Value) -> Draft:
        """The draft with a field set. One that is back at its default counts as not changed."""
        others = {name: kept for name, kept in self.values.items() if name != entry.field}
        return Draft(others if value == default_value(entry) else {**others, entry.field: value})

    def checked(self) -> Checked:
        """The spec and the job's options, or a problem for each field that is wrong."""
        problems: dict[str, Problem] = {}
        values = self._typed_values(problems)
        if not str(self.values.get("model", "")).strip():
            problems["model"] = Problem("no model is given", "type a name, or press enter for the list")
        of_spec = {name: value for name, value in values.items() if name in option_fields(RunSpec)}
        of_job = {name: value for name, value in values.items() if name in option_fields(JobOptions)}
        spec = self._parsed(RunSpec, {"model": _PLACEHOLDER, **of_spec}, problems)
        options = self._parsed(JobOptions, of_job, problems)
        if problems or not isinstance(spec, RunSpec) or not isinstance(options, JobOptions):
            return Checked(problems)
        return Checked({}, spec, options)

    def _typed_values(self, problems: dict[str, Problem]) -> dict[str, Any]:
        """The values of the fields that can be read."""
        found: dict[str, Any] = {}
        for name, value in self.values.items():
            if (entry := form_fields().get(name)) is None:
                continue
            try:
                if not isinstance(value, str):
                    found[name] = value
                elif typed := value.strip():
                    found[name] = _value_of(entry, typed)
            except CwaError as error:
                problems[name] = Problem.of(error)
        return found

    def _parsed(self, model: type[BaseModel], fields: dict[str, Any], problems: dict[str, Problem]) -> BaseModel | None:
        """The model of these fields. Otherwise None, and every field that is wrong is among the problems.

        Fields that do not go together are looked at when each is right by itself; the problem is that of the first one named.
        """
        fields, asked_alone = dict(fields), not problems.keys() - {"model"}
        while True:
            try:
                return parsed(model, fields, hint="")
            except InvalidInput as error:
                if error.field in fields and error.field not in problems:
                    problems[error.field] = Problem.of(error)
                    del fields[error.field]
                    asked_alone = False
                    continue
                if asked_alone:
                    problems.setdefault(self.field_named(error) or "model", Problem.of(error))
                return None

    def field_named(self, error: Exception) -> str:
        """The field whose flag an error names first, of those that were changed if it names one; else empty."""
        if isinstance(error, InvalidInput) and error.field in form_fields():
            return error.field
        if not isinstance(error, CwaError):
            return ""
        by_flag = {flag: entry.field for entry in form_fields().values() for flag in (entry.flag, entry.no_flag)}
        named = re.findall(r"--[a-z][a-z-]*", f"{error.message} {error.hint}")
        fields = [by_flag[flag] for flag in named if flag in by_flag]
        return next((name for name in fields if name in self.values), fields[0] if fields else "")

    def to_plain(self) -> dict[str, Any]:
        """The draft as JSON has it."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in self.values.items()}

    @classmethod
    def from_plain(cls, plain: object) -> Draft:
        """A draft from JSON. What no field of this version can hold is left out."""
        draft = cls()
        for name, held in (plain if isinstance(plain, dict) else {}).items():
            entry = form_fields().get(name)
            value = tuple(map(str, held)) if isinstance(held, list) else held
            if entry and type(value) is type(default_value(entry)) and _is_choice(entry, value):
                draft = draft.with_value(entry, value)
        return draft

    @classmethod
    def of_spec(cls, plain: Mapping[str, Any]) -> Draft:
        """The draft that makes a spec again, from the spec's fields as JSON has them."""
        draft = cls()
        for name, entry in form_fields().items():
            if name not in plain:
                continue
            value = plain[name]
            if name == "data_file" and str(plain.get("data_name") or "").startswith("/"):
                value = plain["data_name"]  # the file is a copy, and the user named this one
            if name in option_fields(RunSpec) and value != _plain_default(entry):
                draft = draft.with_value(entry, _as_typed(entry, value))
        return draft


def _is_choice(entry: OptionField, value: Value) -> bool:
    if not entry.closed:
        return True
    return set(value if isinstance(value, tuple) else (value,)) <= set(entry.choices)


def _plain_default(entry: OptionField) -> Any:
    return list(entry.default) if entry.several else entry.default


def _as_typed(entry: OptionField, value: Any) -> Value:
    """A value of a spec as it would be typed."""
    if isinstance(value, bool):
        return value
    if entry.several and entry.closed:
        return tuple(value)
    if entry.several:
        return " ".join(text if shlex.split(text) == [text] else shlex.quote(text) for text in map(str, value))
    word = next((word for word, meant in entry.option.words.items() if meant == value), "")
    return word or ("" if value is None else str(value))


def _value_of(entry: OptionField, typed: str) -> Any:
    words = _words(entry, typed) if entry.several else [typed]
    value = typed_value(entry, words)
    if value == STDIN:
        raise InvalidInput("a form has no standard input", hint="`... | cwtool run --data-file -` reads it")
    if entry.field == "data_file" and not value.exists():
        raise InvalidInput(f"there is no file {value}", hint=near_files(value))
    return value


def _words(entry: OptionField, typed: str) -> list[str]:
    """What is typed for several values: numbers are parted by commas or spaces, texts as a shell does it."""
    if entry.kind is not Kind.TEXT:
        return typed.replace(",", " ").split()
    try:
        return shlex.split(typed)
    except ValueError:
        raise InvalidInput("a quotation mark is not closed", hint="quote a name that holds spaces") from None
