"""Evidence on super weights: `python -m benchmarks.evidence_spikes [MODEL WEIGHT]` prints the tables of docs/evidence.md.

The default is SmolLM2-135M with the weight that is known to break it. It takes ten minutes on one core.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.tables import table
from cwa_engine.damage.copies import Zeroed
from cwa_engine.damage.single_zeros import SingleZeros
from cwa_engine.data import corpus
from cwa_engine.data.prefix import prefix_of
from cwa_engine.data.tokens import TokenSequence, tokenize
from cwa_engine.methods.metrics import CANDIDATE_METRICS, CANDIDATE_TURNS, Needs, needs_of
from cwa_engine.models.loading import LoadedModel, load_model
from cwa_engine.models.structures import find_weights, target_name
from cwa_engine.questions.ablation import ablate
from cwa_engine.questions.spike_removal import removal_sentence, remove_spikes
from cwa_engine.rows import to_plain
from cwa_engine.sensitivity.candidates import propose
from cwa_engine.sensitivity.gradients import resident
from cwa_engine.sensitivity.ranking import rank
from cwa_engine.targets import parse_target

MODEL, KNOWN = "smollm2-135m", "model.layers.11.mlp.down_proj.weight[507,1229]"
TEXTS, TOKENS = 8, 48
LENGTHS = (16, 48, 128)  # of texts, by which the known weight is placed
CANDIDATES, TOP, STEPS = 50, 10, 10
BEFORE = ("grad_x_weight", "taylor")  # which named the candidates until super_weight and magnitude did too


def texts_of(loaded: LoadedModel, first: int, tokens: int = TOKENS) -> list[TokenSequence]:
    """Every second built-in text from `first` on: 0 for those that are scored, 1 for those that damage is measured on."""
    prefix = prefix_of(loaded.tokenizer, loaded.model.config.model_type, "auto")
    return tokenize(loaded.tokenizer, corpus.load_texts(None)[first::2][:TEXTS], tokens, prefix)


def seen_by_hooks(loaded: LoadedModel, sequences: Sequence[TokenSequence]) -> dict[str, tuple[Tensor, Tensor]]:
    """Inputs [tokens, in] and outputs [tokens, out] of every linear layer in the blocks, all texts together."""
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def keep(name: str, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        seen.setdefault(name, []).append((args[0][0], output[0]))

    linear = {n: m for n, m in loaded.model.named_modules() if isinstance(m, nn.Linear) and ".layers." in n}
    handles = [module.register_forward_hook(partial(keep, name)) for name, module in linear.items()]
    with torch.no_grad():
        for sequence in sequences:
            loaded.model(torch.tensor([sequence.ids]))
    for handle in handles:
        handle.remove()
    return {name: (torch.cat([x for x, _ in calls]), torch.cat([y for _, y in calls])) for name, calls in seen.items()}


def made_of_largest(weight: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """|x w| at the token of each out_feature's largest output. [out, in]"""
    return (x[y.abs().argmax(0)] * weight).abs()


