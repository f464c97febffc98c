"""How well scores foretold what zeroing a weight costs, from the sampled units alone. torch-free."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cwa_engine.base.statistics import spearman
from cwa_engine.rows import SAMPLED_TOP, Fidelity, Prediction


def fidelities(rows: Sequence[Prediction], metrics: Sequence[str]) -> list[Fidelity]:
    """Rank correlation of each metric's scores with the measured |loss change|, and the overlap of the top."""
    found = []
    for place, name in enumerate(metrics):
        scored = [(row.scores[place], abs(row.delta_nll)) for row in rows if row.scores[place] is not None]
        scores, changes = np.array(scored, dtype=np.float64).reshape(-1, 2).T
        changes = np.where(np.isfinite(changes), changes, np.inf)
        top = min(SAMPLED_TOP, len(scored))
        best, worst = ({int(i) for i in np.argsort(-side, kind="stable")[:top]} for side in (scores, changes))
        found.append(Fidelity(name, len(scored), spearman(scores, changes), top, len(best & worst)))
    return found
