"""Command lines that make no sense, as errors with a hint: what an unknown option is called here, and where it stands."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any

import typer

from cwa_engine.base.errors import InvalidInput
from cwa_tui.cli.synonyms import advice, meanings

# What typer raises for a wrong command line. It does not export the class, only one that is made from it.
USAGE_ERROR: Any = typer.BadParameter.__base__


def explained(error: Any) -> InvalidInput:
    """A usage error of typer as one of ours."""
    context = error.ctx
    help_command = f"{context.command_path} --help" if context else "cwtool --help"
    if unknown := getattr(error, "option_name", None):
        if type(error).__name__ == "NoSuchOption":
            return InvalidInput(f"no such option: {unknown}", hint=_meant(context, unknown, help_command))
        return InvalidInput(f"{unknown} has no value", hint="write it behind the option")
    if param := getattr(error, "param", None):
        return _wrong_value(param, error, help_command)
    message, _, near = _sentence(error).partition(" Did you mean ")
    message = re.sub(r"^got unexpected extra argument(?:\(?s?\)?) \((.*)\)$", r"unexpected: \1", message)
    hint = f"did you mean {near}" if near else _place(context, message)
    return InvalidInput(message.removesuffix("."), hint=hint or f"`{help_command}` says what it takes")


# What pydantic says of a value for typer -> what we say of the option, and the next step.
_VALUES = (
    (r"valid integer", "is no whole number", "give a whole number"),
    (r"valid number", "is no number", "give a number"),
    (r"greater than or equal to (\S+)", "is too small", r"give at least \1"),
    (r"less than or equal to (\S+)", "is too large", r"give at most \1"),
)


def _wrong_value(param: Any, error: Any, help_command: str) -> InvalidInput:
    """A value that an option or argument cannot have, or one that is missing."""
    name = next((name for name in param.opts if name.startswith("--")), param.opts[0])
    if type(error).__name__ == "MissingParameter":
        return InvalidInput(f"{name} is missing", hint=f"`{help_command}` says what it takes")
    for pattern, said, hint in _VALUES:
        if found := re.search(pattern, error.message):
            return InvalidInput(f"the value of {name} {said}", hint=found.expand(hint))
    said = error.message.removeprefix("Value error, ").removesuffix(".")
    return InvalidInput(f"{name}: {said}", hint=f"`{help_command}` says what it takes")


def _sentence(error: Any) -> str:
    """The message in the way ours begin, and on one line."""
    said = " ".join(error.format_message().split())
    return said[:1].lower() + said[1:]


def _meant(context: Any, unknown: str, help_command: str) -> str:
    """What an unknown option is called here; else where it stands, what to do instead, what looks like it."""
    own = _flags(context.command)
    if same := [f"--{name}" for name in meanings(unknown) if f"--{name}" in own]:
        return f"here it is {same[0]}: `{help_command}`"
    if unknown.replace("_", "-") in own:
        return f"here it is {unknown.replace('_', '-')}"
    if instead := advice(unknown):
        return instead
    if (top := _top(context)) is not context and unknown in (of_all := _flags(top.command)):
        command = " ".join(context.command_path.split()[1:]).removesuffix(" list")
        value = " NAME" if of_all[unknown] else ""
        return f"write it before the command: cwtool {unknown}{value} {command} ..."
    if takes_model := "model" in meanings(unknown) and [p for p in context.command.params if p.name == "model"]:
        return f"the model stands alone: `{context.command_path} {takes_model[0].metavar or 'MODEL'}`"
    by_word = {name.lstrip("-"): name for name in own}
    near = [by_word[word] for word in get_close_matches(unknown.lstrip("-"), by_word, n=2, cutoff=0.65)]
    return f"did you mean {' or '.join(near)}?" if near else f"`{help_command}` lists the options"


def _place(context: Any, message: str) -> str:
    """A hint for a word too many: in a group with a list it may be the id of a run, alone it may be a model."""
    found = re.fullmatch(r"(?:unexpected: |no such command )'?(\S+?)'?\.?", message)
    group = context and (context.parent if context.info_name == "list" else context)
    if found and group and group.parent is None:
        from cwa_engine.guide.catalog import catalog_model

        return f"`{group.command_path} run {found[1]}` analyses the model" if catalog_model(found[1]) else ""
    if not found or not group or not {"list", "show"} <= getattr(group.command, "commands", {}).keys():
        return ""
    return (
        f"`{group.command_path} show {shlex.quote(found[1])}` shows one, `{group.command_path} -S WORD` looks for some"
    )


def _flags(command: Any) -> dict[str, bool]:
    """Every name of a command's options, and whether a value follows it."""
    return {name: not option.is_flag for option, names in _options(command) for name in names}


def _options(command: Any) -> Iterator[tuple[Any, list[str]]]:
    for option in command.params:
        if option.param_type_name == "option" and not option.hidden:
            yield option, [name for name in (*option.opts, *option.secondary_opts) if name.startswith("--")]


def _top(context: Any) -> Any:
    while context.parent is not None:
        context = context.parent
    return context
