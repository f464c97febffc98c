"""The measured pieces of work, ours and the plain ones. `python -m benchmarks.cases CASE` measures the memory of one."""

from __future__ import annotations

import dataclasses
import functools
import io
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, LlamaConfig

from benchmarks.measure import peak_above
from cwa_engine.damage.cases import comparisons
from cwa_engine.damage.copies import Zeroed
from cwa_engine.damage.curves import control_rows
from cwa_engine.damage.measurement import MeasurementContext, measure, prepare_measurement
from cwa_engine.damage.single_zeros import SingleZeros
from cwa_engine.damage.treatments import ZERO
from cwa_engine.data import corpus
from cwa_engine.data.tokens import TokenSequence, batched, tokenize
from cwa_engine.evaluation.batch_size import BatchSize
from cwa_engine.evaluation.perplexity import evaluate, sequence_nll
from cwa_engine.hub.sources import ModelSource, SourceKind
from cwa_engine.methods.metrics import Needs
from cwa_engine.models.anatomy import Parameter, anatomy_of
from cwa_engine.models.loading import LoadedModel, load_model
from cwa_engine.questions.ablation import ablate
from cwa_engine.records.export import ModelRecord, RunRecord, write_run
from cwa_engine.records.run_report import open_run
from cwa_engine.result import RunResult
from cwa_engine.rows import Baseline, TextUse
from cwa_engine.sensitivity.candidates import propose
from cwa_engine.sensitivity.gradients import Statistics, resident
from cwa_engine.sensitivity.ranking import Ranker, rank
from cwa_engine.sensitivity.selection import TopKSelection
from cwa_engine.sensitivity.sweep import sweep
from cwa_engine.spec import RunSpec
from cwa_tui.cli.report import run_report

TEXTS, FEW, TOKENS, K = 8, 2, 128, 100
VOCABULARY = 2000  # of models with random weights
LARGE_K, DRAWS = 100_000, 19
NO_TEXTS = TextUse("", "", 0, 0, 0, False, 0)
NO_BASELINE = Baseline(1.0, 2.7, 1.0, 0, 0, "")
NO_MODEL = ModelRecord("smollm2-135m", "", "gguf", None, {}, "float32", "cpu", "", 0)
MANY = 122  # tensors of scores: 108 million

Model = tuple[LoadedModel, Sequence[TokenSequence]]


@functools.cache
def _smollm2() -> LoadedModel:
    return load_model("smollm2-135m")


def smollm2(texts: int = TEXTS, tokens: int = TOKENS) -> Model:
    """The real SmolLM2-135M and some passages."""
    loaded = _smollm2()
    return loaded, tokenize(loaded.tokenizer, corpus.load_texts(None, texts), tokens)


@functools.cache
def wide() -> Model:
    """A LLaMA of 12 blocks, 350M random weights and a vocabulary of 2,000."""
    sizes = llama_config(hidden_size=1536, intermediate_size=4096, num_hidden_layers=12, num_attention_heads=16)
    return llama(sizes)


def llama_config(**sizes: Any) -> LlamaConfig:
    """A LLaMA of these sizes and few tokens."""
    return LlamaConfig(vocab_size=VOCABULARY, **sizes)


def llama(config: LlamaConfig) -> Model:
    """The model with random weights, and two random texts."""
    torch.manual_seed(0)
    make: Any = AutoModelForCausalLM.from_config  # untyped
    model = make(config).eval()
    loaded = LoadedModel(
        model=model,
        tokenizer=None,  # type: ignore[arg-type]  # its texts are random tokens
        anatomy=anatomy_of(model),
        source=ModelSource("wide", SourceKind.FOLDER, ""),
        revision=None,
        files={},
        device=torch.device("cpu"),
        dtype="float32",
    )
    ids = torch.randint(VOCABULARY, (FEW, TOKENS)).tolist()
    return loaded, [TokenSequence(tuple(row), TOKENS, False) for row in ids]


def forward_and_backward(model: Model, size: int = 1) -> None:
    """The forward and backward passes that every ranking by gradients needs."""
    loaded, sequences = model
    for batch in batched(sequences, size):
        torch.autograd.backward(sequence_nll(loaded, batch).sum())
    loaded.model.zero_grad()


def ranked_at_once(model: Model, needs: Needs = Needs.GRADIENT, metric: str = "grad_x_weight") -> None:
    loaded, sequences = model
    ranker = Ranker(loaded, metric, K)
    ranker.offer(resident(loaded, sequences, needs))
    ranker.ranking()


@contextmanager
def busy_neighbour() -> Iterator[psutil.Process]:
    """A suspended process; resumed, it keeps one processor busy."""
    busy = psutil.Popen([sys.executable, "-c", "while True: pass"])
    try:
        busy.suspend()
        yield busy
    finally:
        busy.kill()
        busy.wait()


def ranked_beside(neighbour: psutil.Process, model: Model) -> None:
    neighbour.resume()
    try:
        ranked_at_once(model)
    finally:
        neighbour.suspend()


def ranked_and_written(model: Model, needs: Needs, metric: str) -> None:
    """Score, select, write the files of a run and print its report; no damage is measured."""
    loaded, sequences = model
    spec = RunSpec(model="smollm2-135m", metrics=(metric,), topk=(K,), perturbations=())
    ranking = rank(loaded, resident(loaded, sequences, needs), metric, K)
    numel = loaded.anatomy.numel
    result = RunResult(numel, numel, NO_TEXTS, NO_BASELINE, (ranking,))
    source = ModelRecord("smollm2-135m", "", "gguf", None, {}, "float32", "cpu", "", numel)
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home) / "run"
        write_run(folder, RunRecord("run", spec, "", source, result, time.time(), ()))
        Console(file=io.StringIO()).print(run_report(open_run(folder).summary, str(folder)))


