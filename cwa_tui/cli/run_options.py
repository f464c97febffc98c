"""Commands whose options are the fields of `RunSpec` and `JobOptions`: run, ablate, plan and load."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer
from typer.core import TyperCommand

from cwa_engine.base.errors import InvalidInput
from cwa_tui.cli import completion
from cwa_tui.cli.options import fill_bare, refuse_swallowed_options, repeat_option_names
from cwa_tui.cli.output import say

if TYPE_CHECKING:
    from cwa_daemon.protocol import JobOptions
    from cwa_engine.options import OptionField
    from cwa_engine.spec import RunSpec

CONFIG, MODEL = "--config", "MODEL"  # what these commands take beside fields' options
Given = Mapping[str, Any]  # field -> what was typed for it: texts, or whether a flag is on


class RunOptions(TyperCommand):
    """A command whose options are fields. They are made when somebody looks at the command, not for `cwtool --help`.

    The command's function finds in `context.obj` what was typed, see `Given`. Its own parameters follow the fields' options.
    """

    OWN_SEVERAL: ClassVar[Mapping[str, bool]] = {}  # options of several values beside, and whether these are numbers
    _is_whole = False  # whether the fields' options are among its parameters yet

    @property
    def params(self) -> list[Any]:
        if not self._is_whole:
            self._is_whole = True
            self._params[:0] = self._of_fields()
        return self._params

    @params.setter
    def params(self, own: list[Any]) -> None:
        self._params = own

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        fields = self._fields()
        bare = {entry.flag: entry.option.bare for entry in fields if entry.option.bare}
        args = fill_bare(args, bare)
        refuse_swallowed_options(args, _takes_value(self.params))
        several = {name: _takes_numbers(entry) for entry in fields if entry.several for name in _names(entry)}
        return super().parse_args(ctx, repeat_option_names(args, {**several, **self.OWN_SEVERAL}))

    def invoke(self, ctx: Any) -> Any:
        given: dict[str, Any] = {}
        for entry in self._fields():
            typed, emptied = _take(ctx, entry.flag), entry.option.no and _take(ctx, entry.no_flag)
            if emptied:
                given[entry.field] = []
            elif typed is not None:
                given[entry.field] = typed if isinstance(typed, (bool, list)) else [str(typed)]
        config, alone = _take(ctx, CONFIG), _take(ctx, MODEL)
        ctx.obj = self._completed(given, config, alone)
        return super().invoke(ctx)

    def _completed(self, given: dict[str, Any], config: str | None, alone: str | None) -> Given:
        """What was typed, with the model that stands alone, over what the file says. Raises InvalidInput without a model."""
        if alone is not None and given.setdefault("model", [alone]) != [alone]:
            raise InvalidInput(
                f"two models are given: {alone} and {given['model'][0]}",
                hint="a run has one model; give one of them",
            )
        if config is not None:
            from cwa_engine.options import ABLATE
            from cwa_tui.cli.config_file import read_config

            in_file = read_config(config)
            if self.name == ABLATE and in_file.pop("perturbations", None):
                say(f"{config}: perturb is left out, for ablate only zeroes")
            if given.get("model", in_file.get("model")) != in_file.get("model"):
                in_file.pop("revision", None)  # it is one of another model
            given = {**in_file, **given}
        if "model" not in given:
            raise InvalidInput(
                "no model is given",
                hint=f"write it behind the command, `cwtool {self.name} gpt2`, or as --model; "
                "`cwtool models` lists those that are known",
            )
        return given

    def _of_fields(self) -> list[Any]:
        """The parameters that stand for fields, and those that say where the others are."""
        alone = {_python(MODEL): (str | None, _model_alone(), None)}
        return parameters({**alone, **({} if self.name == "load" else config_parameter())}, self._fields())

    def _fields(self) -> list[OptionField]:
        from cwa_daemon.protocol import JobOptions
        from cwa_engine.options import options_of
        from cwa_engine.spec import RunSpec

        assert self.name
        return options_of(self.name, RunSpec, JobOptions)


def spec_of(command: str, given: Given) -> RunSpec:
    """The spec that was typed. Raises InvalidInput."""
    from cwa_engine.methods.metrics import ABLATION
    from cwa_engine.options import ABLATE, option_fields, options_of
    from cwa_engine.spec import RunSpec, parse_spec
    from cwa_engine.typed import STANDARD_INPUT, STDIN

    usual = option_fields(RunSpec)
    fields = {
        entry.field: entry.default
        for entry in options_of(command, RunSpec)
        if entry.default != usual[entry.field].default
    }
    texts = given.get("data_file") or ()
    if STANDARD_INPUT in given.get("weights", ()) and {STANDARD_INPUT, str(STDIN)}.intersection(texts):
        raise InvalidInput("standard input is either --weights or --data-file", hint="give one of them as a file")
    fields |= fields_typed(given)
    if command == ABLATE:  # the metrics name the candidates, and no further damage is measured
        proposers = (name for name in fields.get("metrics", ()) if name != ABLATION)
        fields |= {"metrics": (*proposers, ABLATION), "perturbations": (), "matrices": False}
    return parse_spec(fields)


def fields_typed(given: Given, of: type[RunSpec] | None = None) -> dict[str, Any]:
    """The fields of a spec that were typed, and what follows from them; `of` is its type. Raises InvalidInput."""
    from cwa_engine.options import option_fields
    from cwa_engine.spec import RunSpec

    fields = _fields_typed(option_fields(of or RunSpec), given)
    if fields.get("weights"):
        fields.setdefault("metrics", ())
    return fields


def with_its_line(error: InvalidInput, given: Given) -> InvalidInput:
    """The error with the place, in the files of --weights, of the weight that it is about; as it is where that is not told."""
    from cwa_engine.base.files import user_path
    from cwa_engine.typed import STANDARD_INPUT
    from cwa_engine.weight_files.reading import place_in

    for text in given.get("weights", ()):
        if not text.endswith("]") and text != STANDARD_INPUT:
            path = user_path(text, "--weights")
            if place := place_in(path, error.message):
                return type(error)(f"{path}, {place}: {error.message}", hint=error.hint)
    return error


def job_options_of(command: str, given: Given) -> JobOptions:
    """The options of the job that were typed. Raises InvalidInput."""
    from cwa_daemon.protocol import JobOptions
    from cwa_engine.options import option_fields, parsed

    fields = _fields_typed(option_fields(JobOptions), given)
    return parsed(JobOptions, fields, hint=f"`cwtool {command} --help` lists the options")


def _fields_typed(entries: Mapping[str, OptionField], given: Given) -> dict[str, Any]:
    from cwa_tui.form.typed import typed_value

    typed = {name: given[name] for name in entries if name in given}
    return {name: text if isinstance(text, bool) else typed_value(entries[name], text) for name, text in typed.items()}


def _take(ctx: Any, flag: str) -> Any:
    """Remove an option from the parameters for the function, and give its value; None if it was not typed."""
    name = _python(flag)
    value = ctx.params.pop(name, None)
    source = ctx.get_parameter_source(name)
    return value if source and source.name == "COMMANDLINE" else None


def _python(flag: str) -> str:
    return "model_alone" if flag == MODEL else flag.removeprefix("--").replace("-", "_")


def _takes_value(parameters: list[Any]) -> dict[str, bool]:
    """Each option by its names, and whether a value follows it."""
    options = [parameter for parameter in parameters if parameter.param_type_name == "option"]
    return {name: not option.is_flag for option in options for name in (*option.opts, *option.secondary_opts)}


def _takes_numbers(entry: OptionField) -> bool:
    return entry.kind.name in ("NUMBER", "FRACTION")


def _names(entry: OptionField) -> list[str]:
    return [entry.flag] + ([f"-{entry.option.short}"] if entry.option.short else [])


def config_parameter() -> dict[str, tuple[Any, Any, Any]]:
    return {_python(CONFIG): (str | None, _config(), None)}


def parameters(first: Mapping[str, tuple[Any, Any, Any]], fields: list[OptionField]) -> list[Any]:
    """The parameters of a command, as typer makes them from a function with these: (type, option, default) by name."""
    signature = dict(first)
    for entry in fields:
        signature[_python(entry.flag)] = _parameter(entry)
        if entry.option.no:
            flag = typer.Option(entry.no_flag, help=entry.option.no_help, rich_help_panel=entry.option.group)
            signature[_python(entry.no_flag)] = (bool, flag, False)

    def command() -> None: ...

    command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option])
            for name, (kind, option, default) in signature.items()
        ]
    )
    command.__annotations__ = {name: Annotated[kind, option] for name, (kind, option, _) in signature.items()}
    app = typer.Typer(add_completion=False)
    app.command()(command)
    return list(typer.main.get_command(app).params)


def _parameter(entry: OptionField) -> tuple[Any, Any, Any]:
    """(type, option, default) of a field's option, for typer."""
    from cwa_engine.options import Kind

    option, default = entry.option, entry.default
    names = _names(entry)
    if entry.kind is Kind.FLAG:
        names = [f"{entry.flag}/{entry.no_flag}"] if default else names
    kind: Any = {Kind.FLAG: bool, Kind.NUMBER: int, Kind.FRACTION: float}.get(entry.kind, str)
    shown: Any = option.shown_default or True
    if option.words or option.bare:
        kind = str
    if entry.several:
        kind, shown = list[str], option.shown_default or " ".join(map(str, default)) or False
        default = None
    required = entry.is_required
    default = None if required else default  # what may also stand alone or in a file is looked for when all is read
    made = typer.Option(
        *names,
        help=option.help.replace("[", "\\["),
        metavar=option.metavar or None,
        show_default=shown,
        rich_help_panel=None if option.group == "Options" else option.group,
        autocompletion=completion.of_option(entry),
    )
    return (kind if kind is bool else kind | None), made, default


def _model_alone() -> Any:
    return typer.Argument(
        metavar="MODEL",
        help="The model: alias, Hub id, folder or .gguf file; the same as --model.",
        show_default=False,
        autocompletion=completion.models,
    )


def _config() -> Any:
    return typer.Option(
        CONFIG,
        help="Options from a TOML file; those that are typed win. `cwtool results show --config` prints one.",
        metavar="FILE",
        show_default=False,
    )
