"""What `benchmarks.gpu` measures: models of known shapes with random weights, and pieces of work on them."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers
from torch import nn

from benchmarks.measure import Spread, spread
from cwa_engine.damage.patch import patched
from cwa_engine.data.tokens import TokenSequence, batched
from cwa_engine.evaluation.perplexity import evaluate, sequence_nll
from cwa_engine.hub.sources import ModelSource, SourceKind
from cwa_engine.machine.memory import available_memory
from cwa_engine.methods.metrics import Needs
from cwa_engine.methods.perturbations import PERTURBATIONS
from cwa_engine.models.anatomy import anatomy_of
from cwa_engine.models.checksum import checksum
from cwa_engine.models.determinism import exact_kernels
from cwa_engine.models.facts import Facts
from cwa_engine.models.fake_model import LiveBytes
from cwa_engine.models.loading import LoadedModel, load_model
from cwa_engine.models.memory import release
from cwa_engine.models.offload import Offload
from cwa_engine.pipeline import analyze
from cwa_engine.planning import working_bytes
from cwa_engine.sensitivity import ranking
from cwa_engine.sensitivity.gradients import resident
from cwa_engine.sensitivity.ranking import Ranker
from cwa_engine.sensitivity.sweep import sweep
from cwa_engine.spec import RunSpec

ROUNDS = 3
BATCH, K = 8, 1000
LEFT_BYTES = 4e9  # of this machine's memory that offload is not measured without

# Shapes of SmolLM2-135M, Llama-3.2-1B and Llama-3.1-8B.
SHAPES: dict[str, dict[str, Any]] = {
    "135M": {
        "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
        "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True,
    },
    "1B": {
        "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": True,
    },
    "8B": {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": False,
    },
    "2M": {
        "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 8, "num_attention_heads": 4,
        "num_key_value_heads": 4, "vocab_size": 2000, "tie_word_embeddings": True,
    },
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A model on a device with its texts."""

    name: str
    loaded: LoadedModel
    texts: Sequence[TokenSequence]

    @property
    def tokens(self) -> int:
        return sum(len(text.ids) for text in self.texts)


def rate_of_products(device: torch.device) -> float:
    """Floating-point operations a second of a product of matrices."""
    size = 256 if device.type == "cpu" else 4096
    one = torch.randn(size, size, device=device, dtype=torch.bfloat16)

    def work() -> None:
        for _ in range(10):
            one @ one

    return 10 * 2 * size**3 / seconds(device, work).median


def overhead(case: Case) -> str:
    def ranked() -> None:
        ranker = Ranker(case.loaded, "grad_x_weight", K)
        ranker.offer(resident(case.loaded, case.texts, Needs.GRADIENT, BATCH))
        ranker.ranking()

    return f"x{ratio(case, ranked, lambda: forward_and_backward(case))}"


def utilisation(case: Case, products: float) -> str:
    took = seconds(case.loaded.device, lambda: resident(case.loaded, case.texts, Needs.GRADIENT, BATCH))
    operations = 6 * case.loaded.anatomy.numel * case.tokens
    rate = case.tokens / took.median
    return f"{rate:,.0f} tokens/s, {100 * operations / took.median / products:.0f} % (6 operations a weight and token)"


def sweep_time(case: Case) -> str:
    return f"x{ratio(case, lambda: swept(case), lambda: resident(case.loaded, case.texts, Needs.GRADIENT, BATCH))}"


def memory(case: Case, source: str) -> str:
    def work() -> None:
        if source == "sweep":
            swept(case)
        else:
            resident(case.loaded, case.texts, Needs.GRADIENT, BATCH)

    planned, counted = working_bytes(case.loaded, case.texts, Needs.GRADIENT, source, BATCH)
    found = peak_bytes(case.loaded, work)
    how = "" if counted else ", roughly"
    return f"{planned / 1e6:,.0f} MB planned{how}, {found / 1e6:,.0f} MB measured, x{planned / found:.2f}"


