"""`cwtool prompt`: the same prompt by the intact and by the damaged model."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from cwa_engine.base.errors import CwaError, DaemonUnreachable, InvalidInput
from cwa_engine.typed import STANDARD_INPUT
from cwa_tui.cli import completion
from cwa_tui.cli.connection import command_typed, connect
from cwa_tui.cli.output import say, show, show_error
from cwa_tui.cli.parameters import Json
from cwa_tui.cli.prompt_options import Asked, PromptOptions, RunWeights, asked, spec_with, text_of_pipe, with_run
from cwa_tui.cli.remembered import remember

if TYPE_CHECKING:
    from cwa_daemon.client import Client
    from cwa_engine.prompt_rows import PromptAnswer

app = typer.Typer()

HELP = """\
Type a prompt; both models go on with it. Other lines:
  /off             answer by the intact model alone; /on damages the weights again
  /weights NAME... damage these weights from now on: targets or a file, as --weights takes them
  /?               this help
Ctrl-C breaks an answer off, Ctrl-D ends."""


@app.command(cls=PromptOptions)
def prompt(
    context: typer.Context,
    text: Annotated[
        str | None,
        typer.Argument(
            metavar="TEXT",
            help="The prompt; - reads standard input. Without it a terminal asks for one prompt after the other.",
            show_default=False,
        ),
    ] = None,
    run: Annotated[
        str | None,
        typer.Option(
            "--run",
            help="Damage the first weights of this finished run's ranking, in its model.",
            metavar="RUN",
            autocompletion=completion.finished_run_ids,
        ),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            help="--run: the ranking by this metric; if left out, its first.", autocompletion=completion.metrics
        ),
    ] = None,
    topk: Annotated[
        int | None, typer.Option("--topk", "-k", min=1, help="--run: how many weights.", show_default="10")
    ] = None,
    tokens: Annotated[bool, typer.Option("--tokens", help="Also list every token with KL and probabilities.")] = False,
    as_json: Json = False,
) -> None:
    """Answer a prompt by the intact and by the damaged model, side by side.

    Colours show how far the damaged model's prediction of each token of the intact model's text is from the intact one's.
    The text goes to the model as it is: no chat template is applied."""
    if run is None and (metric is not None or topk is not None):
        raise InvalidInput("--metric and --topk are about --run", hint="add --run RUN, or give --weights")
    found = asked(context.obj, text, RunWeights(run, metric, topk) if run else None)
    with connect() as client:
        found = with_run(client, found)
        if found.text is None and all(stream and stream.isatty() for stream in (sys.stdin, sys.stdout)):
            if as_json:
                raise InvalidInput("--json needs the text of a prompt", hint="write it behind the model")
            _ask_again_and_again(client, found, tokens)
            return
        piped = found.text is None or found.text == STANDARD_INPUT
        answer = _answered(client, found, text_of_pipe() if piped else found.text or "", set())
        _show(answer, tokens, as_json)


def _answered(client: Client, found: Asked, text: str, said: set[str]) -> PromptAnswer:
    """Queue a prompt and follow it to its answer. Ctrl-C cancels it."""
    spec = spec_with(found, text)
    run_id = client.prompt(spec, command_typed())
    remember([], [spec.model])
    from cwa_tui.cli.prompt_view import followed  # imported while the model answers

    try:
        return followed(client.follow(run_id), said)
    except KeyboardInterrupt:
        client.cancel(run_id)
        raise


def _show(answer: PromptAnswer, tokens: bool, as_json: bool) -> None:
    if as_json:
        from cwa_engine.rows import to_plain

        show(to_plain(answer))
        return
    from cwa_tui.cli.prompt_view import show_answer

    show_answer(answer, tokens)


def _ask_again_and_again(client: Client, found: Asked, tokens: bool) -> None:
    """One prompt after the other, until Ctrl-D. An error is said, and the next prompt asked for."""
    import readline  # noqa: F401  lines can be edited, and called back

    spec_with(found, "")  # what is wrong with the options is said before anything is typed
    damaged, said = found, set[str]()
    say("type a prompt; /? helps, Ctrl-D ends")
    while True:
        try:
            line = input(">>> ")
        except EOFError:
            say("")
            return
        except KeyboardInterrupt:
            say("")
            continue
        except UnicodeDecodeError:
            say("what was typed is not UTF-8")
            continue
        try:
            match line.split() if line.startswith("/") or not line.strip() else [line]:
                case []:
                    continue
                case ["/?" | "/help"]:
                    say(HELP)
                case ["/off"]:
                    found = replace(damaged, fields={**damaged.fields, "weights": ()})
                    say("no weights are damaged now; /on damages them again")
                case ["/on"]:
                    found = damaged
                    say(_weights(found))
                case ["/weights", *names]:
                    found = damaged = _with_weights(damaged, names)
                    say(_weights(found))
                case [word, *_] if line.startswith("/"):
                    say(f"{word} is no command; /? lists them. A prompt that begins with / takes a blank before it")
                case _:
                    _show(_answered(client, found, line, said), tokens, as_json=False)
        except KeyboardInterrupt:
            say("\nbroken off")
        except DaemonUnreachable:
            raise
        except CwaError as error:
            show_error(error, as_json=False)


def _with_weights(found: Asked, names: list[str]) -> Asked:
    from cwa_tui.cli.run_options import fields_typed

    if not names:
        raise InvalidInput("/weights names no weight", hint="/weights NAME[out,in], or a file of targets")
    return replace(found, fields={**found.fields, **fields_typed({"weights": names})})


def _weights(found: Asked) -> str:
    """Which weights are damaged from now on."""
    spec = spec_with(found, "")
    if not spec.weights:
        return "no weights are given: /weights NAME[out,in] names them"
    more = f" and {len(spec.weights) - 1:,} more" if len(spec.weights) > 1 else ""
    return f"{spec.perturbations[0]} {spec.weights[0]}{more}"
