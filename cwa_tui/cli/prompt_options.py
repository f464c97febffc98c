"""The options of `cwtool prompt`: what of a run's options a prompt takes, and where weights and prompt come from."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import typer

from cwa_engine.base.errors import DataError, InvalidInput, NotFound
from cwa_engine.base.plain import JsonMap
from cwa_engine.typed import STANDARD_INPUT
from cwa_tui.cli import completion
from cwa_tui.cli.run_options import Given, RunOptions, fields_typed, parameters

if TYPE_CHECKING:
    from cwa_daemon.client import Client
    from cwa_engine.options import OptionField
    from cwa_engine.prompt_spec import PromptSpec

MODEL_ALONE = "model_alone"
TOPK = 10  # weights of a run that are damaged, where --topk does not say it
_OF_RUN = ("model", "revision", "dtype", "device", "offload", "bos")  # that a prompt about a run takes from it
_PAGE = 10_000  # weights in one reply


class PromptOptions(RunOptions):
    """`prompt`: its function finds in `context.obj` what was typed, and the first word under MODEL_ALONE."""

    def _completed(self, given: dict[str, Any], config: str | None, alone: str | None) -> Given:
        return given if alone is None else {**given, MODEL_ALONE: alone}

    def _of_fields(self) -> list[Any]:
        model = typer.Argument(
            metavar="MODEL",
            help="Alias, Hub id, folder or .gguf file; with --run it is the run's.",
            show_default=False,
            autocompletion=completion.models,
        )
        return parameters({MODEL_ALONE: (str | None, model, None)}, self._fields())

    def _fields(self) -> list[OptionField]:
        from cwa_engine.options import PROMPT, options_of
        from cwa_engine.prompt_spec import PromptSpec

        # Without --no-perturbation, which stands for measuring no damage.
        return [replace(entry, option=replace(entry.option, no="")) for entry in options_of(PROMPT, PromptSpec)]


@dataclass(frozen=True, slots=True)
class RunWeights:
    """Weights of a finished run's ranking: which run, metric and how many."""

    run_id: str
    metric: str | None
    topk: int | None


@dataclass(frozen=True, slots=True)
class Asked:
    """What was typed: fields of a PromptSpec but for the prompt, whose weights to take, and the prompt if it was given."""

    fields: Mapping[str, Any]
    run: RunWeights | None
    text: str | None


def asked(given: Given, text: str | None, run: RunWeights | None) -> Asked:
    """What was typed. Raises InvalidInput, and DataError for a file of weights that cannot be read."""
    from cwa_engine.prompt_spec import PromptSpec

    given = dict(given)
    alone = given.pop(MODEL_ALONE, None)
    if alone is not None and text is None and (run or "model" in given):
        text = alone  # the model is said elsewhere
    elif alone is not None and given.setdefault("model", [alone]) != [alone]:
        raise InvalidInput(f"two models are given: {alone} and {given['model'][0]}", hint="give one of them")
    if "model" not in given and run is None:
        raise InvalidInput(
            "no model is given",
            hint='`cwtool prompt gpt2 "text" --weights NAME[out,in]`, or --run RUN for those of a run',
        )
    if run and given.get("weights"):
        raise InvalidInput("--run and --weights both name weights", hint="give one of them")
    if STANDARD_INPUT in given.get("weights", ()) and (text is None or text == STANDARD_INPUT):
        raise InvalidInput("standard input is either the prompt or --weights", hint="give one of them otherwise")
    try:
        fields = fields_typed(given, PromptSpec)
    except DataError as error:
        if text is None:  # --weights NAME[0,1] "The capital of"
            error.hint = (
                f'{error.hint}; the text of the prompt stands before --weights: `cwtool prompt MODEL "text" ...`'
            )
        raise
    return Asked(fields, run, text)


def with_run(client: Client, found: Asked) -> Asked:
    """The same with the model and the weights of the run, if one is named. Raises NotFound and InvalidInput."""
    if found.run is None:
        return found
    from cwa_tui.cli.rerun import repeated  # 0.1 s, which other prompts need not wait for

    run = found.run
    spec = repeated(client.manifest(run.run_id))
    weights = _first_weights(client, run)
    from_run = {name: getattr(spec, name) for name in _OF_RUN}
    names = (spec.model, spec.model.rpartition("/")[2])
    if found.text and "model" not in found.fields and found.text.lower() in map(str.lower, names):
        found = replace(found, text=None)  # `cwtool prompt MODEL --run RUN`
    return replace(found, fields={**from_run, **found.fields, "weights": weights})


def _first_weights(client: Client, run: RunWeights) -> tuple[str, ...]:
    """The first weights of the run's ranking. Raises InvalidInput where it has fewer than were asked for."""
    wanted, found = run.topk or TOPK, list[str]()
    while len(found) < wanted:
        metric, rows = client.topk(run.run_id, run.metric, len(found), min(_PAGE, wanted - len(found)))
        found += [row["target"] for row in rows]
        if not rows:
            break
    if not found:
        raise NotFound(f"the ranking of {run.run_id} is empty", hint="`cwtool results topk` shows it")
    if run.topk and len(found) < run.topk:
        raise InvalidInput(
            f"--topk {run.topk:,} is more than the {len(found):,} weights ranked by {metric}",
            hint=f"give at most {len(found):,}",
        )
    return tuple(found)


def spec_with(found: Asked, prompt: str) -> PromptSpec:
    """The spec of a prompt. Raises InvalidInput."""
    from cwa_engine.prompt_spec import parse_prompt

    fields: JsonMap = {**found.fields, "prompt": prompt}
    fields.pop("metrics", None)  # a prompt ranks nothing
    return parse_prompt(fields)


def text_of_pipe() -> str:
    """The prompt on standard input, without the line feed at its end. Raises DataError where it is not UTF-8, InvalidInput
    where there is none."""
    if sys.stdin is None:
        raise InvalidInput("there is no prompt, and standard input is closed", hint="write the prompt behind the model")
    content = sys.stdin.buffer.read()
    try:
        return content.decode("utf-8").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise DataError(
            f"the prompt on standard input is not UTF-8: byte {error.start + 1:,}", hint="`iconv -t utf-8` converts it"
        ) from error
