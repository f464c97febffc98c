"""Groups of commands that list where no command of theirs is typed."""

from __future__ import annotations

import copy
from typing import Any

from typer.core import TyperGroup


class ListByDefault(TyperGroup):
    """`cwtool jobs -n 3` is `cwtool jobs list -n 3`: options without a command are those of the list."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if (not args and not ctx.resilient_parsing) or (
            args and args[0].startswith("-") and args[0] not in ctx.help_option_names
        ):
            args = ["list", *args]
        return super().parse_args(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """The commands, and the options of the list."""
        shown = copy.copy(self)
        shown.params = [*self.commands["list"].params, *self.params]
        super(ListByDefault, shown).format_help(ctx, formatter)

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        """The commands of the group; behind a dash the options of the list."""
        if not incomplete.startswith("-"):
            return super().shell_complete(ctx, incomplete)
        command = self.commands["list"]
        with command.make_context("list", [], parent=ctx, resilient_parsing=True) as of_list:
            return command.shell_complete(of_list, incomplete)


class QueryByDefault(ListByDefault):
    """A first word that is no command is one of the list: `cwtool models list llama`, and the same without `list`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and not args[0].startswith("-") and args[0] not in self.commands:
            args = ["list", *args]
        return super().parse_args(ctx, args)

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        """The commands of the group, and what the list's first argument may be."""
        found = super().shell_complete(ctx, incomplete)
        if incomplete and not incomplete.startswith("-"):
            argument = next(param for param in self.commands["list"].params if param.param_type_name == "argument")
            found = [*found, *argument.shell_complete(ctx, incomplete)]
        return found
