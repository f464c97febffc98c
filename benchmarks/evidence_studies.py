"""How often the answers of studies err, by simulation: `python -m benchmarks.evidence_studies scaling families sequence`.

No model is needed: damage, texts and profiles are drawn, with what is to be found planted in them.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from cwa_engine.base.overlap import share_distance
from cwa_engine.studies.analysis.labels import within_between
from cwa_engine.studies.analysis.laws import POWER, fit_law
from cwa_engine.studies.analysis.paired import TextChanges, log_covariance

Array = NDArray[np.float64]

TIMES, TEXTS, EXPONENT = 1000, 33, -0.4


def scaling() -> None:
    """Power laws and others, measured on texts that all sizes share: half of the variance of an error is the text's."""
    laws: dict[str, Callable[[Array], Array]] = {
        "power law": lambda sizes: 2 * (sizes / 1e8) ** EXPONENT,
        "exponential": lambda sizes: 2 * np.exp(-sizes / 1e9),
        "power law with a floor": lambda sizes: 0.3 + 2 * (sizes / 1e8) ** -0.9,
        "step": lambda sizes: np.where(sizes < 5e8, 2.0, 0.5),
    }
    print("| damage | scatter | error | 4 sizes | 5 sizes | 7 sizes |\n| --- | ---: | ---: | ---: | ---: | ---: |")
    for name, law in laws.items():
        for scatter in (0.0, 0.1, 0.4) if name == "power law" else (0.0,):
            for error in (0.05, 0.15):
                cells = [_rates(law, sizes, scatter, error, name == "power law") for sizes in (4, 5, 7)]
                print(f"| {name} | {scatter:.0%} | {error:.0%} | {' | '.join(cells)} |")


def _rates(law: Callable[[Array], Array], count: int, scatter: float, error: float, covers: bool) -> str:
    """How often a power law is rejected, and how often the exponent's interval has the true one."""
    rng = np.random.default_rng(count)
    sizes = np.geomspace(7e7, 7e9, count).astype(int)
    rejected = covered = 0
    for _ in range(TIMES):
        truth = law(sizes) * np.exp(scatter * rng.normal(size=count))
        tokens = rng.integers(20, 60, size=TEXTS).astype(float)
        shares, common = tokens / tokens.sum(), rng.normal(size=TEXTS)
        noise = [math.sqrt(0.5) * (common + rng.normal(size=TEXTS)) for _ in truth]
        members = [
            TextChanges(value * (1 + error * math.sqrt(TEXTS) * each) * shares, shares)
            for value, each in zip(truth, noise, strict=True)
        ]
        covariance = log_covariance(members)
        assert covariance is not None
        fit = fit_law(POWER, list(map(int, sizes)), [member.total for member in members], covariance, TEXTS - 1)
        assert fit.low is not None and fit.high is not None
        rejected += fit.is_rejected
        covered += fit.low <= EXPONENT <= fit.high
    return f"{rejected / TIMES:.3f}, {covered / TIMES:.3f}" if covers else f"{rejected / TIMES:.3f}"


def families() -> None:
    """Top k of 100 weights over four components; families differ in the share of one of them, models scatter about theirs."""
    print("| families | 0 points apart | 20 | 40 |\n| --- | ---: | ---: | ---: |")
    for kinds, each in ((2, 4), (3, 3)):
        cells = [f"{_told_apart(kinds, each, apart):.3f}" for apart in (0.0, 0.2, 0.4)]
        print(f"| {kinds} of {each} models | {' | '.join(cells)} |")


def _told_apart(kinds: int, each: int, apart: float, times: int = 200) -> float:
    rng, told = np.random.default_rng(kinds), 0
    for _ in range(times):
        counts, labels = [], []
        for kind in range(kinds):
            middle = 0.5 + apart * (kind / (kinds - 1) - 0.5)
            for _ in range(each):
                share = float(np.clip(rng.normal(middle, 0.05), 0.05, 0.95))
                counts.append(rng.multinomial(100, [share, *[(1 - share) / 3] * 3]).tolist())
                labels.append(str(kind))
        distances = np.array([[share_distance(one, other).distance for other in counts] for one in counts])
        told += within_between(distances, labels).p_value <= 0.05
    return told / times


def sequence() -> None:
    """Models none of which is beyond its controls: how often any is called reliable, each by itself and in a sequence."""
    print("| models | any passes by itself | any is called reliable |\n| --- | ---: | ---: |")
    rng = np.random.default_rng(0)
    for count in (2, 4, 8):
        draws = abs(rng.normal(size=(20_000, count, 20)))
        passes = draws[:, :, 0] > draws[:, :, 1:].max(axis=2)
        print(f"| {count} | {passes.any(axis=1).mean():.3f} | {passes[:, -1].mean():.3f} |")


if __name__ == "__main__":
    for part in sys.argv[1:] or ("scaling", "families", "sequence"):
        print(f"\n{part}\n")
        {"scaling": scaling, "families": families, "sequence": sequence}[part]()