@functools.cache
def gradients() -> Statistics:
    """The gradients of SmolLM2's weights, for selections that are compared with each other."""
    return resident(*smollm2(FEW), Needs.GRADIENT)


def selected_drawn_and_saved(k: int) -> None:
    """Select and describe k weights, draw two default controls of them, and save; nothing is scored anew or damaged."""
    loaded, _ = smollm2(FEW)
    spec = RunSpec(model="smollm2-135m", topk=(k,), control_seeds=DRAWS, perturbations=())
    ranking = rank(loaded, gradients(), "grad_x_weight", k)
    rows = control_rows(loaded.anatomy.parameters, comparisons(loaded, [ranking], spec))
    result = RunResult(loaded.anatomy.numel, 0, NO_TEXTS, NO_BASELINE, (ranking,), controls=rows)
    with tempfile.TemporaryDirectory() as home:
        write_run(Path(home) / "run", RunRecord("run", spec, "", NO_MODEL, result, time.time(), ()))


def ranked_by_sweep(model: Model) -> None:
    loaded, sequences = model
    ranker = Ranker(loaded, "grad_x_weight", K)
    for statistics in sweep(loaded, sequences, Needs.GRADIENT):
        ranker.offer(statistics)
        del statistics
    ranker.ranking()


def fisher_of_batches(model: Model, size: int) -> None:
    loaded, sequences = model
    resident(loaded, sequences, Needs.FISHER, size)


@functools.cache
def scores(tensors: int) -> list[torch.Tensor]:
    """Random scores, in tensors with the sizes of a model."""
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(1536, 576, generator=generator) for _ in range(tensors)]


def selected_streaming(tensors: int) -> None:
    selection = TopKSelection(K)
    for order, tensor in enumerate(scores(tensors)):
        selection.offer(Parameter(str(order), order, tuple(tensor.shape), None, "other"), tensor)
    selection.ranked()


def selected_by_concatenation(tensors: int) -> None:
    torch.cat([tensor.flatten() for tensor in scores(tensors)]).topk(K)


@functools.cache
def damage_contexts() -> tuple[MeasurementContext, MeasurementContext]:
    """For measuring damage on SmolLM2: from the first changed block on, and always whole."""
    loaded, sequences = smollm2()
    spec = RunSpec(model="smollm2-135m", topk=(1,))
    context = prepare_measurement(loaded, sequences, evaluate(loaded, sequences, 1), spec, BatchSize(1))
    parts = tuple(dataclasses.replace(part, kept=None) for part in context.sample)  # the sample has all texts
    whole = dataclasses.replace(context, sample=parts)
    return context, whole


def damage_curve(context: MeasurementContext) -> None:
    """One weight of every fifth block zeroed, and one of the final norm."""
    names = [f"model.layers.{block}.mlp.down_proj.weight" for block in range(0, 30, 5)] + ["model.norm.weight"]
    for name in names:
        measure(context, {name: np.array([7])}, ZERO)


def exact_top(candidates: int, k: int, texts: int, tokens: int) -> tuple[float, float, int]:
    """(forward passes over the texts, those that one at a time takes, how many of the true top k are right)."""
    loaded, _ = smollm2()
    sequences = tokenize(loaded.tokenizer, corpus.load_texts(None, texts), tokens)
    statistics = resident(loaded, sequences, Needs.GRADIENT | Needs.TOKEN_FISHER)
    units = propose([rank(loaded, statistics, name, candidates) for name in ("grad_x_weight", "taylor")], candidates)
    del statistics
    found = ablate(loaded, sequences, units, k, seed=0)
    zeros = SingleZeros(loaded, sequences)
    weights = [Zeroed(loaded.anatomy.parameters[unit.parameter], unit.flat_index) for unit in units]
    cost = sum(zeros.nll(weights, number) for number in range(len(sequences)))  # tests: equal to one at a time
    true = {units[place].target for place in np.argsort(-cost)[:k]}
    return found.cost.spent, found.cost.naive, len(true & {row.target for row in found.rows[:k]})


MEMORY: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
    # name: (preparation, measured work)
    "smollm2-resident": (lambda: sequence_of(smollm2), lambda: ranked_at_once(smollm2())),
    "smollm2-sweep": (lambda: sequence_of(smollm2), lambda: ranked_by_sweep(smollm2())),
    "wide-resident": (lambda: sequence_of(wide), lambda: ranked_at_once(wide())),
    "wide-sweep": (lambda: sequence_of(wide), lambda: ranked_by_sweep(wide())),
    "streaming": (lambda: scores(MANY), lambda: selected_streaming(MANY)),
    "concatenation": (lambda: scores(MANY), lambda: selected_by_concatenation(MANY)),
}


def sequence_of(model: Callable[[], Model]) -> None:
    """Load the weights and touch each one."""
    touch(model()[0])


def touch(loaded: LoadedModel) -> None:
    """Read every weight: those of a mapped file take memory only after that."""
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            parameter.sum()


def main() -> None:
    before, work = MEMORY[sys.argv[1]]
    before()
    print(peak_above(work))


if __name__ == "__main__":
    main()
