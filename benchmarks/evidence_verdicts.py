"""The figures about verdicts and intervals in docs/evidence.md: `python -m benchmarks.evidence_verdicts [PART ...]`.

Prints a Markdown table for each part: intervals, errors, power, floor, passes. All on SmolLM2-135M; errors and power
take about 20 s a set on one core, the others minutes.
"""

from __future__ import annotations

import pydoc_data.topics
import re
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.cases import smollm2
from benchmarks.measure import print_parts
from benchmarks.tables import table
from cwa_engine.base.statistics import paired_delta
from cwa_engine.damage.cases import critical_weights
from cwa_engine.damage.patch import patched
from cwa_engine.data.corpus import Text, load_texts
from cwa_engine.data.tokens import tokenize
from cwa_engine.evaluation.perplexity import evaluate
from cwa_engine.methods.controls import by_parameter
from cwa_engine.methods.metrics import Needs
from cwa_engine.methods.perturbations import PERTURBATIONS
from cwa_engine.models.loading import LoadedModel, load_model
from cwa_engine.models.structures import target_name
from cwa_engine.pipeline import analyze
from cwa_engine.rows import Ranking
from cwa_engine.sensitivity.gradients import resident
from cwa_engine.sensitivity.ranking import rank
from cwa_engine.sensitivity.views import matrices_in_blocks
from cwa_engine.spec import RunSpec

MODEL = "smollm2-135m"
REPEATS = 4000  # samples of texts for each coverage
RANDOM_SETS, PLANTED_SETS = 200, 20
SIZE = 100  # weights of a set
TEXTS, TOKENS = 32, 24  # half of them are measured: the least number that is tested
PLANTED = (1, 2)  # weights of a planted set that the ranking names, the others are drawn at random


def intervals() -> Iterator[str]:
    """How often the 95 % interval holds the change on all texts, on samples of few."""
    loaded = load_model(MODEL)
    scoring = tokenize(loaded.tokenizer, load_texts(None)[0::2], 512)
    ranking = rank(loaded, resident(loaded, scoring, Needs.GRADIENT), "grad_x_weight", SIZE)
    passages = load_texts(None)[1::2]
    sequences = tokenize(loaded.tokenizer, [*passages, *manual()], 256)
    tokens = np.array([sequence.scored_tokens for sequence in sequences], dtype=np.float64)
    intact = evaluate(loaded, sequences).nll_sums
    rows = []
    for k in (1, 10, SIZE):
        selection = critical_weights(loaded, ranking, ranking.top(k))
        with patched(loaded.model, selection, PERTURBATIONS["zero"]):
            damaged = evaluate(loaded, sequences).nll_sums
        for name, last in (("passages", len(passages)), ("passages and manual", len(sequences))):
            pool = damaged[:last], intact[:last], tokens[:last]
            shares = [f"{coverage(*pool, texts):.3f}" for texts in (8, 16, 33, 66)]
            rows.append((f"{k} by {ranking.metric}, {last} {name}", f"{paired_delta(*pool)[0]:+.3f}", *shares))
    yield table(("change of the loss", "on all texts", "8 texts", "16", "33", "66"), rows)


def manual() -> list[Text]:
    """400 passages of Python's manual, which are not among the built-in texts."""
    topics: dict[str, str] = pydoc_data.topics.topics
    passages = [p for topic in topics.values() for p in re.split(r"\n\s*\n", topic) if len(p) > 250]
    return [Text(passage[:2000], "manual") for passage in passages[:400]]


def coverage(damaged: NDArray[Any], intact: NDArray[Any], tokens: NDArray[Any], texts: int) -> float:
    """The share of samples whose interval holds the change on the whole pool."""
    rng = np.random.default_rng(texts)
    true = float((damaged - intact).sum() / tokens.sum())
    held = 0
    for _ in range(REPEATS):
        places = rng.integers(0, len(tokens), texts)
        _, low, high = paired_delta(damaged[places], intact[places], tokens[places])
        held += low <= true <= high
    return held / REPEATS


COLUMNS = ("weights of the top 100 in a set", "sets", "harmful", "helpful", "indistinguishable", "not tested")


def errors() -> Iterator[str]:
    """The rule's verdicts on random sets."""
    yield table(COLUMNS, [outcomes(0, RANDOM_SETS)])


def power() -> Iterator[str]:
    """The rule's verdicts on random sets with some weights from the top of a ranking."""
    yield table(COLUMNS, [outcomes(planted, PLANTED_SETS) for planted in PLANTED])


