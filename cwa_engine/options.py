"""Options of a run. An `Option` is the annotation of the field of `RunSpec` or `JobOptions` that it sets.

The command line with its help and completion, the form for a new run, the command line to copy, the bounds of numbers and
the table in docs/options.md are all made from it. torch-free.

    probes: Annotated[int, Option("hutchinson_diag: random probes.", RANKING)] = 8
"""

from __future__ import annotations

import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError, ValidationInfo, ValidatorFunctionWrapHandler
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from cwa_engine.base.errors import InvalidInput

M = TypeVar("M", bound=BaseModel)

GENERAL, RANKING, TEXTS, DAMAGE, TASKS, QUEUE = (
    "Options", "What is ranked", "Texts", "Damage and controls", "Downstream tasks", "Queue and memory"
)  # fmt: skip
RUN, ABLATE, PLAN, LOAD = "run", "ablate", "plan", "load"  # commands that take these options
WEIGHT, PROMPT = "weight", "prompt"
ANY_RUN = (RUN, ABLATE, PLAN)


class Kind(Enum):
    """The type of an option's value."""

    FLAG = "nothing"
    NUMBER = "a whole number"
    FRACTION = "a number"
    TEXT = "a text"
    PATH = "a path"


@dataclass(frozen=True, slots=True)
class Variant:
    """How an option differs in one command."""

    help: str = ""
    default: Any = None
    shown_default: str = ""


@dataclass(frozen=True, slots=True)
class Option:
    """Help, group and bounds of an option. Only the help text is required."""

    help: str
    group: str = GENERAL
    name: str = ""  # as typed, if it is not the name of the field: "metric" for `metrics`
    short: str = ""  # one letter
    metavar: str = ""
    commands: tuple[str, ...] = (RUN,)
    variants: Mapping[str, Variant] = field(default_factory=dict)  # by command
    least: int = 1  # smallest whole number
    most: int = 2**63 - 1
    words: Mapping[str, Any] = field(
        default_factory=dict
    )  # words that may be typed for a number, and their values: "auto" -> None
    bare: str = ""  # the value of the option without a value
    shown_default: str = ""  # for help texts, if the field's default is None: "drawn"
    no: str = ""  # name of the flag that empties a list: "perturbation" for `--no-perturbation`
    no_help: str = ""
    choices: tuple[str, ...] = ()  # values for completion, beside those of a Literal
    meanings: Mapping[str, str] = field(default_factory=dict)  # of choices, in a few words: {"magnitude": "|w|"}
    label: str = ""  # in the form for a new run, if it is not the field's name in words
    if_empty: str = ""  # in words, what an empty field of the form stands for, if the default does not say it
    basic: bool = False  # whether the form shows it at once; it folds other groups


@dataclass(frozen=True, slots=True)
class OptionField:
    """An option together with its field."""

    field: str
    option: Option
    kind: Kind
    several: bool  # whether it takes several values
    default: Any
    choices: tuple[str, ...]
    closed: bool  # whether it takes nothing but its choices

    @property
    def flag(self) -> str:
        """The flag as typed: `--topk`."""
        return "--" + (self.option.name or self.field).replace("_", "-")

    @property
    def label(self) -> str:
        """The label in a form: `top-k`, `batch size`."""
        return self.option.label or self.field.replace("_", " ")

    @property
    def is_required(self) -> bool:
        return self.default is PydanticUndefined

    @property
    def no_flag(self) -> str:
        """The negative flag: `--no-matrices` turns off a flag, `--no-perturbation` empties a list."""
        return f"--no-{self.option.no or self.flag.removeprefix('--')}"

    def for_command(self, command: str) -> OptionField:
        """The option with the variant of a command."""
        variant = self.option.variants.get(command, Variant())
        shown = variant.shown_default or self.option.shown_default
        option = replace(self.option, help=variant.help or self.option.help, shown_default=shown)
        return replace(self, option=option, default=self.default if variant.default is None else variant.default)


@cache
def option_fields(model: type[BaseModel]) -> Mapping[str, OptionField]:
    """The options of a pydantic model, by field name, in the order of the fields."""
    found = {}
    for name, info in model.model_fields.items():
        if option := next((entry for entry in info.metadata if isinstance(entry, Option)), None):
            found[name] = _described(name, info, option)
    return found


def options_of(command: str, *models: type[BaseModel]) -> list[OptionField]:
    """The options that a command takes."""
    return [
        entry.for_command(command)
        for model in models
        for entry in option_fields(model).values()
        if command in entry.option.commands
    ]


def check_bounds(model: type[BaseModel], field: str | None, value: Any) -> None:
    """Raises InvalidInput, naming the option, for a whole number outside of the option's bounds."""
    entry = option_fields(model).get(field or "")
    for number in value if isinstance(value, tuple) else (value,):
        if entry is None or not isinstance(number, int) or isinstance(number, bool):
            continue
        if number < entry.option.least:
            raise InvalidInput(f"{entry.flag} {number} is too small", hint=f"give at least {entry.option.least}")
        if number > entry.option.most:
            raise InvalidInput(f"{entry.flag} {number} is too large", hint=f"give at most {entry.option.most}")


def naming_field(value: Any, validated: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
    """Runs a field's validators, and writes the field's name into an InvalidInput of theirs. For the validator of "*"."""
    try:
        return validated(value)
    except InvalidInput as error:
        error.field = info.field_name or ""
        raise


def parsed(model: type[M], fields: Mapping[str, object], hint: str) -> M:
    """A model of options from plain fields. Raises InvalidInput with one sentence instead of pydantic's ValidationError."""
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        said = f"{where}: {first['msg']}"
        if first["type"] == "literal_error":
            said = f"unknown {where} '{first['input']}': it is {first['ctx']['expected']}"
        wrong = InvalidInput(said, hint)
        wrong.field = str(first["loc"][0]) if first["loc"] else ""
        raise wrong from error


def _described(name: str, info: FieldInfo, option: Option) -> OptionField:
    parts = set(_parts(info.annotation))
    several = any(get_origin(part) is tuple for part in parts)
    values = {get_args(part)[0] for part in parts if get_origin(part) is tuple} if several else parts
    literals = tuple(
        value for part in _ordered(info.annotation) if get_origin(part) is Literal for value in get_args(part)
    )
    kinds = ((bool, Kind.FLAG), (int, Kind.NUMBER), (float, Kind.FRACTION), (Path, Kind.PATH))
    kind = next((kind for held, kind in kinds if held in {_plain(value) for value in values}), Kind.TEXT)
    closed = bool(literals) and all(get_origin(part) is Literal for part in parts)
    return OptionField(
        name,
        option,
        kind,
        several,
        info.get_default(call_default_factory=True),
        option.choices or literals,
        closed or (several and bool(option.choices)),
    )


def _ordered(annotation: Any) -> list[Any]:
    return list(get_args(annotation)) if get_origin(annotation) in (Union, types.UnionType) else [annotation]


def _parts(annotation: Any) -> Iterable[Any]:
    """The members of a union, without None."""
    return (part for part in _ordered(annotation) if part is not type(None))


def _plain(annotation: Any) -> Any:
    """A type without its annotations: float for FiniteFloat."""
    return get_args(annotation)[0] if hasattr(annotation, "__metadata__") else annotation
