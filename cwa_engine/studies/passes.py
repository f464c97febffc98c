"""How often a run sends a sequence through the model, by its spec and its texts alone. torch-free.

A backward pass counts as two forward passes. It is counted as if no score was kept from an earlier run and nothing of the
intact model's states was cached, so a run takes at most this; what it is asked beside (stability, fidelity, ablation and
other questions) is not counted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from cwa_engine.damage.elimination import SAMPLE_TEXTS, most_measured
from cwa_engine.damage.treatments import controls_of, seeds_of, sizes, treatments
from cwa_engine.data.corpus import distinct, load_texts, split
from cwa_engine.methods.metrics import ABLATION, METRICS, Needs, needs_of
from cwa_engine.rows import GIVEN, MATRICES
from cwa_engine.spec import RunSpec

FORWARD, BACKWARD = 1, 2
FAST_SHARE, FAST_LEAST = 4, 4  # of --fast-perturbation, as in `text_use`
NUDGES = 3  # of rounding, as in `damage.measurement`
KL = 2  # more passes over the texts for --kl


@dataclass(frozen=True, slots=True)
class Sequences:
    """How many sequences weights are scored by, and how many damage is measured on."""

    scoring: int
    evaluation: int


def sequences_of(spec: RunSpec) -> Sequences | None:
    """Of a run on these texts; None where that needs the tokenizer or the network. Raises DataError for unreadable texts."""
    if spec.packed or spec.dataset:
        return None
    texts = distinct(load_texts(spec.data_file, spec.eval_limit, column=spec.text_column, name=spec.data_name))
    scoring, evaluation = (len(half) for half in split(texts))
    if spec.fast_perturbation and spec.damages:
        evaluation = min(evaluation, max(FAST_LEAST, math.ceil(evaluation / FAST_SHARE)))
    return Sequences(scoring, evaluation)


def passes_of(spec: RunSpec, sequences: Sequences) -> int:
    """Forward passes over one sequence, of baseline, scoring and damage with its controls."""
    total = sequences.evaluation + scoring_passes(spec) * sequences.scoring
    if spec.damages:
        sample = min(SAMPLE_TEXTS, sequences.evaluation)
        total += (
            sequences.evaluation + (NUDGES + 1) * sample
        )  # states of the intact model, rounding, and the last check
        total += sum(_damage_passes(label, spec, sequences.evaluation) for label in _labels(spec))
    return total


def scoring_passes(spec: RunSpec) -> int:
    """Forward passes over each scoring sequence."""
    needs = needs_of(spec.scored_metrics)
    total = FORWARD if needs else 0
    total += BACKWARD * bool(needs.backward) + BACKWARD * (Needs.TOKEN_FISHER in needs)
    if Needs.HESSIAN in needs:
        total += 2 * (FORWARD + BACKWARD) * spec.probes
    return total


def _damage_passes(label: str, spec: RunSpec, evaluation: int) -> int:
    """Of one ranking: its critical sets on all evaluation texts, and of each control as much as its draws take at most."""
    drawn = sum(most_measured(len(seeds_of(control, spec)), evaluation) for control in controls_of(label, spec))
    critical = evaluation * (1 + KL * spec.kl)
    return len(sizes(label, spec.largest_k, spec)) * len(treatments(spec)) * (critical + drawn)


def _labels(spec: RunSpec) -> Iterator[str]:
    """The rankings whose critical sets are damaged."""
    if spec.weights:
        yield GIVEN
    plain = spec.structure == "weight" and spec.scope == "global" and not (spec.include or spec.exclude)
    for name in spec.metrics:
        yield name
        if spec.matrices and plain and name != ABLATION and not METRICS[name].linear_only:
            yield name + MATRICES
