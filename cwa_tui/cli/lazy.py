"""Commands that are imported when they are typed: `cwtool --help` lists them from this table and imports none of them."""

from __future__ import annotations

import sys
from collections import UserDict
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar

import typer
from typer.core import TyperCommand, TyperGroup

from cwa_tui.cli.usage import USAGE_ERROR, explained


@dataclass(frozen=True, slots=True)
class CommandEntry:
    """A command, or a group of commands: what a list says of it, and the module whose `app` has it under this name."""

    name: str
    panel: str
    short_help: str
    module: str

    def load(self) -> Any:
        """Import the command."""
        return typer.main.get_group(import_module(self.module).app).commands[self.name]

    def listed(self) -> TyperCommand:
        """What stands for the command in a list."""
        return TyperCommand(self.name, help=self.short_help, rich_help_panel=self.panel)


class LazyGroup(TyperGroup):
    """A group of the commands in `ENTRIES`. Lists are made of `short_help`; the command that is typed is imported."""

    ENTRIES: ClassVar[Sequence[CommandEntry]] = ()

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.commands = _LoadedCommands({entry.name: entry for entry in self.ENTRIES})
        self._listed = {entry.name: entry.listed() for entry in self.ENTRIES}

    def main(self, *args: Any, **given: Any) -> Any:
        """Run a command line and end the process with its exit code. Raises InvalidInput for one that makes no sense."""
        if not given.get("standalone_mode", True):
            return super().main(*args, **given)
        try:
            code = super().main(*args, **{**given, "standalone_mode": False})
        except USAGE_ERROR as error:
            if type(error).__name__ == "NoArgsIsHelpError":  # its message is the help
                error.show()
                sys.exit(error.exit_code)
            raise explained(error) from error
        sys.exit(code)

    def list_commands(self, ctx: Any) -> list[str]:
        return list(self._listed)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return self._listed.get(cmd_name)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that was typed, imported now. Fails with what `TyperGroup` says of an unknown name."""
        name, _, rest = super().resolve_command(ctx, args)
        return name, self.commands[name] if name else None, rest


class _LoadedCommands(UserDict[str, Any]):
    """Commands by name. Each is imported when it is first read."""

    def __getitem__(self, name: str) -> Any:
        found = super().__getitem__(name)
        if isinstance(found, CommandEntry):
            found = self.data[name] = found.load()
        return found
