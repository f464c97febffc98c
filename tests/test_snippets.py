"""What README, docs and messages tell people to type works: their Python runs, their command lines are those of cwtool."""

from __future__ import annotations

import ast
import functools
import os
import re
import shlex
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import typer

from cwa_daemon.client import Client
from cwtool import app
from tests.conftest import CommandLine

ROOT = Path(__file__).parents[1]
OF_OLD_VERSIONS = ROOT / "CHANGELOG.md"
OF_WHAT_IS_NOT_THERE = ROOT / "docs/extending.md"  # its examples add options, commands and modules
PAGES = sorted({*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")} - {OF_OLD_VERSIONS, OF_WHAT_IS_NOT_THERE})
SOURCES = [ROOT / "cwtool.py", *sorted(ROOT.glob("cwa_*/**/*.py"))]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"].keys()
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))

FENCED = re.compile(
    r"^(?P<indent> *)```(?P<language>[\w+-]*)[^\n`]*\n(?P<content>.*?)^(?P=indent)``` *$", re.MULTILINE | re.DOTALL
)
SHELLS = {"", "sh", "bash", "console"}
DATA = {"text", "json", "toml", "yaml", "csv", "tex", "bibtex", "html"}  # nothing that is typed or run
# "page: first line of a block" -> why the block is not checked, such as the need of a GPU. Each must exist.
NOT_CHECKED: dict[str, str] = {
    "docs/tasks.md: import cwa_engine as cwa": "its task is downloaded from the Hub",
}
# Page -> what its Python is run after: names that the page lets the reader choose.
PREFACES: dict[str, str] = {
    "docs/how-to/own-model.md": """
from transformers import AutoModelForCausalLM, AutoTokenizer
model, tokenizer = AutoModelForCausalLM.from_pretrained("gpt2"), AutoTokenizer.from_pretrained("gpt2")
texts = ["The first of some texts of one's own.", "Another one, as long as the first.", "And a third.", "The last one."]
""",
    "docs/reports.md": 'import cwa_engine as cwa; cwa.analyze("gpt2", topk=[3], eval_limit=8).save("results/gpt2")',
}
# These commands run until they ask for the daemon, so that what a spec refuses is found. The others are parsed alone.
RUN_UNTIL_THE_DAEMON = {"run", "ablate", "plan", "load"}
OPTIONS_OF_OTHER_PROGRAMS = {
    *("--check", "--no-deps", "--now", "--to", "--user"),  # sha256sum, pip, systemctl, ssconvert
    *("--exclude", "--nodelist", "--nodes", "--ntasks", "--ntasks-per-node"),  # srun
    *(
        "--address",
        "--block",
        "--disable-usage-stats",
        "--generate",
        "--head",
        "--include-dashboard",
        "--port",
        "--tmux",
    ),  # ray
    *("--max-worker-port", "--min-worker-port", "--node-manager-port", "--object-manager-port"),  # ray start
}
HELP = {"-h", "--help"}  # of every command
NO_COMMANDS = {"cwtool X", "cwtool X --help", "cwtool X gpt2"}  # messages in which X stands for any command


@dataclass(frozen=True)
class Block:
    """A fenced block of a page, the line that its content begins on, and its language, "" where none is given."""

    page: str
    line: int
    language: str
    content: str

    @property
    def title(self) -> str:
        return f"{self.page}: {self.content.partition(chr(10))[0]}"


def blocks(path: Path) -> Iterator[Block]:
    text = path.read_text()
    for found in FENCED.finditer(text):
        line = text.count("\n", 0, found.start("content")) + 1
        yield Block(str(path.relative_to(ROOT)), line, found["language"], textwrap.dedent(found["content"]))


BLOCKS = [block for path in PAGES for block in blocks(path)]
CHECKED = [block for block in BLOCKS if block.title not in NOT_CHECKED]
PYTHON = [block for block in CHECKED if block.language == "python"]
SHELL = [block for block in CHECKED if block.language in SHELLS]


def typed_lines(block: Block) -> list[str]:
    """What people type in a shell, without remarks and what is printed; nothing of a block that is a picture."""
    lines = block.content.replace("\\\n", " ").splitlines()
    if any(line.startswith("$ ") for line in lines):
        lines = [line[2:] for line in lines if line.startswith("$ ")]
    lines = [re.sub(r"(^|\s)#.*", "", line).strip() for line in lines]
    return [line for line in lines if line] if block.language or any(map(own_commands, lines)) else []


def own_commands(line: str) -> list[list[str]]:
    """The commands of a line that are this project's: of cwtool, make and pip install. | && and ; join commands."""
    words = shlex.shlex(re.sub(r"<\([^)]*\)", "/dev/fd/63", line), posix=True, punctuation_chars="|&;<>")
    words.whitespace_split, words.commenters = True, ""
    found: list[list[str]] = [[]]
    for word in words:
        if word in ("|", "||", "&&", "&", ";"):
            found.append([])
        elif word in ("<", ">", ">>"):
            next(words, None)  # a file, which the shell opens
        elif found[-1] or not re.match(r"[A-Z_]+=", word):
            found[-1].append(word)
    return [words for words in found if words[:1] in (["cwtool"], ["make"]) or words[:2] == ["pip", "install"]]


