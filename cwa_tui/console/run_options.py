"""The options of `cwtool run`: what each is called and says of itself, and the spec they make together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from cwa_engine import durations
from cwa_engine.errors import InvalidInput
from cwa_engine.files import user_path
from cwa_engine.sensitivity.metrics import ABLATION, PROPOSERS
from cwa_engine.structures import read_targets
from cwa_tui.console.options import numbers, values, whole_numbers
from cwa_tui.places import model_name


def _metric_help() -> str:
    from cwa_engine.sensitivity.metrics import METRICS

    return f"How to rank: {', '.join(METRICS)}; several may be given."


def _perturb_help() -> str:
    from cwa_engine.perturbation.kinds import PERTURBATIONS, STANDARD

    return f"What is done to weights: {', '.join(PERTURBATIONS)}; standard is {', '.join(STANDARD)}."


def _control_help() -> str:
    from cwa_engine.perturbation.controls import CONTROLS

    return f"What the critical set is compared with: {', '.join(CONTROLS)}."


STANDARD_INPUT = "-"  # as people type it
_STDIN = Path("/dev/stdin")
_RANKING, _DATA, _DAMAGE, _QUEUE = "What is ranked", "Texts", "Damage and controls", "Queue and memory"


def _option(*names: str, panel: str, **settings: Any) -> Any:
    return typer.Option(*names, rich_help_panel=panel, **settings)


Name = Annotated[
    str, typer.Option("--model", "-m", help="Alias, Hub id, folder or .gguf file; of the other machine with --host.")
]
Metric = Annotated[list[str] | None, _option(help=_metric_help(), show_default="grad_x_weight", panel=_RANKING)]
TopK = Annotated[
    list[str] | None,
    _option(help="How many weights are critical; several may be given.", show_default="100", panel=_RANKING),
]
Proposers = Annotated[
    list[str] | None,
    _option(help="Metrics whose best weights are the candidates.", show_default=" ".join(PROPOSERS), panel=_RANKING),
]
ExactTopK = Annotated[
    list[str] | None,
    _option(help="How many of the most harmful are wanted for certain.", show_default="20", panel=_RANKING),
]
Structure = Annotated[str, _option(help="What is ranked and damaged: weight, row, column or head.", panel=_RANKING)]
Scope = Annotated[
    str,
    _option(help="Where the top k is taken: global, per_layer, per_parameter or per_component.", panel=_RANKING),
]
Matrices = Annotated[
    bool,
    _option(
        "--matrices/--no-matrices",
        help="Also rank and damage the matrices of decoder blocks by themselves.",
        panel=_RANKING,
    ),
]
Include = Annotated[
    list[str] | None,
    _option(help="Only parameters or components of such names, like down or '*.mlp.*'.", panel=_RANKING),
]
Exclude = Annotated[list[str] | None, _option(help="No parameters or components of such names.", panel=_RANKING)]
Weights = Annotated[
    list[str] | None,
    _option(
        help="Damage these: a file of targets, a topk_*.csv, or NAME\\[out,in], where : stands for all.", panel=_RANKING
    ),
]
Probes = Annotated[int, _option(help="hutchinson_diag: random probes.", panel=_RANKING)]
Candidates = Annotated[int, _option(help="ablation: how many weights are measured one by one.", panel=_RANKING)]
CriticalSet = Annotated[
    float | None,
    _option(help="ablation: seek the smallest set that multiplies perplexity by this; 0: none.", panel=_RANKING),
]
Iterate = Annotated[
    str | None,
    _option(
        help="super_weight: zero the weight behind the largest spike, and so on until it is gone, N at most.",
        metavar="[N]",
        panel=_RANKING,
    ),
]
Stability = Annotated[
    str | None,
    _option(help="Rank again by halves of the texts, or by N resamples, and compare.", metavar="[N]", panel=_RANKING),
]
FidelityOption = Annotated[
    str | None,
    _option(
        help="Measure the loss change of N weights of all scores, and compare with what metrics predict.",
        metavar="[N]",
        panel=_RANKING,
    ),
]
DataFile = Annotated[
    str | None,
    _option(
        help="Your own texts, of this machine: .txt, .jsonl, .json, .csv, .parquet, code; - reads a pipe.",
        metavar="FILE",
        panel=_DATA,
    ),
]
Dataset = Annotated[
    str | None,
    _option(help="Texts of NAME\\[:CONFIG]\\[:SPLIT], from the Hub or a folder; needs cwtool\\[eval].", panel=_DATA),
]
TextColumn = Annotated[
    str | None,
    _option(help="Where a table or JSON objects have their texts; text or the like if left out.", panel=_DATA),
]
EvalLimit = Annotated[int | None, _option(help="Use the first N texts only.", panel=_DATA)]
SeqLen = Annotated[int, _option(help="Longest sequence in tokens; longer texts are cut.", panel=_DATA)]
Packed = Annotated[bool, _option("--packed", help="Join the texts and cut windows of --seq-len tokens.", panel=_DATA)]
Bos = Annotated[
    str, _option(help="BOS before each text or window: always, never, or auto, as the tokenizer does.", panel=_DATA)
]
FastPerturbation = Annotated[
    bool,
    _option("--fast-perturbation", help="Measure damage on a quarter of the evaluation texts.", panel=_DAMAGE),
]
NoPerturbation = Annotated[bool, _option("--no-perturbation", help="Only rank; measure no damage.", panel=_DAMAGE)]
Perturb = Annotated[list[str] | None, _option(help=_perturb_help(), show_default="zero", panel=_DAMAGE)]
NoiseScale = Annotated[float, _option(help="gaussian_noise: times the parameter's std.", panel=_DAMAGE)]
ScaleFactor = Annotated[float, _option(help="scale: the factor.", panel=_DAMAGE)]
Bit = Annotated[
    str | None,
    _option(
        help="bit_flip: which, 0 is the lowest; all tries one after the other.", show_default="drawn", panel=_DAMAGE
    ),
]
Bits = Annotated[int, _option(help="quantize: how many.", panel=_DAMAGE)]
Dose = Annotated[
    list[str] | None, _option(help="Also multiply the critical weights by each of these factors.", panel=_DAMAGE)
]
PositionTest = Annotated[
    bool,
    _option("--position-test", help="Also write their values elsewhere in the same parameter.", panel=_DAMAGE),
]
Individually = Annotated[
    bool,
    _option("--individually", help="Also each critical weight alone, and the set without it.", panel=_DAMAGE),
]
Kl = Annotated[
    bool, _option("--kl", help="Also KL divergence and top-1 agreement with the intact model.", panel=_DAMAGE)
]
Control = Annotated[
    list[str] | None, _option(help=_control_help(), show_default="random random_matched", panel=_DAMAGE)
]
ControlSeeds = Annotated[
    int, _option(help="Draws of each random control; fewer than 19 give no p-value.", panel=_DAMAGE)
]
Seed = Annotated[int, _option(help="Of control draws, probes, resamples and bootstrap.", panel=_DAMAGE)]
BatchSize = Annotated[str, typer.Option(help="Sequences at once, or auto: 1 on a CPU, as many as fit elsewhere.")]
Gradients = Annotated[
    str, typer.Option(help="resident keeps those of all weights, sweep those of one block; auto goes by memory.")
]
Offload = Annotated[
    str, typer.Option(help="cpu keeps blocks in CPU memory, for models larger than the device; none does not.")
]
Output = Annotated[
    str | None,
    typer.Option("--output", "-o", help="Also write the run's files here, on this machine.", metavar="FOLDER"),
]

Force = Annotated[
    bool, typer.Option("--force", help="Replace a run's files in the --output folder, whatever else it holds.")
]

Priority = Annotated[int, _option(min=-100, max=100, help="Higher goes first; the default is 0.", panel=_QUEUE)]
After = Annotated[str | None, _option(help="Begin only when this run is done.", metavar="RUN_ID", panel=_QUEUE)]
KeepAlive = Annotated[
    str | None,
    _option(help="How long the model stays warm after its last use: 30m, 0, forever.", panel=_QUEUE),
]
WaitForMemory = Annotated[
    bool, _option("--wait-for-memory", help="Stay queued until the model fits, instead of failing.", panel=_QUEUE)
]

NoCache = Annotated[
    bool, _option("--no-cache", help="Score anew even where an earlier run has these scores.", panel=_QUEUE)
]

Retries = Annotated[
    int, _option(min=0, max=100, help="Run again by itself so often, if the worker dies by itself.", panel=_QUEUE)
]


def spec_fields(given: dict[str, Any]) -> dict[str, Any]:
    """The fields of a RunSpec from the options as they were given, by their names in the command. Raises InvalidInput."""
    several = {"metric": "metrics", "control": "controls", "perturb": "perturbations", "include": "include"}
    several["exclude"] = "exclude"
    fields = {name: given[name] for name in _AS_THEY_ARE if name in given}
    fields |= {name: convert(given[name]) for name, convert in _CONVERTED.items() if name in given}
    fields |= {field: values(given[option]) for option, field in several.items() if given.get(option)}
    if given["topk"]:
        fields["topk"] = whole_numbers("--topk", given["topk"])
    if given.get("weights"):
        if STANDARD_INPUT in given["weights"] and fields["data_file"] == _STDIN:
            raise InvalidInput("standard input is either --weights or --data-file", hint="give one of them as a file")
        fields["weights"] = _targets(given["weights"])
        fields.setdefault("metrics", ())
    if given.get("no_perturbation"):
        fields["perturbations"] = ()
    return fields


def job_options(given: dict[str, Any]) -> dict[str, Any]:
    """The fields of JobOptions from the options as they were given. Raises InvalidInput."""
    if given.get("keep_alive"):
        durations.seconds(given["keep_alive"])
    names = ("priority", "after", "keep_alive", "wait_for_memory", "pin", "no_cache", "force", "retries")
    return {name: given[name] for name in names if name in given}


def ablation_fields(given: dict[str, Any]) -> dict[str, Any]:
    """The same for `cwtool ablate`: the metrics name the candidates, and no further damage is measured."""
    fields = spec_fields(given)
    metrics = [name for name in fields.get("metrics", ()) if name != ABLATION]
    return {**fields, "metrics": (*metrics, ABLATION), "perturbations": (), "matrices": False}


_AS_THEY_ARE = (
    "matrices", "revision", "dtype", "device", "gradients", "offload", "structure", "scope", "probes", "text_column",
    "eval_limit", "seq_len", "packed", "bos", "control_seeds", "candidates", "fast_perturbation", "noise_scale", "scale_factor",
    "bits", "position_test", "individually", "kl", "seed",
)  # fmt: skip


def _targets(given: list[str]) -> list[str]:
    """Targets as typed, and those of files."""
    files = [None if entry.endswith("]") else _file("--weights", entry) for entry in given]
    return [t for entry, file in zip(given, files, strict=True) for t in (read_targets(file) if file else [entry])]


def _file(option: str, given: str) -> Path:
    """A file as it was typed, - being standard input."""
    return _STDIN if given == STANDARD_INPUT else user_path(given, option)


def _dataset(given: str) -> str:
    from cwa_engine.data.datasets import absolute_dataset  # who asks for help need not wait for it

    return absolute_dataset(given)


def _number(option: str, given: str | None, word: str, meaning: Any) -> Any:
    """A whole number, or what a word means. Raises InvalidInput naming the option."""
    if given is None or given == word:
        return meaning if given else None
    try:
        return int(given.replace("_", ""))
    except ValueError:
        also = f" or {word}" if word else ""
        raise InvalidInput(f"{option} {given} is no whole number", hint=f"give a number{also}") from None


_CONVERTED: dict[str, Callable[[Any], Any]] = {
    "model": model_name,
    "data_file": lambda given: None if given is None else _file("--data-file", given),
    "output": lambda given: None if given is None else user_path(given, "--output"),
    "dataset": lambda given: None if given is None else _dataset(given),
    "batch_size": lambda given: _number("--batch-size", given, "auto", None),
    "bit": lambda given: _number("--bit", given, "all", "all"),
    "stability": lambda given: _number("--stability", given, "halves", "halves"),
    "fidelity": lambda given: _number("--fidelity", given, "", None),
    "iterate": lambda given: _number("--iterate", given, "", None),
    "critical_set": lambda given: given or None,
    "dose": lambda given: numbers("--dose", given),
}