def squares(case: Case) -> str:
    return f"x{ratio(case, lambda: swept(case, Needs.GRADIENT | Needs.FISHER), lambda: swept(case))}"


def piece_sizes(case: Case) -> str:
    statistics = next(iter(sweep(case.loaded, case.texts[:1], Needs.GRADIENT, 1)))
    by_device = ranking._PIECE_ON_GPU

    def ranked(piece: int) -> None:
        ranking._PIECE_ON_GPU = piece
        try:
            Ranker(case.loaded, "grad_x_weight", K).offer(statistics)
        finally:
            ranking._PIECE_ON_GPU = by_device

    return f"x{ratio(case, lambda: ranked(ranking._PIECE), lambda: ranked(by_device))}"


def evaluating(case: Case) -> str:
    took = seconds(case.loaded.device, lambda: evaluate(case.loaded, case.texts, BATCH))
    return f"{case.tokens / took.median:,.0f} tokens/s"


def edits(case: Case) -> str:
    model, parameters = case.loaded.model, case.loaded.anatomy.parameters
    rng, each = np.random.default_rng(0), max(1, 1000 // len(parameters))
    chosen = {name: np.unique(rng.integers(0, parameter.numel, each)) for name, parameter in parameters.items()}

    def work() -> None:
        with patched(model, chosen, PERTURBATIONS["zero"]):
            pass

    return f"{1000 * seconds(case.loaded.device, work).median:,.1f} ms, in {len(chosen)} parameters"


def checksums(case: Case) -> str:
    took = seconds(case.loaded.device, lambda: checksum(case.loaded.model))
    return f"{took} s"


def repeatable(case: Case) -> str:
    def exactly() -> None:
        with exact_kernels(case.loaded):
            swept(case)

    return f"x{ratio(case, exactly, lambda: swept(case))}"


def differences(case: Case) -> str:
    """The largest change of a text's loss, and the share of gradients that changed, from one pass to the next."""
    found = []
    for name, kernels in (("repeatable kernels", exact_kernels(case.loaded)), ("the fastest kernels", nullcontext())):
        with kernels:
            losses = [evaluate(case.loaded, case.texts, BATCH).nll_sums for _ in range(2)]
            first, second = (
                next(iter(sweep(case.loaded, case.texts[:BATCH], Needs.GRADIENT, BATCH))) for _ in range(2)
            )
        pairs = [(stats.gradient, second[name].gradient) for name, stats in first.items()]
        changed = sum(int(one.ne(two).sum()) for one, two in pairs if one is not None and two is not None)
        everything = sum(one.numel() for one, _ in pairs if one is not None)
        worst = float(np.abs(losses[0] - losses[1]).max())
        found.append(f"{name}: loss {worst:.2g} nats, {100 * changed / everything:.2g} % of the last block's gradients")
    return "; ".join(found)


class OneAtATime(Offload):
    """Offload that begins to copy a block when it is called."""

    def _send_ahead(self, place: int) -> None:
        return


def offloaded(case: Case) -> str:
    if available_memory().free_bytes < 2 * case.loaded.size_bytes + LEFT_BYTES:
        return "left out: too little memory of this machine is free"
    without = _rounds(case.loaded.device, lambda: swept(case))
    found = []
    for name, kind in (("the next block on its way", Offload), ("one block at a time", OneAtATime)):
        placed = _with_offload(case, kind)
        times = _rounds(case.loaded.device, lambda placed=placed: swept(placed))  # type: ignore[misc]
        found.append(f"{name} x{spread([one / two for one, two in zip(times, without, strict=True)])}")
        _back(placed)
    return "; ".join(found)


def _with_offload(case: Case, kind: type[Offload]) -> Case:
    model = case.loaded.model
    blocks: list[nn.Module] = list(model.get_submodule(case.loaded.anatomy.blocks_path).children())
    for block in blocks:
        block.to("cpu")
    placed = kind(model, blocks, case.loaded.device)
    return Case(case.name, dataclasses.replace(case.loaded, offload=placed, facts=Facts()), case.texts)


def _back(case: Case) -> None:
    """The model on its device again, without the hooks of offload."""
    model: nn.Module = case.loaded.model
    for module in [model, *model.get_submodule(case.loaded.anatomy.blocks_path).children()]:
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for key in [key for key, hook in hooks.items() if isinstance(getattr(hook, "__self__", None), Offload)]:
                del hooks[key]
    model.to(case.loaded.device)


def whole_run(device: torch.device, texts: int) -> str:
    """A run of the real SmolLM2-135M with its usual options, by stages."""
    loaded = load_model("smollm2-135m", device=str(device), dtype="bfloat16")
    found = analyze(loaded, RunSpec(model="smollm2-135m", topk=(100,), eval_limit=texts))
    stages = ", ".join(f"{stage} {took:.1f}" for stage, took in found.timings.items() if took >= 0.05)
    return f"{sum(found.timings.values()):.1f} s: {stages}"


def forward_and_backward(case: Case) -> None:
    for batch in batched(case.texts, BATCH):
        torch.autograd.backward(sequence_nll(case.loaded, batch).sum())
    case.loaded.model.zero_grad()


def swept(case: Case, needs: Needs = Needs.GRADIENT) -> None:
    for part in sweep(case.loaded, case.texts, needs, BATCH):
        del part


# models, and how they are measured


def made(name: str, device: torch.device, texts: int, tokens: int) -> Case:
    """A model of this shape with random weights in bfloat16, and random texts."""
    config = transformers.LlamaConfig(**SHAPES[name])
    torch.manual_seed(0)
    make: Any = transformers.AutoModelForCausalLM.from_config  # untyped
    with device:
        model = make(config, dtype=torch.bfloat16).eval()
    loaded = LoadedModel(
        model=model,
        tokenizer=None,  # type: ignore[arg-type]  # its texts are random tokens
        anatomy=anatomy_of(model),
        source=ModelSource(name, SourceKind.FOLDER, ""),
        revision=None,
        files={},
        device=device,
        dtype="bfloat16",
    )
    ids = torch.randint(config.vocab_size, (texts, tokens), generator=torch.Generator().manual_seed(0)).tolist()
    return Case(name, loaded, [TokenSequence(tuple(row), None, False) for row in ids])


def weights_of(name: str) -> int:
    with torch.device("meta"):
        make: Any = transformers.AutoModelForCausalLM.from_config
        return sum(parameter.numel() for parameter in make(transformers.LlamaConfig(**SHAPES[name])).parameters())


def seconds(device: torch.device, work: Callable[[], object]) -> Spread:
    """Of some rounds, after one that warms up."""
    return spread(_rounds(device, work))


def _rounds(device: torch.device, work: Callable[[], object]) -> list[float]:
    work()
    return [_seconds(device, work) for _ in range(ROUNDS)]


def _seconds(device: torch.device, work: Callable[[], object]) -> float:
    _wait(device)
    began = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - began


def ratio(case: Case, ours: Callable[[], object], plain: Callable[[], object]) -> Spread:
    """Time of `ours` over time of `plain`, one of each in a round, after one that warms up."""
    device = case.loaded.device
    ours()
    plain()
    return spread([_seconds(device, ours) / _seconds(device, plain) for _ in range(ROUNDS)])


def peak_bytes(loaded: LoadedModel, work: Callable[[], object]) -> int:
    """The peak of what a piece of work takes on the device beside what was there."""
    with _peak(loaded) as found:
        work()
    return found[0]


@contextmanager
def _peak(loaded: LoadedModel) -> Iterator[list[int]]:
    found: list[int] = []
    device = loaded.device
    if device.type == "cuda":
        release()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield found
        found.append(torch.cuda.max_memory_allocated(device) - before)
    else:
        with LiveBytes([*loaded.model.parameters(), *loaded.model.buffers()]) as counted:
            yield found
        found.append(counted.peak)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