def commands_of(command: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """A command and all below it, each with the words that call it."""
    yield name, command
    for below, found in getattr(command, "commands", {}).items():
        yield from commands_of(found, f"{name} {below}".strip())


@functools.cache
def full_command() -> Any:
    """cwtool as it is, but for what its commands would do beyond reading their options."""
    command = typer.main.get_command(app)
    for name, one in commands_of(command):
        if name and name not in RUN_UNTIL_THE_DAEMON:
            one.callback = None
    return command


def give(words: list[str]) -> None:
    """Type words after cwtool. Raises what cwtool raises for options, arguments and values that it does not know."""
    asked = RuntimeError("the daemon was asked")
    with mock.patch.dict(os.environ), mock.patch.object(Client, "connect", side_effect=asked):
        try:
            full_command().main(words, "cwtool", standalone_mode=False)
        except RuntimeError as error:
            if error is not asked:
                raise


@pytest.mark.parametrize(
    "line", [pytest.param(line, id=f"{one.page}:{one.line} {line[:70]}") for one in SHELL for line in typed_lines(one)]
)
def test_a_command_line_in_the_docs_is_one_that_cwtool_make_or_pip_takes(line: str) -> None:
    found = own_commands(line)
    assert found, f"nothing in {line!r} can be checked: name its block and a reason in NOT_CHECKED"
    for program, *words in found:
        if program == "cwtool":
            give(words)
        elif program == "make":
            assert set(words) <= TARGETS
        else:
            named = re.findall(r"cwtool\[([\w,]+)\]", line)
            assert {extra for names in named for extra in names.split(",")} <= EXTRAS


def options_of(command: Any) -> dict[str, Any]:
    """Every option of a command by each of its names."""
    return {name: option for option in command.params for name in (*option.opts, *option.secondary_opts)}


def unknown_word(words: list[str]) -> str | None:
    """The first word that is no command or option where it stands. Prose may leave out what a command cannot do without."""
    command, rest = full_command(), iter(words)
    for word in rest:
        if word.startswith("-") and word not in HELP:
            command = getattr(command, "commands", {}).get("list", command)  # options without a command are the list's
            option = options_of(command).get(word.partition("=")[0])
            if option is None:
                return word
            if not option.is_flag and "=" not in word:
                next(rest, None)
        elif (below := getattr(command, "commands", None)) and word not in HELP:
            if word not in below:
                return word
            command = below[word]
    return None


def prose_of_pages() -> Iterator[str]:
    for path in PAGES:
        yield FENCED.sub("", path.read_text())


def texts_of_sources() -> Iterator[str]:
    """Docstrings, help and messages, with X for what a message is filled with."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                yield "".join(str(part.value) if isinstance(part, ast.Constant) else "X" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


@pytest.mark.parametrize("texts", [prose_of_pages, texts_of_sources])
def test_a_command_that_prose_or_a_message_names_exists(texts: Any) -> None:
    spans = {" ".join(span.split()) for text in texts() for span in re.findall(r"`(cwtool [^`]+)`", text)}
    assert len(spans) > 10
    unknown = {span: unknown_word(shlex.split(span.removesuffix("..."))[1:]) for span in spans - NO_COMMANDS}
    assert not {span: word for span, word in unknown.items() if word is not None}


def test_an_option_that_is_written_anywhere_exists() -> None:
    known = {*HELP, *OPTIONS_OF_OTHER_PROGRAMS}.union(*(options_of(one) for _, one in commands_of(full_command())))
    for path in [*PAGES, *SOURCES]:
        assert set(re.findall(r"(?<![\w-])--[a-z][\w-]*\w(?![\w-])", path.read_text())) <= known, path.name


@pytest.mark.parametrize("page", sorted({block.page for block in PYTHON}))
def test_the_python_of_a_page_runs_from_top_to_bottom(cwtool: CommandLine, page: str) -> None:
    lines = [""] * len((ROOT / page).read_text().splitlines())  # each stays on its line, for tracebacks
    for block in PYTHON:
        if block.page == page:
            content = block.content.splitlines()
            lines[block.line - 1 : block.line - 1 + len(content)] = content
    program = f"{PREFACES.get(page, '')}\nexec(compile({chr(10).join(lines)!r}, {page!r}, 'exec'))"
    ran = [sys.executable, "-c", program]
    done = subprocess.run(ran, cwd=cwtool.cwd, env=cwtool.env, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr


def test_every_block_is_checked_or_says_why_not() -> None:
    assert {block.language for block in CHECKED} <= {"python", *SHELLS, *DATA}
    assert NOT_CHECKED.keys() <= {block.title for block in BLOCKS}
    assert PREFACES.keys() <= {block.page for block in PYTHON}
