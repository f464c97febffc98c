"""RunSpec: everything a run may be asked for, checked before anything is sent or loaded."""

from __future__ import annotations

import hashlib
import re
import shlex
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, field_validator, model_validator

from cwa_engine.errors import InvalidInput
from cwa_engine.models.sources import name_and_revision
from cwa_engine.perturbation.controls import CONTROLS
from cwa_engine.perturbation.kinds import PERTURBATIONS, STANDARD, Options
from cwa_engine.sensitivity.metrics import ABLATION, METRICS, PROPOSERS, TURNS
from cwa_engine.structures import parse_target

DType = Literal["auto", "float32", "bfloat16", "float16"]
Gradients = Literal["auto", "resident", "sweep"]
Offload = Literal["none", "cpu"]
Structure = Literal["weight", "row", "column", "head"]
Scope = Literal["global", "per_layer", "per_parameter", "per_component"]
Bos = Literal["auto", "always", "never"]

_ONE_BLOCK = {"gradients": "sweep", "offload": "cpu"}  # options with which no two blocks have gradients at once
_LEAST = {"seq_len": 2, "seed": 0, "bit": 0, "bits": 2, "stability": 2}  # 1 for all others
_MOST = {"bit": 63, "bits": 32, "seed": 2**32 - 1}  # and what 64 bits can hold for all others


