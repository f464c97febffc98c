"""What a program asks of the engine, with everything by keyword: `import cwa_engine as cwa` has these functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cwa_engine.base.errors import InvalidInput, did_you_mean
from cwa_engine.base.events import Emit, ignore
from cwa_engine.base.files import user_path
from cwa_engine.data.corpus import IN_MEMORY, path_of_given
from cwa_engine.local_run import load_for, run_here
from cwa_engine.models.in_memory import as_loaded, hashed, wrap
from cwa_engine.models.loading import LoadedModel
from cwa_engine.options import RUN, WEIGHT, option_fields
from cwa_engine.records.run_report import RunReport
from cwa_engine.spec import CARD_DOSES, CARD_METRICS, RunSpec, parse_spec
from cwa_engine.weight_rows import WeightCard
from cwa_engine.weights.card import weight_card as examine

_OF_LOADING = ("revision", "dtype", "device", "offload")  # options that a model in memory has no use for
_OF_TEXTS = ("data_file", "dataset", "text_column")  # that texts in memory have no use for
_DTYPES = ("float32", "bfloat16", "float16")


def analyze(
    model: str | Path | PreTrainedModel | LoadedModel,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    texts: Sequence[str] | None = None,
    emit: Emit = ignore,
    **options: object,
) -> RunReport:
    """Rank the critical weights of a model, damage them, measure what follows, and report.

    `model` is a name (alias, Hub id, folder or .gguf file), a model of transformers with its `tokenizer`, or what
    `load_model` or `wrap` gave. Its weights are bit for bit the same afterwards. `texts` are used instead of the built-in
    ones. `emit` hears of every event on the way. All other options are fields of `RunSpec`.

    Raises InvalidInput for an option that there is not, and CwaErrors for what cannot be analysed.

        report = cwa.analyze(model, tokenizer=tokenizer, texts=["...", "..."], metrics=["grad_x_weight"], topk=[10])
        report.topk()[0].target
        report.save("results/mine")
    """
    spec, load = _asked(model, tokenizer, texts, options, RUN)
    return run_here(spec, load, emit, texts)


def weight_card(
    model: str | Path | PreTrainedModel | LoadedModel,
    weight: str,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    texts: Sequence[str] | None = None,
    emit: Emit = ignore,
    **options: object,
) -> WeightCard:
    """Examine one weight, named as `NAME[out,in]`: its rank, what damaging it does, its bits, what its channels carry.

    Model, texts and `emit` are as for `analyze`; options are those of `cwtool weight`, by default all metrics that are
    scored in one pass. The weights of the model are bit for bit the same afterwards.

    Raises InvalidInput for anything but one weight that the model has, and what `analyze` raises.

        card = cwa.weight_card("gpt2", "transformer.h.2.mlp.c_proj.weight[447,666]")
        card.alone.delta_nll, card.ranks[0].rank
    """
    spec, load = _asked(model, tokenizer, texts, {"metrics": CARD_METRICS, "dose": CARD_DOSES, **options}, WEIGHT)
    loaded = load(emit)
    with as_loaded(loaded.model):
        return examine(hashed(loaded), spec.model_copy(update={"weights": (weight,)}), emit, texts)


def _asked(
    model: str | Path | PreTrainedModel | LoadedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    texts: Sequence[str] | None,
    options: dict[str, object],
    command: str,
) -> tuple[RunSpec, Callable[[Emit], LoadedModel]]:
    """What is asked of which model."""
    _check_names(options, command)
    if texts is not None:
        _refuse(options, _OF_TEXTS, "texts are given")
        options |= {"data_file": path_of_given(texts), "data_name": IN_MEMORY}
    elif options.get("data_file") is not None:
        options["data_file"] = user_path(str(options["data_file"]), "data_file")
    if isinstance(model, (str, Path)):
        _refuse({"tokenizer": tokenizer}, ("tokenizer",), "a name leads to a tokenizer as well")
        spec = parse_spec({"model": str(model), **options})
        return spec, lambda say: load_for(spec, say)
    _refuse(options, _OF_LOADING, "the model is in memory")
    if isinstance(model, LoadedModel):
        _refuse({"tokenizer": tokenizer}, ("tokenizer",), "a LoadedModel has its tokenizer")
        loaded = model
    else:
        loaded = wrap(model, tokenizer)
    return parse_spec({"model": loaded.source.name, **_how_loaded(loaded), **options}), lambda say: loaded


def _check_names(options: Mapping[str, object], command: str) -> None:
    """Raises InvalidInput, naming near ones, for an option that a command does not have."""
    known = [
        name
        for name, entry in option_fields(RunSpec).items()
        if name != "output" and (command == RUN or command in entry.option.commands)
    ]
    if "output" in options:
        raise InvalidInput("output is an option of the command line", hint='write the files by report.save("folder")')
    for name in options:
        if name not in known:
            raise InvalidInput(f"unknown option '{name}'", hint=did_you_mean(name, known) or f"use {', '.join(known)}")


def _refuse(options: Mapping[str, object], names: Sequence[str], why: str) -> None:
    if given := [name for name in names if options.get(name) is not None]:
        raise InvalidInput(f"{why}, so {' and '.join(given)} has no meaning", hint=f"leave out {', '.join(given)}")


def _how_loaded(loaded: LoadedModel) -> dict[str, object]:
    """Options with which the model would be loaded as it is."""
    dtype = {"dtype": loaded.dtype} if loaded.dtype in _DTYPES else {}
    return {"revision": loaded.revision, "device": loaded.device_name, **dtype}