def outcomes(planted: int, sets: int) -> tuple[object, ...]:
    loaded = load_model(MODEL)
    ranking = ranked(loaded, SIZE)
    found = [outcome_of(loaded, planted_set(loaded, ranking, planted, number), number) for number in range(sets)]
    counts = [found.count(outcome) for outcome in ("harmful", "helpful", "indistinguishable", "not tested")]
    return f"{planted} of {SIZE}", sets, *counts


def planted_set(loaded: LoadedModel, ranking: Ranking, planted: int, number: int) -> tuple[str, ...]:
    """`planted` weights of the ranking, and as many others as make 100, from the matrices of the blocks."""
    rng = np.random.default_rng([number, planted])
    named = [ranking.weights[place].target for place in rng.choice(SIZE, planted, replace=False)]
    matrices = {name: loaded.anatomy.parameters[name] for name in matrices_in_blocks(loaded.anatomy)}
    sizes = {name: parameter.numel for name, parameter in matrices.items()}
    others = by_parameter(np.sort(rng.choice(sum(sizes.values()), SIZE - planted, replace=False)), sizes)
    drawn = [target_name(matrices[name], "weight", int(unit)) for name, units in others.items() for unit in units]
    return (*named, *drawn)


def outcome_of(loaded: LoadedModel, targets: tuple[str, ...], seed: int) -> str:
    """The verdict on given weights against draws matched by parameter alone: with other controls too, fewer sets pass."""
    spec = RunSpec(
        model=MODEL, weights=targets, metrics=(), controls=("random_matched",), eval_limit=TEXTS, seq_len=TOKENS,
        seed=1000 * seed, batch_size=16,
    )  # fmt: skip
    (verdict,) = analyze(loaded, spec).verdicts
    return verdict.outcome


def floor() -> Iterator[str]:
    """The numerical floor beside the changes that random draws make, by dtype."""
    rows = []
    for dtype in ("float32", "bfloat16", "float16"):
        loaded = load_model(MODEL, dtype=dtype)
        spec = RunSpec(
            model=MODEL, metrics=("magnitude",), topk=(10,), eval_limit=TEXTS, seq_len=TOKENS, controls=("random",)
        )
        found = analyze(loaded, spec)
        assert found.floor
        sizes = sorted(abs(point.delta_nll) for point in found.damage if point.selection == "random")
        rows.append((dtype, f"{found.floor.rounding:.1e}", f"{np.median(sizes):.1e}", f"{sizes[-1]:.1e}"))
    yield table(("dtype", "floor by nudging 10 weights", "median change by 19 draws of 10", "largest"), rows)


def passes() -> Iterator[str]:
    """Forward passes over all texts that a run with default options takes, a backward pass counting as two."""
    loaded, _ = smollm2()
    tokens = {"forward": 0.0, "backward": 0.0}

    def before(module: torch.nn.Module, args: tuple[torch.Tensor, ...], named: dict[str, Any]) -> None:
        hidden = args[0] if args else named["hidden_states"]
        tokens["forward"] += hidden.shape[0] * hidden.shape[1]
        if torch.is_grad_enabled():
            tokens["backward"] += 2 * hidden.shape[0] * hidden.shape[1]

    blocks = loaded.model.model.layers
    handles = [block.register_forward_pre_hook(before, with_kwargs=True) for block in blocks]
    lines = load_texts(None)  # 132: half of them are measured
    with TemporaryDirectory() as folder:
        texts = Path(folder, "texts.txt")
        texts.write_text("\n\n".join(" ".join(text.content.split()) for text in lines))
        options: list[dict[str, Any]] = [{}, {"topk": (10, 100)}, {"fast_perturbation": True}, {"control_seeds": 3}]
        common: dict[str, Any] = {"model": MODEL, "topk": (100,), "data_file": texts, "seq_len": 24}
        for option in options:
            tokens.update(forward=0.0, backward=0.0)
            spec = RunSpec(**common | option)
            found = analyze(loaded, spec)
            read = found.baseline.tokens + found.baseline.sequences  # the first token of a text is read and not scored
            whole = sum(tokens.values()) / len(blocks) / read
            yield f"{option or 'default'}: {whole:.1f} passes over the texts\n"
    for handle in handles:
        handle.remove()


def ranked(loaded: LoadedModel, k: int) -> Ranking:
    """The largest k by grad_x_weight of the matrices in the blocks, on texts that are not measured."""
    scoring = tokenize(loaded.tokenizer, load_texts(None)[0::2], 256)
    narrowed = loaded.with_parameters(matrices_in_blocks(loaded.anatomy))
    return rank(narrowed, resident(narrowed, scoring, Needs.GRADIENT), "grad_x_weight", k)


if __name__ == "__main__":
    torch.set_num_threads(1)
    print_parts(intervals, errors, power, floor, passes)