class RunSpec(BaseModel):
    """One run: a model, texts, metrics, how many weights, and how they are damaged. Paths are absolute."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(min_length=1, max_length=4096)
    revision: str | None = None
    dtype: DType = "auto"  # auto: as stored on an accelerator, float32 on a CPU
    device: str = "auto"  # auto | cpu | cuda | cuda:N | mps
    metrics: tuple[str, ...] = ("grad_x_weight",)  # may be empty where weights are given
    topk: tuple[int, ...] = Field(default=(100,), min_length=1)
    structure: Structure = "weight"
    scope: Scope = "global"
    matrices: bool = True  # also rank and damage the matrices of decoder blocks by themselves
    include: tuple[str, ...] = ()  # globs on parameter or component names; empty: all
    exclude: tuple[str, ...] = ()
    weights: tuple[str, ...] = ()  # targets to damage as they are given, like "model.norm.weight[17]"
    probes: int = 8  # hutchinson_diag
    candidates: int = 1000  # ablation: how many weights are measured one by one
    critical_set: FiniteFloat | None = Field(default=None, gt=1)  # ablation: factor of perplexity a set is sought for
    iterate: int | None = None  # super_weight: how many weights may be zeroed, until no spike is left; None: none are
    data_file: Path | None = None  # None: the dataset, or the built-in texts
    data_name: str | None = None  # what the user called it, where data_file is a copy
    dataset: str | None = None  # NAME[:CONFIG][:SPLIT]
    text_column: str | None = None  # of a table or of JSON objects; None: the one with a usual name
    eval_limit: int | None = None  # the first N texts, None: all
    seq_len: int = 512  # tokens; longer texts are cut, and the summary says how many
    packed: bool = False  # join the texts and cut windows of seq_len
    bos: Bos = "auto"  # auto: what the tokenizer puts before a text, or BOS where the model needs it
    batch_size: int | None = None  # None: 1 on a CPU, as many as fit elsewhere
    gradients: Gradients = "auto"  # auto: resident where memory allows, else sweep
    offload: Offload = "none"  # cpu: blocks live in CPU memory and come to the device one at a time
    perturbations: tuple[str, ...] = ("zero",)  # empty: no damage is measured; "standard" stands for several
    noise_scale: FiniteFloat = Field(default=1.0, ge=0)
    scale_factor: FiniteFloat = 2.0
    bit: int | Literal["all"] | None = None  # None: drawn for each weight; "all": one after the other
    bits: int = 4
    controls: tuple[str, ...] = ("random", "random_matched")
    control_seeds: int = 19  # draws of each random control; fewer give no p-value
    fast_perturbation: bool = False
    kl: bool = False  # also KL divergence and top-1 agreement with the intact model
    individually: bool = False  # each critical weight alone, and the set without it
    dose: tuple[FiniteFloat, ...] = ()  # factors for the critical weights
    position_test: bool = False
    stability: Literal["halves"] | int | None = None  # rank again by halves of the texts, or by so many resamples
    fidelity: int | None = None  # units per metric whose predicted loss change is measured
    seed: int = 0
    output: Path | None = None

    @model_validator(mode="before")
    @classmethod
    def _plain_model_name(cls, fields: Any) -> Any:
        """`gpt2@main`, or the address of its page on the Hub, as model and revision."""
        if isinstance(fields, dict) and isinstance(fields.get("model"), str):
            model, revision = name_and_revision(fields["model"], fields.get("revision"))
            return {**fields, "model": model, "revision": revision}
        return fields

    @field_validator("metrics")
    @classmethod
    def _known_metrics(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return _known(names, METRICS)

    @field_validator("perturbations")
    @classmethod
    def _known_perturbations(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        spelled_out = [known for name in names for known in (STANDARD if name == "standard" else (name,))]
        return _known(tuple(spelled_out), PERTURBATIONS)

    @field_validator("controls")
    @classmethod
    def _known_controls(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return _known(names, CONTROLS)

    @field_validator("topk")
    @classmethod
    def _ascending_topk(cls, sizes: tuple[int, ...]) -> tuple[int, ...]:
        for k in sizes:
            _in_bounds("topk", k)
        return tuple(sorted(set(sizes)))

    @field_validator("weights")
    @classmethod
    def _readable_targets(cls, targets: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(parse_target(target).text for target in dict.fromkeys(targets))

    @field_validator(
        "eval_limit", "seq_len", "batch_size", "control_seeds", "seed", "bit", "bits", "probes", "stability", "fidelity",
        "candidates", "iterate",
    )  # fmt: skip
    @classmethod
    def _in_range(cls, value: int | str | None, info: object) -> int | str | None:
        if isinstance(value, int):
            _in_bounds(info.field_name, value)  # type: ignore[attr-defined]
        return value

    @field_validator("device")
    @classmethod
    def _known_device(cls, device: str) -> str:
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", device):
            raise InvalidInput(f"unknown device '{device}'", hint="use auto, cpu, cuda, cuda:N or mps")
        return device

    @model_validator(mode="after")
    def _fits_together(self) -> RunSpec:
        if not self.metrics and not self.weights:
            raise InvalidInput("nothing to rank and nothing to damage", hint="give --metric or --weights")
        if self.data_file and self.dataset:
            raise InvalidInput("--data-file and --dataset exclude each other", hint="give one of them")
        if self.text_column is not None and not (self.data_file or self.dataset):
            raise InvalidInput(
                "the built-in texts have no columns", hint="leave out --text-column, or give --data-file"
            )
        if self.weights and "bottom" in self.controls:
            raise InvalidInput("given weights have no lowest scores", hint="leave out --control bottom, or --weights")
        if ABLATION in self.metrics:
            self._fits_ablation()
        elif self.critical_set:
            raise InvalidInput("--critical-set needs single weights that were measured", hint="add --metric ablation")
        if self.iterate and "super_weight" not in self.metrics:
            raise InvalidInput("--iterate zeroes the weights behind spikes", hint="add --metric super_weight")
        if self.metrics in ((), (ABLATION,)) and (self.stability or self.fidelity):
            raise InvalidInput("--stability and --fidelity need a metric that gives scores", hint="add --metric")
        one_block = next((o for o, on in _ONE_BLOCK.items() if getattr(self, o) == on), None)
        if one_block and (self.fidelity or "hutchinson_diag" in self.metrics):
            raise InvalidInput(
                "--fidelity and hutchinson_diag need the gradients of all weights at once",
                hint=f"leave out --{one_block} {_ONE_BLOCK[one_block]}",
            )
        if self.offload == "cpu" and self.gradients == "resident":
            raise InvalidInput("with --offload cpu there is one block at a time", hint="leave out --gradients resident")
        if self.bit == "all" and "bit_flip" not in self.perturbations:
            raise InvalidInput("--bit all is for --perturb bit_flip", hint="add --perturb bit_flip")
        return self

    def _fits_ablation(self) -> None:
        if self.structure != "weight" or self.scope != "global":
            raise InvalidInput(
                "ablation ranks single weights of all together", hint="leave out --structure and --scope"
            )
        if "bottom" in self.controls:
            raise InvalidInput("of the weights that are not measured the lowest is not known", hint="leave out bottom")
        if self.largest_k > self.candidates:
            raise InvalidInput(
                f"--topk {self.largest_k} is more than the {self.candidates} candidates", hint="raise --candidates"
            )

    @property
    def scored_metrics(self) -> tuple[str, ...]:
        """The metrics that are scored from statistics; where only ablation is asked for, those that name its candidates."""
        scored = tuple(name for name in self.metrics if name != ABLATION)
        return scored or (PROPOSERS if self.metrics else ())

    @property
    def turns(self) -> tuple[str, ...]:
        """The metrics in the order in which they name candidates of ablation, round after round."""
        return TURNS if self.scored_metrics == PROPOSERS else self.scored_metrics

    @property
    def damages(self) -> bool:
        """Whether anything is perturbed and measured."""
        return bool(self.perturbations or self.dose or self.position_test)

    @property
    def perturbation_options(self) -> Options:
        """The settings of the perturbations, with the run's seed."""
        bit = None if self.bit == "all" else self.bit
        return Options(self.noise_scale, self.scale_factor, bit, self.bits, self.seed)

    @property
    def largest_k(self) -> int:
        return self.topk[-1]

    def sha256(self) -> str:
        """Hash of the spec as canonical JSON, without the output folder and names, which do not change what is found."""
        return hashlib.sha256(self.model_dump_json(exclude={"output", "data_name"}).encode()).hexdigest()


