"""From gradient statistics to ranked weights: score every weight of the model, keep the largest."""

from __future__ import annotations

from cwa_engine.models.anatomy import Parameter
from cwa_engine.models.loading import LoadedModel
from cwa_engine.result import Ranking, TopWeight
from cwa_engine.sensitivity.gradients import Statistics
from cwa_engine.sensitivity.metrics import METRICS
from cwa_engine.sensitivity.selection import TopKSelection

# Rows are scored in pieces of about this many weights: 4 MB of float32 stays in the processor's cache, and a
# 500-million-weight embedding needs no second copy.
_PIECE = 1 << 20


def rank(loaded: LoadedModel, statistics: Statistics, metric_name: str, k: int, with_lowest: bool = False) -> Ranking:
    """The k weights with the largest score, exactly, over all parameters; `with_lowest` also the k smallest."""
    metric = METRICS[metric_name]
    largest, smallest = TopKSelection(k), TopKSelection(k)
    for name, parameter in loaded.anatomy.parameters.items():
        weight, stats = loaded.model.get_parameter(name).detach(), statistics[name]
        row_numel = parameter.numel // parameter.shape[0]
        step = max(1, _PIECE // row_numel)
        for start in range(0, parameter.shape[0], step):
            stop = min(start + step, parameter.shape[0])
            scores = metric.score(weight[start:stop].float(), stats.rows(start, stop))
            largest.offer(parameter, scores, offset=start * row_numel)
            if with_lowest:
                smallest.offer(parameter, -scores, offset=start * row_numel)
    lowest = [(order, index, -score) for order, index, score in smallest.ranked()]
    return Ranking(metric_name, _top_weights(loaded, largest.ranked()), _top_weights(loaded, lowest))


def _top_weights(loaded: LoadedModel, ranked: list[tuple[int, int, float]]) -> tuple[TopWeight, ...]:
    by_order = list(loaded.anatomy.parameters.values())
    return tuple(
        _top_weight(loaded, place, by_order[order], flat_index, score)
        for place, (order, flat_index, score) in enumerate(ranked, start=1)
    )


def _top_weight(loaded: LoadedModel, place: int, parameter: Parameter, flat_index: int, score: float) -> TopWeight:
    out_feature, in_feature = parameter.features(flat_index)
    value = float(loaded.model.get_parameter(parameter.name).detach().reshape(-1)[flat_index])
    return TopWeight(
        rank=place,
        parameter=parameter.name,
        flat_index=flat_index,
        out_feature=out_feature,
        in_feature=in_feature,
        value=value,
        score=score,
        layer=parameter.layer,
        component=parameter.component,
    )
