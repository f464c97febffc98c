"""The card of a weight: its place, what damaging it does, and what it carries."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from cwa_engine.base.events import Emit, ignore
from cwa_engine.base.version import __version__
from cwa_engine.damage.measurement import NUDGES, check_restored, prepare_measurement, with_rounding
from cwa_engine.data.tokens import TokenSequence
from cwa_engine.evaluation.perplexity import padded
from cwa_engine.inspection import weight_facts
from cwa_engine.models.determinism import with_exact_kernels
from cwa_engine.models.forward import logits_of
from cwa_engine.models.loading import LoadedModel
from cwa_engine.pipeline import measure_baseline, read_texts
from cwa_engine.preconditions import given_ranking
from cwa_engine.run import Stages
from cwa_engine.spec import CARD_DOSES, RunSpec
from cwa_engine.weight_rows import ChannelActivity, StopwordMass, TokenShift, WeightCard
from cwa_engine.weights.activity import channel_activity
from cwa_engine.weights.bits import bit_map
from cwa_engine.weights.channel import ChannelLife, ChannelSearch
from cwa_engine.weights.examined import Examination, Unknown, examined_weight
from cwa_engine.weights.harm import dose_response, with_neighbours, zeroed_alone
from cwa_engine.weights.predictions import MeanPredictions, mean_predictions, stopword_mass, token_shifts
from cwa_engine.weights.ranks import metric_ranks

T = TypeVar("T")

NUDGED = 100  # random weights that are moved to the next value of their dtype, for the numerical floor, as in runs


@with_exact_kernels
def weight_card(
    loaded: LoadedModel, spec: RunSpec, emit: Emit = ignore, texts: Sequence[str] | None = None
) -> WeightCard:
    """Examine the one weight that `spec.weights` names. The model is bit for bit the same afterwards.

    Ranks are by `spec.metrics` over the scoring texts, damage is measured on the evaluation texts, as in a run. What cannot
    be found out of this weight or this model is named in `unknown`, with the reason.

    Raises InvalidInput for anything but one weight that the model has, and what `pipeline.analyze` raises.
    """
    stages, spec = Stages(emit), _spec_of_card(spec)
    weight = examined_weight(loaded.anatomy.parameters, spec.weights)
    with stages("facts"):
        facts = weight_facts(loaded, weight.target)
    with stages("texts"):
        used, run = read_texts(loaded, spec, emit, stages, texts)
    with stages("baseline"):
        intact, baseline = measure_baseline(run, used.evaluation, used.use)
    with stages("score"):
        ranks = metric_ranks(run, used.scoring, weight)
    with stages("prepare"):
        report = run.reporter("prepare", len(used.evaluation))
        context = prepare_measurement(loaded, used.evaluation, intact, spec, run.batch_size, report)
        report = run.reporter("prepare", NUDGES * len(context.sample_places))
        context = with_rounding(context, given_ranking(loaded, spec)[0], NUDGED, report)
    examination = Examination(run, weight, context)
    with stages("alone"):
        measured, alone = zeroed_alone(examination)
    with stages("neighbours"):
        neighbours = with_neighbours(examination, facts, measured)
    with stages("doses"):
        doses = dose_response(examination, spec.dose)
    with stages("bits"):
        bits = bit_map(examination, facts.distribution)
    carried = _carried(examination)
    with stages("check"):
        floor = check_restored(context, run.reporter("check", len(context.sample_places)))
    return WeightCard(
        model=loaded.source.name,
        revision=loaded.revision,
        fingerprint=_fingerprint(loaded),
        dtype=loaded.dtype,
        facts=facts,
        texts=used.use,
        baseline=baseline,
        ranks=ranks,
        alone=carried.means.told_in(alone) if carried.means else alone,
        neighbours=neighbours,
        doses=doses,
        bits=bits,
        activity=carried.activity,
        raised=carried.raised,
        lowered=carried.lowered,
        stopwords=carried.stopwords,
        channel=carried.life.channel if carried.life else None,
        life=carried.life.layers if carried.life else (),
        shares=carried.life.shares if carried.life else (),
        unknown=carried.unknown,
        floor=floor,
        device=loaded.device_name,
        version=__version__,
        timings=stages.timings,
    )


@dataclass(frozen=True)
class _Carried:
    """What a weight's channels carry, and what it does to predictions; None where that is not known."""

    activity: tuple[ChannelActivity, ...]
    life: ChannelLife | None
    means: MeanPredictions | None
    raised: tuple[TokenShift, ...]
    lowered: tuple[TokenShift, ...]
    stopwords: StopwordMass | None
    unknown: tuple[str, ...]


def _carried(examination: Examination) -> _Carried:
    """In one pass over all evaluation texts for the channels, and another by both models for the predictions."""
    loaded, weight, run = examination.loaded, examination.weight, examination.run
    sequences, unknown = examination.context.sequences, _Unknowns()
    with run.stages("activity"):
        report = run.reporter("activity", len(sequences))
        search = unknown.tried("the life of its channel", lambda: ChannelSearch(loaded, weight, sequences))
        read = search.read if search else partial(_through, loaded)
        activity = unknown.tried("its channels", lambda: channel_activity(loaded, weight, sequences, read, report))
        life = search.life() if search else None
    with run.stages("tokens"):
        report = run.reporter("tokens", len(sequences))
        means = unknown.tried("its tokens", lambda: mean_predictions(examination, report))
        raised, lowered = token_shifts(loaded, means) if means else ((), ())
        stopwords = unknown.tried("stopwords", lambda: stopword_mass(loaded, means)) if means else None
    return _Carried(
        activity=(*(activity or ()), *([life.activity] if life else [])),
        life=life,
        means=means,
        raised=raised,
        lowered=lowered,
        stopwords=stopwords,
        unknown=(*unknown.reasons, *([life.unknown] if life and life.unknown else [])),
    )


def _through(loaded: LoadedModel, sequence: TokenSequence) -> None:
    """Send a text through the whole model."""
    batch = padded(loaded, [sequence])
    logits_of(loaded.model, batch.ids, batch.attention_mask)


class _Unknowns:
    """What could not be found out, and why."""

    def __init__(self) -> None:
        self.reasons: list[str] = []

    def tried(self, what: str, find: Callable[[], T]) -> T | None:
        """What `find` gives; None, and the reason is noted, where it raises Unknown."""
        try:
            return find()
        except Unknown as reason:
            self.reasons.append(f"{what}: {reason}")
            return None


def _spec_of_card(spec: RunSpec) -> RunSpec:
    """The same texts, metrics and ways of computing, for single weights among all weights of the model."""
    return spec.model_copy(
        update={
            "topk": (1,),
            "structure": "weight",
            "scope": "global",
            "include": (),
            "exclude": (),
            "perturbations": ("zero",),
            "controls": (),
            "dose": spec.dose or CARD_DOSES,
        }
    )


def _fingerprint(loaded: LoadedModel) -> str:
    """One hash of the hashes of all files that a model was loaded from."""
    return hashlib.sha256(json.dumps(loaded.files, sort_keys=True).encode()).hexdigest() if loaded.files else ""
