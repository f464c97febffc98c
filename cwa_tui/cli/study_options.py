"""The options of `cwtool study run`: those of a run, and what is different between runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from cwa_engine.base.errors import InvalidInput, did_you_mean
from cwa_tui.cli.run_options import Given, RunOptions, config_parameter, fields_typed, parameters

if TYPE_CHECKING:
    from cwa_engine.options import OptionField
    from cwa_engine.studies.study import Study

_OF_ONE_RUN = ("model", "output", "force")  # a study has several models, and its own folder
_JOINED = "+"  # between values of one run: --grid metric=magnitude+wanda,grad_x_weight


class StudyOptions(RunOptions):
    """`study run`: the options of `run`, but for those of a single run; its function finds in `context.obj` what was typed."""

    OWN_SEVERAL: ClassVar[Mapping[str, bool]] = {
        "--models": False,
        "-m": False,
        "--revisions": False,
        "--seeds": True,
        "--grid": False,
    }

    def _completed(self, given: dict[str, Any], config: str | None, alone: str | None) -> Given:
        if config is None:
            return given
        from cwa_tui.cli.config_file import read_config

        return {**read_config(config), **given}

    def _of_fields(self) -> list[Any]:
        return parameters(config_parameter(), self._fields())

    def _fields(self) -> list[OptionField]:
        return [entry for entry in super()._fields() if entry.field not in _OF_ONE_RUN]


def study_typed(
    asked: str | None,
    given: Given,
    models: Sequence[str],
    revisions: Sequence[str],
    seeds: Sequence[int],
    grid: Sequence[str],
    name: str | None,
) -> Study:
    """The study that was typed: what the command line says wins over what a file says. Raises InvalidInput."""
    from cwa_engine.options import parsed
    from cwa_engine.studies.study import Study
    from cwa_tui.form.places import model_name

    fields = _asked(asked)
    typed: dict[str, Any] = {**_grid(grid)}
    for field, values in (
        ("model", [model_name(model) for model in _listed(models)]),
        ("revision", _listed(revisions)),
        ("seed", list(seeds)),
    ):
        if values and field in typed:
            raise InvalidInput(f"'{field}' is given twice, in --grid and as --{field}s", hint="leave out one of them")
        if values:
            typed[field] = values
    run = fields_typed(given)
    fields["run"] = {key: value for key, value in fields.get("run", {}).items() if key not in typed} | run
    fields["grid"] = {key: value for key, value in fields.get("grid", {}).items() if key not in run} | typed
    if name is not None:
        fields["name"] = name
    return parsed(Study, fields, hint="`cwtool study run --help` lists the options")


def _asked(given: str | None) -> dict[str, Any]:
    """The fields of a file, or the question of that name. Raises InvalidInput where it is neither."""
    from cwa_engine.studies.registry import STUDY_QUESTIONS
    from cwa_engine.studies.study_file import SUFFIX, read_study
    from cwa_tui.form.places import model_name

    if given is None:
        return {}
    if given in STUDY_QUESTIONS:
        return {"question": given}
    if given.endswith(SUFFIX) or "/" in given or Path(given).is_file():
        return read_study(given, model_name)
    hint = did_you_mean(given, STUDY_QUESTIONS) or f"studies ask: {', '.join(STUDY_QUESTIONS) or 'nothing yet'}"
    raise InvalidInput(f"'{given}' is no question of studies, and no {SUFFIX} file", hint=hint)


def _grid(given: Sequence[str]) -> dict[str, list[Any]]:
    """The dimensions of `--grid dtype=float32,bfloat16 topk=10+100,1000`."""
    from cwa_engine.option_file import by_name, named
    from cwa_engine.options import Kind, option_fields
    from cwa_engine.spec import RunSpec
    from cwa_tui.form.typed import typed_value

    known = by_name(option_fields(RunSpec))
    found: dict[str, list[Any]] = {}
    for text in given:
        key, equals, values = text.partition("=")
        if not equals:
            raise InvalidInput(
                f"--grid {text} has no values", hint="write FIELD=VALUE,VALUE: --grid dtype=float32,bfloat16"
            )
        entry = named(key.removeprefix("--"), known, "--grid")
        if entry.field in found:
            raise InvalidInput(f"--grid has '{entry.field}' twice", hint="write all its values behind one =")
        split = [value for value in values.split(",") if value]
        if not split:
            raise InvalidInput(f"--grid {text} has no values", hint=f"write some: --grid {key}=VALUE,VALUE")
        if entry.kind is Kind.FLAG:
            found[entry.field] = [_flag(value, text) for value in split]
        elif entry.several:
            found[entry.field] = [typed_value(entry, value.split(_JOINED)) for value in split]
        else:
            found[entry.field] = [typed_value(entry, [value]) for value in split]
    return found


def _flag(value: str, text: str) -> bool:
    if value not in ("true", "false"):
        raise InvalidInput(f"--grid {text}: {value} is neither true nor false", hint="write true,false")
    return value == "true"


def _listed(given: Sequence[str]) -> list[str]:
    return [value for text in given for value in text.split(",") if value]