def parse_spec(fields: dict[str, object]) -> RunSpec:
    """A RunSpec from plain fields. Raises InvalidInput, in one sentence, where pydantic would raise ValidationError."""
    try:
        return RunSpec.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        said = f"{where}: {first['msg']}"
        if first["type"] == "literal_error":
            said = f"unknown {where} '{first['input']}': it is {first['ctx']['expected']}"
        raise InvalidInput(said, hint="`cwtool run --help` lists the options") from error


def command_of(spec: RunSpec) -> str:
    """The `cwtool run` command line that asks for the same, as far as forms and plans go."""
    words = ["cwtool", "run", "--model", spec.model, "--metric", *spec.metrics, "--topk", *map(str, spec.topk)]
    for name in _IN_COMMANDS:
        value, usual = getattr(spec, name), RunSpec.model_fields[name].default
        if name == "data_file" and spec.data_name:  # a copy, of a file or of what came out of a pipe
            value = spec.data_name if spec.data_name.startswith("/") else "-"
        if value != usual:
            option = "--" + name.replace("_", "-")
            words += [option] if value is True else [option, str(value)]
    return shlex.join(words if spec.perturbations else [*words, "--no-perturbation"])


_IN_COMMANDS = (
    "data_file", "dataset", "text_column", "revision", "seq_len", "packed", "bos", "dtype", "gradients", "offload",
    "eval_limit", "fast_perturbation",
)  # fmt: skip


def _known(names: tuple[str, ...], registry: object) -> tuple[str, ...]:
    unique = tuple(dict.fromkeys(names))
    for name in unique:
        registry[name]  # type: ignore[index]  # raises InvalidInput with near names
    return unique


def _in_bounds(name: str, value: int) -> None:
    option, least, most = "--" + name.replace("_", "-"), _LEAST.get(name, 1), _MOST.get(name, 2**63 - 1)
    if value < least:
        raise InvalidInput(f"{option} {value} is too small", hint=f"give at least {least}")
    if value > most:
        raise InvalidInput(f"{option} {value} is too large", hint=f"give at most {most}")