def product(weight: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return y.abs().amax(0)[:, None] * x.abs().amax(0)


def over(size: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    return lambda weight, x, y: made_of_largest(weight, x, y) / size(y)


RULES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "max \\|x\\| max \\|y\\|, all linear layers": product,
    "\\|x w\\|": made_of_largest,
    "\\|x w\\| over the root mean square of all outputs": over(lambda y: y.square().mean().sqrt()),
    "\\|x w\\| over the median of the features' largest outputs": over(lambda y: y.abs().amax(0).median()),
    "\\|x w\\| over the geometric mean of tokens' sizes": over(lambda y: y.square().mean(1).sqrt().log().mean().exp()),
    "**\\|x w\\| over the median of tokens' sizes**": over(lambda y: y.square().mean(1).sqrt().median()),
}


def units(loaded: LoadedModel, known: str, harm: Callable[[str], float]) -> str:
    places: dict[str, list[str]] = {rule: [] for rule in RULES}
    firsts: dict[str, str] = {}
    for tokens in LENGTHS:
        seen = seen_by_hooks(loaded, texts_of(loaded, 0, tokens))
        for rule in RULES:
            place, first = placed(loaded, seen, rule, known)
            places[rule].append(f"{place:,}")
            if tokens == TOKENS:
                firsts[rule] = first
    lengths = [f"place of the known weight, {tokens} tokens" for tokens in LENGTHS]
    rows = [(rule, *places[rule], f"`{first}`", f"{harm(first):+.4f}") for rule, first in firsts.items()]
    return table(("score", *lengths, f"first, {TOKENS} tokens", "measured"), rows)


def placed(loaded: LoadedModel, seen: dict[str, tuple[Tensor, Tensor]], rule: str, known: str) -> tuple[int, str]:
    """(place of the known weight among all that the rule scores, the weight that comes first)"""
    score, (owner, flat_index) = RULES[rule], _place(loaded, known)
    chosen = seen if score is product else {name: found for name, found in seen.items() if name.endswith("down_proj")}
    scores = {n: score(loaded.model.get_parameter(f"{n}.weight").detach(), *found) for n, found in chosen.items()}
    own = float(scores[owner].flatten()[flat_index])
    first = max(scores, key=lambda name: float(scores[name].max()))
    best = target_name(loaded.anatomy.parameters[f"{first}.weight"], "weight", int(scores[first].argmax()))
    return 1 + sum(int((found > own).sum()) for found in scores.values()), best


def _place(loaded: LoadedModel, target: str) -> tuple[str, int]:
    parsed = parse_target(target)
    return parsed.parameter.removesuffix(".weight"), int(find_weights(parsed, loaded.anatomy.parameters)[0])


# The metric, the iteration and the candidates of ablation


def top(loaded: LoadedModel, harm: Callable[[str], float]) -> str:
    ranking = rank(loaded, resident(loaded, texts_of(loaded, 0), Needs.SPIKES), "super_weight", TOP)
    rows = [
        (w.rank, f"`{w.target}`", f"{w.score:,.0f}", f"{s.output:,.1f}", f"{s.share:.0%}", f"`{s.token}` at {s.position}",
         f"{harm(w.target):+.4f}")
        for w, s in zip(ranking.weights, ranking.spikes, strict=True)
    ]  # fmt: skip
    return table(("place", "weight", "score", "output", "share of it", "token", "measured"), rows)


def iteration(loaded: LoadedModel) -> str:
    removal = remove_spikes(loaded, texts_of(loaded, 0), STEPS, lambda event: None)
    rows = [
        (s.step, f"`{s.target}`", f"{s.share:.0%}", f"{s.times_typical:,.0f}", f"{s.largest_after:,.0f}",
         f"`{s.token}` at {s.position}", f"{s.delta_nll:+.4f}")
        for s in removal.steps
    ]  # fmt: skip
    found = table(("step", "weight", "share", "spike before", "after", "token", "loss change, all so far"), rows)
    return f"{found}\n\nIn words: {removal_sentence(to_plain(removal))}."


def candidates(loaded: LoadedModel, known: str) -> str:
    sequences, rows = texts_of(loaded, 0), []
    for names, turns in ((BEFORE, BEFORE), (CANDIDATE_METRICS, CANDIDATE_TURNS)):
        calls: list[object] = []
        handle = loaded.model.register_forward_hook(lambda *call, calls=calls: calls.append(None))
        statistics = resident(loaded, sequences, needs_of(names))
        handle.remove()
        named = {name: rank(loaded, statistics, name, CANDIDATES) for name in names}
        units = propose([named[name] for name in turns], CANDIDATES)
        del statistics
        found = ablate(loaded, sequences, units, TOP, seed=0)
        place = next((row for row in found.rows if row.target == known), None)
        worst = sum(row.delta_nll for row in found.rows[:TOP])
        rows.append((
            ", ".join(f"`{name}`" for name in names), f"place {place.place}, {place.delta_nll:+.3f}" if place else "missed",
            f"{worst:.2f}", f"{len(calls) / len(sequences):g}", f"{found.cost.spent:.1f}",
        ))  # fmt: skip
    columns = ("proposers", "the known weight", f"sum of the {TOP} largest", "passes of scoring", "of the race")
    return table(columns, rows)


def main(model: str = MODEL, known: str = KNOWN) -> None:
    loaded = load_model(model)
    zeros = SingleZeros(loaded, texts_of(loaded, 1))

    def harm(target: str) -> float:
        """Measured change of the loss of other texts, nats per token."""
        owner, place = _place(loaded, target)
        weight = Zeroed(loaded.anatomy.parameters[f"{owner}.weight"], place)
        return float((zeros.really_zeroed(weight) - zeros.intact).sum() / zeros.tokens.sum())

    print(f"{model}, {TEXTS} texts of at most {TOKENS} tokens scored, as many others measured; known: `{known}`\n")
    for part in (units(loaded, known, harm), top(loaded, harm), iteration(loaded), candidates(loaded, known)):
        print(f"{part}\n", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
