"""RunSpec: all options of a run, checked before anything is sent or loaded."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationInfo, field_validator, model_validator

from cwa_engine.base.devices import check_device, devices_in
from cwa_engine.base.errors import InvalidInput
from cwa_engine.hub.sources import name_and_revision
from cwa_engine.methods.controls import CONTROLS
from cwa_engine.methods.metrics import ABLATION, CANDIDATE_METRICS, CANDIDATE_TURNS, METRICS, Needs
from cwa_engine.methods.perturbations import PERTURBATIONS, STANDARD, Options
from cwa_engine.options import (
    ABLATE,
    ANY_RUN,
    DAMAGE,
    LOAD,
    PROMPT,
    RANKING,
    RUN,
    TASKS,
    TEXTS,
    WEIGHT,
    Option,
    Variant,
    check_bounds,
    naming_field,
    parsed,
)
from cwa_engine.targets import parse_target

DType = Literal["auto", "float32", "bfloat16", "float16"]
_DTYPES = {
    "bf16": "bfloat16",
    "fp16": "float16",
    "fp32": "float32",
    "f16": "float16",
    "f32": "float32",
    "half": "float16",
}
Gradients = Literal["auto", "resident", "sweep"]
Offload = Literal["none", "cpu"]
Structure = Literal["weight", "row", "column", "head"]
Scope = Literal["global", "per_layer", "per_parameter", "per_component"]
Bos = Literal["auto", "always", "never"]

# A card ranks its weight by every metric that is scored, but for the one that takes many more passes than all others.
CARD_METRICS = tuple(name for name, metric in METRICS.items() if metric.score and Needs.HESSIAN not in metric.needs)
CARD_DOSES = (0.0, 0.5, 0.9, 1.1, 2.0, -1.0)

# Options that specs of earlier versions do not have; see `RunSpec.sha256`. A new one is added here.
_CAME_LATER = ("tasks", "task_limit", "task_path")
_ONE_BLOCK = {"gradients": "sweep", "offload": "cpu"}  # options with which only one block has gradients at a time


class _Options(BaseModel):
    """A part of `RunSpec`. It is never filled in alone, so pydantic need not build it: that takes 15 ms for each part."""

    model_config = ConfigDict(defer_build=True)


class ModelOptions(_Options):
    """The model, its dtype and its device."""

    model: Annotated[
        str,
        Option(
            "Alias, Hub id, folder or .gguf file; of the other machine with --host.",
            short="m",
            commands=(*ANY_RUN, LOAD, WEIGHT, PROMPT),
            basic=True,
        ),
    ] = Field(min_length=1, max_length=4096)
    revision: Annotated[
        str | None,
        Option(
            "Branch, tag or commit of the Hub repository.", commands=(*ANY_RUN, LOAD, WEIGHT, PROMPT), if_empty="main"
        ),
    ] = None
    dtype: Annotated[
        DType,
        Option(
            "auto, float32, bfloat16 or float16, or fp32, bf16, fp16; auto keeps the stored dtype on an accelerator and is "
            "float32 on a CPU.",
            commands=(RUN, ABLATE, LOAD, WEIGHT, PROMPT),
            basic=True,
        ),
    ] = "auto"
    device: Annotated[
        str,
        Option(
            "auto, cpu, cuda, cuda:N or mps; cpu:N is the Nth CPU lane of a daemon that has several; cuda:0+cuda:1 puts one "
            "model over several NVIDIA devices, its embedding on the first.",
            commands=(*ANY_RUN, LOAD, WEIGHT, PROMPT),
            choices=("auto", "cpu", "cuda", "mps"),
            basic=True,
        ),
    ] = "auto"


class RankingOptions(_Options):
    """What is ranked, and by which metrics."""

    metrics: Annotated[
        tuple[str, ...],
        Option(
            f"Metrics to rank by: {', '.join(METRICS)}; several may be given.",
            RANKING,
            name="metric",
            commands=(*ANY_RUN, WEIGHT),
            choices=tuple(METRICS),
            meanings={name: metric.formula for name, metric in METRICS.items()},
            basic=True,
            variants={
                ABLATE: Variant(
                    "Metrics whose best weights are the candidates.", shown_default=" ".join(CANDIDATE_METRICS)
                ),
                WEIGHT: Variant("Metrics that rank the weight.", CARD_METRICS, "all but ablation and hutchinson_diag"),
            },
        ),
    ] = ("grad_x_weight",)  # may be empty where weights are given
    topk: Annotated[
        tuple[int, ...],
        Option(
            "How many weights are critical; several may be given.",
            RANKING,
            short="k",
            commands=ANY_RUN,
            label="top-k",
            basic=True,
            variants={ABLATE: Variant("How many of the most harmful weights to find for certain.", (20,))},
        ),
    ] = Field(default=(100,), min_length=1)
    structure: Annotated[Structure, Option("What is ranked and damaged: weight, row, column or head.", RANKING)] = (
        "weight"
    )
    scope: Annotated[
        Scope, Option("Where the top k is taken: global, per_layer, per_parameter or per_component.", RANKING)
    ] = "global"
    matrices: Annotated[bool, Option("Also rank and damage the matrices of decoder blocks separately.", RANKING)] = True
    include: Annotated[
        tuple[str, ...],
        Option(
            "Only parameters or components with these names, like down or '*.mlp.*'.", RANKING, commands=(RUN, ABLATE)
        ),
    ] = ()  # globs; empty: all
    exclude: Annotated[
        tuple[str, ...], Option("No parameters or components with these names.", RANKING, commands=(RUN, ABLATE))
    ] = ()
    weights: Annotated[
        tuple[str, ...],
        Option(
            "Damage these weights: a file (list, topk_*.csv, masks) or NAME[out,in]; : means all.",
            RANKING,
            commands=(RUN, PROMPT),
        ),
    ] = ()  # targets like "model.norm.weight[17]"
    probes: Annotated[int, Option("hutchinson_diag: random probes.", RANKING, commands=(RUN, WEIGHT))] = 8
    candidates: Annotated[
        int, Option("ablation: how many weights are measured one by one.", RANKING, commands=(RUN, ABLATE))
    ] = 1000
    critical_set: Annotated[
        FiniteFloat | None,
        Option(
            "ablation: find the smallest set that multiplies perplexity by FACTOR; 0: do not.",
            RANKING,
            metavar="FACTOR",
            words={"0": None},
            commands=(RUN, ABLATE),
            variants={ABLATE: Variant(default=10.0)},
        ),
    ] = Field(default=None, gt=1)
    iterate: Annotated[
        int | None,
        Option(
            "super_weight: zero the weight behind the largest spike, up to N times, until it is gone.",
            RANKING,
            metavar="[N]",
            bare="10",
        ),
    ] = None  # None: none are zeroed


class TextOptions(_Options):
    """The texts, and how they become sequences."""

    data_file: Annotated[
        Path | None,
        Option(
            "Your own texts, of this machine: .txt, .jsonl, .json, .csv, .parquet, code; - reads a pipe.",
            TEXTS,
            metavar="FILE",
            commands=(*ANY_RUN, WEIGHT),
            label="texts",
            if_empty="the built-in texts",
            basic=True,
        ),
    ] = None  # None: the dataset, or the built-in texts
    data_name: str | None = None  # what the user called it, where data_file is a copy
    dataset: Annotated[
        str | None,
        Option(
            "Texts of NAME[:CONFIG][:SPLIT], from the Hub or a folder; needs cwtool[eval].",
            TEXTS,
            commands=(*ANY_RUN, WEIGHT),
        ),
    ] = None
    text_column: Annotated[
        str | None,
        Option(
            "The column of texts in a table or in JSON objects; by default text or a similar name.",
            TEXTS,
            commands=(*ANY_RUN, WEIGHT),
        ),
    ] = None
    eval_limit: Annotated[
        int | None,
        Option(
            "Use the first N texts only.",
            TEXTS,
            commands=(*ANY_RUN, WEIGHT),
            label="first texts",
            if_empty="all",
            basic=True,
        ),
    ] = None  # None: all
    seq_len: Annotated[
        int, Option("Longest sequence in tokens; longer texts are cut.", TEXTS, least=2, commands=(*ANY_RUN, WEIGHT))
    ] = 512
    packed: Annotated[
        bool, Option("Join the texts and cut windows of --seq-len tokens.", TEXTS, commands=(*ANY_RUN, WEIGHT))
    ] = False
    bos: Annotated[
        Bos,
        Option(
            "BOS before each text or window: always, never, or auto, as the tokenizer does.",
            TEXTS,
            commands=(*ANY_RUN, WEIGHT, PROMPT),
        ),
    ] = "auto"  # auto: what the tokenizer puts before a text, or BOS where the model needs it


class SpeedOptions(_Options):
    """How gradients are computed. Scores do not depend on it."""

    batch_size: Annotated[
        int | None,
        Option(
            "Sequences at once, or auto: 1 on a CPU, as many as fit elsewhere.",
            words={"auto": None},
            shown_default="auto",
            commands=(RUN, ABLATE, WEIGHT),
        ),
    ] = None
    gradients: Annotated[
        Gradients,
        Option(
            "resident keeps the gradients of all weights, sweep those of one block; auto decides by memory.",
            commands=(RUN, ABLATE, WEIGHT),
        ),
    ] = "auto"
    offload: Annotated[
        Offload,
        Option(
            "cpu keeps blocks in CPU memory, for models larger than the device; none does not.",
            commands=(RUN, ABLATE, WEIGHT, PROMPT),
        ),
    ] = "none"


class DamageOptions(_Options):
    """How critical sets are damaged, and what they are compared with."""

    perturbations: Annotated[
        tuple[str, ...],
        Option(
            f"How weights are changed: {', '.join(PERTURBATIONS)}; standard is {', '.join(STANDARD)}.",
            DAMAGE,
            name="perturb",
            commands=(RUN, PROMPT),
            choices=("standard", *PERTURBATIONS),
            meanings={"standard": ", ".join(STANDARD), **{name: each.summary for name, each in PERTURBATIONS.items()}},
            no="perturbation",
            no_help="Only rank; measure no damage.",
            basic=True,
            variants={PROMPT: Variant(f"How weights are changed: one of {', '.join(PERTURBATIONS)}.")},
        ),
    ] = ("zero",)  # empty: no damage is measured
    noise_scale: Annotated[
        FiniteFloat,
        Option("gaussian_noise: standard deviation, in units of the parameter's.", DAMAGE, commands=(RUN, PROMPT)),
    ] = Field(default=1.0, ge=0)
    scale_factor: Annotated[FiniteFloat, Option("scale: the factor.", DAMAGE, commands=(RUN, PROMPT))] = 2.0
    bit: Annotated[
        int | Literal["all"] | None,
        Option(
            "bit_flip: which bit, 0 is the lowest; all flips each bit in turn.",
            DAMAGE,
            least=0,
            most=63,
            words={"all": "all"},
            shown_default="drawn",
            commands=(RUN, PROMPT),
            variants={PROMPT: Variant("bit_flip: which bit, 0 is the lowest.")},
        ),
    ] = None  # None: drawn for each weight
    bits: Annotated[int, Option("quantize: number of bits.", DAMAGE, least=2, most=32, commands=(RUN, PROMPT))] = 4
    controls: Annotated[
        tuple[str, ...],
        Option(
            f"What the critical set is compared with: {', '.join(CONTROLS)}.",
            DAMAGE,
            name="control",
            choices=tuple(CONTROLS),
            meanings={name: control.summary for name, control in CONTROLS.items()},
        ),
    ] = ("random", "random_matched")
    control_seeds: Annotated[int, Option("Draws of each random control; fewer than 19 give no p-value.", DAMAGE)] = 19
    fast_perturbation: Annotated[bool, Option("Measure damage on a quarter of the evaluation texts.", DAMAGE)] = False
    kl: Annotated[bool, Option("Also measure KL divergence and top-1 agreement with the intact model.", DAMAGE)] = False
    individually: Annotated[bool, Option("Also damage each critical weight alone, and the set without it.", DAMAGE)] = (
        False
    )
    dose: Annotated[
        tuple[FiniteFloat, ...],
        Option(
            "Also multiply the critical weights by each of these factors.",
            DAMAGE,
            commands=(RUN, WEIGHT),
            variants={WEIGHT: Variant("Multiply the weight by each of these factors.", CARD_DOSES)},
        ),
    ] = ()
    position_test: Annotated[
        bool, Option("Also write the critical weights' values elsewhere in the same parameter.", DAMAGE)
    ] = False


class TaskOptions(_Options):
    """Tasks that the damaged model is compared on."""

    tasks: Annotated[
        tuple[str, ...],
        Option(
            "Tasks, groups or tags of lm-evaluation-harness to measure intact and damaged; needs cwtool[eval].",
            TASKS,
            metavar="NAME",
        ),
    ] = ()
    task_limit: Annotated[
        int | None, Option("Use the first N documents of each task only.", TASKS, metavar="N", if_empty="all")
    ] = None  # None: all
    task_path: Annotated[
        Path | None,
        Option("A folder with your own task files, of the daemon's machine.", TASKS, metavar="DIR", if_empty="none"),
    ] = None


# pydantic orders fields from the last base to the first, and their order is part of a spec's hash.
class RunSpec(TaskOptions, DamageOptions, SpeedOptions, TextOptions, RankingOptions, ModelOptions):
    """One run: a model, texts, metrics, how many weights, and how they are damaged. Paths are absolute."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)  # completion needs its fields alone

    stability: Annotated[
        Literal["halves"] | int | None,
        Option(
            "Rank again by halves of the texts, or by N resamples, and compare.",
            RANKING,
            metavar="[N]",
            least=2,
            words={"halves": "halves"},
            bare="halves",
        ),
    ] = None
    fidelity: Annotated[
        int | None,
        Option(
            "Measure the loss change of N weights of all scores, and compare with what metrics predict.",
            RANKING,
            metavar="[N]",
            bare="120",
        ),
    ] = None
    seed: Annotated[
        int,
        Option(
            "Seed of control draws, probes, resamples and bootstrap.",
            DAMAGE,
            least=0,
            most=2**32 - 1,
            commands=(RUN, ABLATE, WEIGHT, PROMPT),
            variants={PROMPT: Variant("Seed of sampling, and of perturbations that draw.")},
        ),
    ] = 0
    output: Annotated[
        Path | None,
        Option(
            "Also write the run's files here, on this machine.", short="o", metavar="FOLDER", commands=(RUN, ABLATE)
        ),
    ] = None

    @model_validator(mode="before")
    @classmethod
    def _plain_model_name(cls, fields: Any) -> Any:
        """Split `gpt2@main`, or the address of a Hub page, into model and revision."""
        if isinstance(fields, dict) and isinstance(fields.get("model"), str):
            model, revision = name_and_revision(fields["model"], fields.get("revision"))
            return {**fields, "model": model, "revision": revision}
        return fields

    @field_validator("dtype", mode="before")
    @classmethod
    def _dtype_by_its_other_names(cls, name: Any) -> Any:
        """`bf16` and `torch.bfloat16` are bfloat16."""
        plain = name.removeprefix("torch.").lower() if isinstance(name, str) else name
        return _DTYPES.get(plain, plain)

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
        return tuple(sorted(set(sizes)))

    @field_validator("weights")
    @classmethod
    def _readable_targets(cls, targets: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(parse_target(target).text for target in dict.fromkeys(targets))

    @field_validator("*")
    @classmethod
    def _in_bounds(cls, value: Any, info: ValidationInfo) -> Any:
        check_bounds(cls, info.field_name, value)
        return value

    @field_validator("device")
    @classmethod
    def _known_device(cls, device: str) -> str:
        return check_device(device)

    _name_the_field = field_validator("*", mode="wrap")(naming_field)  # the last validator encloses those above

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
        if self.offload == "cpu" and len(devices_in(self.device)) > 1:
            raise InvalidInput(
                "blocks in CPU memory come to one device", hint="leave out --offload, or name one device"
            )
        if self.offload == "cpu" and self.gradients == "resident":
            raise InvalidInput("with --offload cpu there is one block at a time", hint="leave out --gradients resident")
        if self.tasks and not self.perturbations:
            raise InvalidInput("--tasks measures damaged models", hint="add --perturb, or leave out --no-perturbation")
        if not self.tasks and (self.task_limit is not None or self.task_path is not None):
            raise InvalidInput("--task-limit and --task-path are for --tasks", hint="add --tasks NAME")
        if self.bit == "all" and "bit_flip" not in self.perturbations:
            raise InvalidInput("--bit all is for --perturb bit_flip", hint="add --perturb bit_flip")
        return self

    def _fits_ablation(self) -> None:
        if self.structure != "weight" or self.scope != "global":
            raise InvalidInput(
                "ablation ranks single weights of all together", hint="leave out --structure and --scope"
            )
        if "bottom" in self.controls:
            raise InvalidInput(
                "ablation does not know the lowest of the weights it does not measure", hint="leave out bottom"
            )
        if self.largest_k > self.candidates:
            raise InvalidInput(
                f"--topk {self.largest_k} is more than the {self.candidates} candidates", hint="raise --candidates"
            )

    @property
    def scored_metrics(self) -> tuple[str, ...]:
        """The metrics that are scored from statistics. With ablation alone, those that name its candidates."""
        scored = tuple(name for name in self.metrics if name != ABLATION)
        return scored or (CANDIDATE_METRICS if self.metrics else ())

    @property
    def turns(self) -> tuple[str, ...]:
        """The metrics in the order in which they name candidates of ablation, round after round."""
        return CANDIDATE_TURNS if self.scored_metrics == CANDIDATE_METRICS else self.scored_metrics

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
        """Hash of the spec as JSON, without the output folder and the name of a copied file, which do not change results.

        An option that came later is left out where it is not used: the hash of an earlier spec stays what it was.
        """
        unused = {name for name in _CAME_LATER if getattr(self, name) == type(self).model_fields[name].default}
        return hashlib.sha256(self.model_dump_json(exclude={"output", "data_name", *unused}).encode()).hexdigest()


def parse_spec(fields: dict[str, object]) -> RunSpec:
    """A RunSpec from plain fields. Raises InvalidInput with one sentence instead of pydantic's ValidationError."""
    return parsed(RunSpec, fields, hint="`cwtool run --help` lists the options")


def _known(names: tuple[str, ...], registry: object) -> tuple[str, ...]:
    unique = tuple(dict.fromkeys(names))
    for name in unique:
        registry[name]  # type: ignore[index]  # raises InvalidInput with near names
    return unique
