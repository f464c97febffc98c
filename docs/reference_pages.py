"""Pages of docs/reference, made from the code itself: commands, files of a run, messages. `make docs` writes them."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, get_args

import typer
from pydantic import BaseModel
from typer.core import TyperGroup

from cwa_daemon.protocol import requests, views
from cwa_engine.base import errors, events
from cwa_engine.base.table import Table
from cwa_engine.questions.fidelity import fidelity_table
from cwa_engine.questions.question import StageQuestion
from cwa_engine.questions.registry import QUESTIONS
from cwa_engine.records import tables
from cwa_engine.records.run_report import RunReport
from cwa_engine.studies import report as study_tables
from cwtool import COMMANDS, app

_MADE = "Made from the code by `make docs`; do not edit."
_COMMENT = re.compile(r"^\s*(\w+)\s*:\s*[^#]*?#\s*(.*)$")
_RICH = re.compile(r"\[/?(?:bold|dim|italic)\]")


def cli_page() -> str:
    """docs/reference/cli.md: every command with its options, as `--help` has them."""
    lines = ["# Commands", "", _MADE, "", "Options of several values take them with one flag or with several.", ""]
    root = typer.main.get_group(app)
    lines += ["## cwtool", "", _sentence(root.help or ""), "", *_parameters(root), ""]
    for entry in COMMANDS:
        lines += _command(f"cwtool {entry.name}", entry.load())
    return "\n".join(lines)


def _command(path: str, command: Any) -> Iterator[str]:
    yield from (f"## {path}", "", _sentence(command.help or ""), "")
    if isinstance(command, TyperGroup):
        for name, inner in command.commands.items():
            yield from (
                line.replace("## ", "### ", 1) if line.startswith("## ") else line
                for line in _command(f"{path} {name}", inner)
            )
        return
    yield from (*_parameters(command), "")


def _parameters(command: Any) -> Iterator[str]:
    shown = [param for param in command.params if not getattr(param, "hidden", False) and param.name != "help"]
    if not shown:
        return
    yield "| argument or option | what it does | default |"
    yield "|---|---|---|"
    for param in shown:
        names = (
            [param.metavar or param.name.upper()]
            if param.param_type_name == "argument"
            else param.opts + param.secondary_opts
        )
        usual = param.show_default if isinstance(param.show_default, str) else param.default
        shown_default = "" if usual in (None, False, ()) or callable(usual) or not param.show_default else str(usual)
        yield f"| {', '.join(f'`{name}`' for name in names)} | {_cell(_sentence(param.help or ''))} | {_cell(shown_default)} |"


def records_page() -> str:
    """docs/reference/records.md: the columns of every table, with the meaning that the row types give."""
    lines = [
        "# Files of a run and of a study",
        "",
        _MADE,
        "",
        "A run folder holds `manifest.json` (the spec, versions, hashes), `summary.json` (what was found, in short),",
        "`log.txt`, `SHA256SUMS`, and these tables as CSV: UTF-8, a heading, a line for each row, numbers in the shortest form",
        "that reads back as the same float, an empty cell for what is not known. `cwa.open_run(folder)` reads them all.",
        "",
        "## Tables of a run",
        "",
    ]
    run_tables: list[Table[Any]] = [
        tables.topk_table("METRIC"),
        *_tables_in(tables),
        *(
            table
            for question in QUESTIONS
            if isinstance(question, StageQuestion)
            for table in _tables_in(inspect.getmodule(question.answer))
        ),
        fidelity_table(("METRIC",)),
    ]
    for table in {table.name: table for table in run_tables}.values():
        lines += _table(table)
    lines += [
        "## Tables of a study",
        "",
        "Those of its answer have the columns that [study-questions.md](../study-questions.md) explains.",
        "",
    ]
    for table in _tables_in(study_tables):
        lines += _table(table)
    lines += ["## RunReport", "", _paragraphs(RunReport), ""]
    lines += ["| attribute | what it is |", "|---|---|"]
    for name, member in inspect.getmembers(RunReport):
        if not name.startswith("_") and (doc := _doc_of(member)):
            lines.append(f"| `{name}` | {_cell(_sentence(doc))} |")
    return "\n".join([*lines, ""])


def _tables_in(module: Any) -> list[Table[Any]]:
    return [value for value in vars(module).values() if isinstance(value, Table)] if module else []


def _table(table: Table[Any]) -> Iterator[str]:
    yield from (f"### {table.name}", "", _paragraphs(table.row), "", "| column | type | meaning |", "|---|---|---|")
    comments = field_comments(table.row)
    for field in dataclasses.fields(table.row):
        yield f"| `{field.name}` | {_cell(_type(field.type))} | {_cell(comments.get(field.name, ''))} |"
    yield ""


def protocol_page() -> str:
    """docs/reference/protocol.md: requests, views and events on the wire."""
    lines = [
        "# Messages between clients and the daemon",
        "",
        _MADE,
        "",
        "Messages are msgpack maps over ZeroMQ (DEALER to ROUTER). A request has an `id`, an `op` and the fields below; its",
        "reply has the same `id`. Unknown fields are refused. Minor versions add requests and fields, and a daemon serves",
        "clients of earlier ones. `cwa_daemon.client` is the way in for programs.",
        "",
        "## Requests",
        "",
    ]
    for _, kind in sorted(_classes(requests, requests.Request), key=lambda item: str(_op(item[1]))):
        lines += _message(str(_op(kind)), kind, leave_out=("id", "op"))
    lines += ["## What replies are made of", ""]
    for name, kind in sorted(_classes(views, BaseModel)):
        lines += _message(name, kind)
    lines += ["## Events of a job", "", "Every event has a number `seq`, a `time` and its `kind`.", ""]
    for _, event in sorted(_classes(events, events.Event), key=lambda item: str(item[1].kind)):
        lines += [f"### {event.kind}", "", *_said_of(event)]
        lines += [f"- `{field.name}`: {_type(field.type)}" for field in dataclasses.fields(event)] + [""]
    return "\n".join(lines)


def _message(title: str, kind: type[BaseModel], leave_out: tuple[str, ...] = ()) -> Iterator[str]:
    yield from (f"### {title}", "", *_said_of(kind))
    comments = field_comments(kind)
    fields = {name: info for name, info in kind.model_fields.items() if name not in leave_out}
    if fields:
        yield (
            "| field | type | default |"
            if not any(comments.get(name) for name in fields)
            else "| field | type | default | meaning |"
        )
        yield "|---|---|---|" if not any(comments.get(name) for name in fields) else "|---|---|---|---|"
    for name, info in fields.items():
        usual = "required" if info.is_required() else repr(info.get_default(call_default_factory=True))
        cells = [f"`{name}`", _cell(_type(info.annotation)), f"`{usual}`" if usual != "required" else usual]
        if any(comments.get(other) for other in fields):
            cells.append(_cell(comments.get(name, "")))
        yield f"| {' | '.join(cells)} |"
    yield ""


def errors_page() -> str:
    """The tree of errors, with the exit code of each."""
    tree = (errors.__doc__ or "").split("\n\n", 1)[1]
    return f"```text\n{tree.strip()}\n```"


def field_comments(row: type) -> Mapping[str, str]:
    """What the comments behind the fields of a class say: {"seed": "None for selections that are not drawn"}."""
    found: dict[str, str] = {}
    for kind in reversed(row.__mro__[:-1]):
        try:
            source = textwrap.dedent(inspect.getsource(kind))
        except (OSError, TypeError):
            continue
        names = {
            node.target.id
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
        }
        for line in source.splitlines():
            if (match := _COMMENT.match(line)) and match[1] in names:
                found[match[1]] = match[2]
    return found


def _classes(module: Any, base: type) -> list[tuple[str, Any]]:
    return [
        (name, kind)
        for name, kind in inspect.getmembers(module, inspect.isclass)
        if issubclass(kind, base) and kind is not base and kind.__module__ == module.__name__
    ]


def _op(kind: type[BaseModel]) -> object:
    return get_args(kind.model_fields["op"].annotation)[0] if "op" in kind.model_fields else kind.__name__


def _type(kind: Any) -> str:
    """`int or none`, `list of str`: a type in words."""
    if isinstance(kind, str):
        return kind.replace(" | ", " or ").replace("None", "none")
    if kind is type(None):
        return "none"
    origin, inner = typing.get_origin(kind), get_args(kind)
    if origin is typing.Annotated:
        return _type(inner[0])
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type(one) for one in inner)
    if origin is typing.Literal:
        return " or ".join(f"`{one}`" for one in inner)
    if origin in (list, tuple):
        return "list of " + " or ".join(dict.fromkeys(_type(one) for one in inner if one is not Ellipsis))
    if origin is dict:
        return f"map of {_type(inner[1])}"
    return getattr(kind, "__name__", str(kind))


def _doc_of(member: object) -> str:
    function = member.func if hasattr(member, "func") else member
    return inspect.getdoc(function) or "" if isinstance(function, property) or callable(function) else ""


def _said_of(kind: Any) -> list[str]:
    """Its docstring and an empty line; nothing where it has none."""
    said = _paragraphs(kind)
    return [said, ""] if said else []


def _paragraphs(kind: Any) -> str:
    """The docstring of a class, but for what its bases say and for what pydantic and dataclasses make up."""
    said = inspect.cleandoc(kind.__doc__ or "")
    return "" if said.startswith(f"{kind.__name__}(") else said


def _sentence(text: str) -> str:
    """The first paragraph, in one line, without the marks of rich."""
    first = inspect.cleandoc(text).split("\n\n")[0]
    return _RICH.sub("", " ".join(first.replace("\\[", "[").split()))


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
