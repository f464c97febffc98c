"""The pieces of work that are measured, ours and the plain ones, and `python -m benchmarks.cases CASE` for their memory."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks.measure import peak_above
from cwa_engine.data import corpus
from cwa_engine.data.tokens import TokenSequence, tokenize
from cwa_engine.evaluation.perplexity import sequence_nll
from cwa_engine.models.anatomy import Parameter, dissect
from cwa_engine.models.loading import LoadedModel, load_model
from cwa_engine.models.sources import ModelSource, SourceKind
from cwa_engine.sensitivity.gradients import resident
from cwa_engine.sensitivity.metrics import Needs
from cwa_engine.sensitivity.ranking import Ranker
from cwa_engine.sensitivity.selection import TopKSelection
from cwa_engine.sensitivity.sweep import sweep

TEXTS, FEW, TOKENS, K = 8, 2, 128, 100


@functools.cache
def smollm2() -> tuple[LoadedModel, list[TokenSequence]]:
    """The real SmolLM2-135M and eight passages."""
    loaded = load_model("smollm2-135m")
    return loaded, tokenize(loaded.tokenizer, corpus.load_texts(None, TEXTS), TOKENS)


@functools.cache
def wide() -> tuple[LoadedModel, list[TokenSequence]]:
    """A LLaMA of 12 blocks, 350M random weights and a vocabulary of 2,000."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        num_hidden_layers=12, hidden_size=1536, intermediate_size=4096, num_attention_heads=16, vocab_size=2000
    )
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(config).eval()
    loaded = LoadedModel(
        model=model,
        tokenizer=None,  # type: ignore[arg-type]  # its texts are random tokens
        anatomy=dissect(model),
        source=ModelSource("wide", SourceKind.FOLDER, ""),
        revision=None,
        files={},
        device=torch.device("cpu"),
        dtype="float32",
    )
    ids = torch.randint(2000, (FEW, TOKENS)).tolist()
    return loaded, [TokenSequence(tuple(row), TOKENS, False) for row in ids]


Model = tuple[LoadedModel, Sequence[TokenSequence]]


def forward_and_backward(model: Model) -> None:
    """What no ranking by gradients can do without."""
    loaded, sequences = model
    for sequence in sequences:
        sequence_nll(loaded, [sequence]).sum().backward()
    loaded.model.zero_grad()


def ranked_at_once(model: Model, needs: Needs = Needs.GRADIENT, metric: str = "grad_x_weight") -> None:
    loaded, sequences = model
    ranker = Ranker(loaded, metric, K)
    ranker.offer(resident(loaded, sequences, needs))
    ranker.ranking()


def ranked_by_sweep(model: Model) -> None:
    loaded, sequences = model
    ranker = Ranker(loaded, "grad_x_weight", K)
    for statistics in sweep(loaded, sequences, Needs.GRADIENT):
        ranker.offer(statistics)
        del statistics
    ranker.ranking()


@functools.cache
def scores() -> list[torch.Tensor]:
    """108 million scores in tensors of a model's sizes."""
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(1536, 576, generator=generator) for _ in range(122)]


def selected_streaming() -> None:
    selection = TopKSelection(K)
    for order, tensor in enumerate(scores()):
        selection.offer(Parameter(str(order), order, tuple(tensor.shape), None, "other"), tensor)
    selection.ranked()


def selected_by_concatenation() -> None:
    torch.cat([tensor.flatten() for tensor in scores()]).topk(K)


MEMORY: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
    # name: (what is there before, what is measured)
    "smollm2-resident": (lambda: sequence_of(smollm2), lambda: ranked_at_once(smollm2())),
    "smollm2-sweep": (lambda: sequence_of(smollm2), lambda: ranked_by_sweep(smollm2())),
    "wide-resident": (lambda: sequence_of(wide), lambda: ranked_at_once(wide())),
    "wide-sweep": (lambda: sequence_of(wide), lambda: ranked_by_sweep(wide())),
    "streaming": (scores, selected_streaming),
    "concatenation": (scores, selected_by_concatenation),
}


@torch.no_grad()
def sequence_of(model: Callable[[], Model]) -> None:
    """Load the weights and touch each: those of a mapped file count once they are read."""
    loaded, _ = model()
    for parameter in loaded.model.parameters():
        parameter.sum()


def main() -> None:
    before, work = MEMORY[sys.argv[1]]
    before()
    print(peak_above(work))


if __name__ == "__main__":
    main()
