"""The command line: which commands there are, and where each of them is."""

from __future__ import annotations

from typing import Annotated

import typer

from cwa_engine.base.version import __version__
from cwa_tui.cli import completion
from cwa_tui.cli.connection import choose_host
from cwa_tui.cli.lazy import CommandEntry, LazyGroup
from cwa_tui.cli.process import run_process

RUNS, MODELS, SERVICE = "Runs", "Models", "Service"

COMMANDS = (
    CommandEntry("run", RUNS, "Rank a model's most critical weights, damage them, compare with controls.", "cwa_tui.cli.run"),
    CommandEntry("ablate", RUNS, "Zero single weights and rank them by the measured loss change.", "cwa_tui.cli.run"),
    CommandEntry("weight", RUNS, "Examine one weight: rank, damage, bits, and what its channels carry.", "cwa_tui.cli.weight"),
    CommandEntry("prompt", RUNS, "Answer a prompt by the intact and by the damaged model, side by side.", "cwa_tui.cli.prompt"),
    CommandEntry("rerun", RUNS, "Repeat a run and compare its tables byte for byte.", "cwa_tui.cli.rerun"),
    CommandEntry("verify", RUNS, "Check a run's files or a bundle, and recompute its figures.", "cwa_tui.cli.verify"),
    CommandEntry("bundle", RUNS, "Pack a run or a study into one file that others can check.", "cwa_tui.cli.bundle"),
    CommandEntry("logs", RUNS, "Print the log of a run.", "cwa_tui.cli.jobs"),
    CommandEntry("jobs", RUNS, "List, cancel, pause, resume, retry and prune jobs.", "cwa_tui.cli.jobs"),
    CommandEntry("results", RUNS, "List finished runs, show what they found, fetch their files.", "cwa_tui.cli.results"),
    CommandEntry("report", RUNS, "Write a page about a run, a study or a comparison.", "cwa_tui.cli.report_page"),
    CommandEntry("compare", RUNS, "Compare finished runs: rankings, damage, components and depth.", "cwa_tui.cli.compare"),
    CommandEntry("export", RUNS, "Write a run or study as CSV, JSON, Parquet, Markdown, LaTeX or masks.", "cwa_tui.cli.export"),
    CommandEntry("figures", RUNS, "Draw the figures of a run or study in the terminal, or write them.", "cwa_tui.cli.figures"),
    CommandEntry("study", RUNS, "Ask a question of many runs: plan, run, resume, and read the answer.", "cwa_tui.cli.study"),
    CommandEntry("reproduce", RUNS, "Check published claims: gate, claimed, measured, agreed or not.", "cwa_tui.cli.reproduce"),
    CommandEntry("plan", MODELS, "Show the memory a run needs, and the command line for it.", "cwa_tui.cli.run"),
    CommandEntry("ps", MODELS, "Show warm models and memory.", "cwa_tui.cli.warm"),
    CommandEntry("load", MODELS, "Load a model, so that the first run finds it warm.", "cwa_tui.cli.warm"),
    CommandEntry("unload", MODELS, "Free the memory of a warm model.", "cwa_tui.cli.warm"),
    CommandEntry("models", MODELS, "Choose a model: list, search, show, plan, pull and import.", "cwa_tui.cli.models"),
    CommandEntry("doctor", SERVICE, "Check that everything on this machine is in order.", "cwa_tui.cli.doctor"),
    CommandEntry("tui", SERVICE, "Watch and start runs in a full-screen terminal interface.", "cwa_tui.cli.service"),
    CommandEntry("version", SERVICE, "Print the versions of this command and of the daemon.", "cwa_tui.cli.service"),
    CommandEntry("daemon", SERVICE, "Start, stop and look after the service that keeps models warm.", "cwa_tui.cli.daemon"),
)  # fmt: skip


class Commands(LazyGroup):
    """All commands of `cwtool`."""

    ENTRIES = COMMANDS


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Find the few weights that a language model cannot live without, and prove it.",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"cwtool {__version__}")
        raise typer.Exit


@app.callback()
def before_each_command(
    host: Annotated[
        str | None,
        typer.Option(
            help="Use the daemon of another machine, by its name in `daemon hosts`. Texts and --weights are read here and "
            "sent, --output is written here; models are names or absolute paths there.",
            autocompletion=completion.hosts,
            metavar="NAME",
        ),
    ] = None,
    version: Annotated[
        bool,
        typer.Option(
            "--version", "-V", callback=show_version, is_eager=True, help="Print the version of this command."
        ),
    ] = False,
) -> None:
    if host is not None:
        choose_host(host)


def main() -> None:
    """Run the command that was typed."""
    run_process(app)


if __name__ == "__main__":
    main()
