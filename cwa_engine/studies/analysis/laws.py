"""How a quantity goes with the number of parameters: a power law, an exponential or a constant, fitted and tested.

With the errors of measurement of all sizes (and what they share, measured on the same texts) a law can be found not to fit:
its misfit is Hotelling's T² of the residuals, which takes into account that the errors themselves are estimated from a number
of texts. Without them only bends and trends can be tested. The measured error rates are in tests/engine/test_laws.py.
Needs scipy, which is imported where it is used.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cwa_engine.base.errors import InvalidInput
from cwa_engine.base.p_values import LEVEL

Array = NDArray[np.float64]

POWER, EXPONENTIAL, CONSTANT = "power law", "exponential", "constant"
LAWS = (POWER, EXPONENTIAL, CONSTANT)
LEAST_SIZES = 4
CLOSE = 2.0  # a difference of AICc below this tells no two laws apart (Burnham & Anderson 2002, section 2.6)
MOST_ORDERS = 5040  # 7!: up to so many orders a permutation test goes through all


@dataclass(frozen=True, slots=True)
class LawFit:
    """A law fitted to the logarithm of a quantity: log y = intercept + slope * g(N), weighted by the errors.

    `slope` is the exponent of a power law; of an exponential it is the change of log y per parameter. Its 95 % interval is
    Student's t with (sizes - 2) degrees of freedom, and takes the sizes to scatter about the law by `scatter` (a standard
    deviation of log y) more than the errors explain, as much as they do. `misfit` is T², and `p_value` the probability of at
    least as much if the law were true and errors alone made it; None where the errors are not known.
    """

    law: str
    intercept: float
    slope: float | None
    low: float | None
    high: float | None
    misfit: float
    p_value: float | None
    aicc: float | None  # None where there are too few sizes for it
    scatter: float

    @property
    def is_rejected(self) -> bool:
        return self.p_value is not None and self.p_value <= LEVEL

    def at(self, parameters: float) -> float:
        """What the law gives for a model of this size."""
        return math.exp(self.intercept + (self.slope or 0.0) * _argument(self.law, parameters))


@dataclass(frozen=True, slots=True)
class Trend:
    """What can be said of a power law without errors: its slope by least squares, and two tests.

    `p_trend`: share of all orders of the values that have at least as strong a correlation with size. `p_bend`: of the
    squared term of log N beside the linear one, by F; None with fewer than five sizes.
    """

    slope: float
    low: float
    high: float
    p_trend: float
    p_bend: float | None


def require_scipy() -> str:
    """Why nothing can be fitted; "" where scipy is there."""
    try:
        import scipy.stats  # noqa: F401
    except ImportError:
        return "scipy is not installed: `pip install 'cwtool[studies]'`"
    return ""


def fit_law(law: str, sizes: Sequence[int], values: Sequence[float], covariance: Array, freedom: int) -> LawFit:
    """Fit a law to positive values. `covariance` is that of their logarithms [sizes, sizes], from `freedom` + 1 texts.

    Raises InvalidInput for values without a logarithm, for fewer than four sizes, and for fewer texts than can tell.
    """
    from scipy import stats

    log_values, design = _checked(law, sizes, values)
    free = len(values) - design.shape[1]
    if freedom < len(values):
        raise InvalidInput(
            f"{freedom + 1} texts tell the errors of {len(values)} sizes too badly", hint="use more texts"
        )
    misfit = _solve(design, log_values, covariance)[2]
    p_value = float(stats.f.sf(misfit * (freedom - free + 1) / (freedom * free), free, freedom - free + 1))
    scatter = _scatter(design, log_values, covariance)
    beta, spread, weighted = _solve(design, log_values, covariance + scatter**2 * np.eye(len(values)))
    aicc = _aicc(misfit, design.shape[1], len(values))
    if law == CONSTANT:
        return LawFit(law, float(beta[0]), None, None, None, misfit, p_value, aicc, scatter)
    unit = _unit(law, sizes)
    slope = float(beta[1]) * unit
    reach = float(stats.t.ppf(0.975, free)) * math.sqrt(spread[1, 1] * max(1.0, weighted / free)) * unit
    return LawFit(law, float(beta[0]), slope, slope - reach, slope + reach, misfit, p_value, aicc, scatter)


def trend(sizes: Sequence[int], values: Sequence[float]) -> Trend:
    """The power law of positive values whose errors are not known. Raises InvalidInput as `fit_law`."""
    from scipy import stats

    log_values, design = _checked(POWER, sizes, values)
    free = len(values) - 2
    rest, spread = _least_squares(design, log_values)
    beta = np.linalg.lstsq(design, log_values, rcond=None)[0]
    reach = float(stats.t.ppf(0.975, free)) * math.sqrt(spread[1, 1] * rest / free)
    p_bend = None
    if len(set(sizes)) > LEAST_SIZES:
        bent = np.column_stack([design, design[:, 1] ** 2])
        remaining, _ = _least_squares(bent, log_values)
        gain = (rest - remaining) / (remaining / (free - 1)) if remaining > 1e-24 else math.inf if rest > 1e-24 else 0.0
        p_bend = float(stats.f.sf(gain, 1, free - 1))
    slope = float(beta[1])
    return Trend(slope, slope - reach, slope + reach, _order_p(design[:, 1], log_values), p_bend)


def best_of(fits: Sequence[LawFit]) -> tuple[LawFit, ...]:
    """The laws that AICc does not tell apart from the best, best first."""
    known = sorted((fit for fit in fits if fit.aicc is not None), key=lambda fit: fit.aicc or 0.0)
    return tuple(fit for fit in known if (fit.aicc or 0.0) - (known[0].aicc or 0.0) < CLOSE)


def _checked(law: str, sizes: Sequence[int], values: Sequence[float]) -> tuple[Array, Array]:
    if len(set(sizes)) < LEAST_SIZES:
        raise InvalidInput(f"{len(set(sizes))} sizes are too few to fit a law", hint=f"give at least {LEAST_SIZES}")
    if not all(0 < value < math.inf for value in values):
        raise InvalidInput("a law is fitted to the logarithm of positive numbers", hint="leave out the others")
    argument = np.array([_argument(law, size) for size in sizes]) * _unit(law, sizes)
    ones = np.ones(len(sizes))
    return np.log(np.array(values)), ones[:, None] if law == CONSTANT else np.column_stack([ones, argument])


def _argument(law: str, parameters: float) -> float:
    return math.log(parameters) if law == POWER else float(parameters)


def _unit(law: str, sizes: Sequence[int]) -> float:
    """What the argument is multiplied by, so that numbers of parameters do not make the sums ill-conditioned."""
    return 1.0 if law == POWER else 1.0 / max(sizes)


def _solve(design: Array, log_values: Array, covariance: Array) -> tuple[Array, Array, float]:
    """Generalised least squares: (coefficients, their covariance, weighted sum of squared residuals)."""
    weights: Array = np.linalg.inv(covariance).astype(np.float64)
    spread: Array = np.linalg.inv(design.T @ weights @ design).astype(np.float64)
    beta: Array = spread @ design.T @ weights @ log_values
    rest = log_values - design @ beta
    return beta, spread, float(rest @ weights @ rest)


def _least_squares(design: Array, log_values: Array) -> tuple[float, Array]:
    """(sum of squared residuals, inverse of the normal matrix)"""
    _, spread, rest = _solve(design, log_values, np.eye(len(log_values)))
    return rest, spread


def _scatter(design: Array, log_values: Array, covariance: Array) -> float:
    """Standard deviation of the sizes about the law beyond the errors, by restricted maximum likelihood; 0 if it is none."""
    from scipy import optimize

    def loss(variance: float) -> float:
        whole = covariance + variance * np.eye(len(log_values))
        _, spread, rest = _solve(design, log_values, whole)
        return float(np.linalg.slogdet(whole)[1] - np.linalg.slogdet(spread)[1] + rest)

    largest = 4 * float(np.var(log_values)) + float(np.trace(covariance))
    found = optimize.minimize_scalar(lambda root: loss(root**2), bounds=(0.0, math.sqrt(largest)), method="bounded")
    return float(found.x) if found.fun < loss(0.0) else 0.0


def _aicc(misfit: float, parameters: int, sizes: int) -> float | None:
    """Akaike's criterion for known errors, corrected for few sizes; a constant that all laws share is left out."""
    left = sizes - parameters - 1
    return misfit + 2 * parameters + 2 * parameters * (parameters + 1) / left if left > 0 else None


def _order_p(first: Array, second: Array) -> float:
    """Two-sided permutation test of a correlation: all orders where there are few, else random ones."""
    centred = first - first.mean()
    seen = abs(float(centred @ second)) * (1 - 1e-12)
    if math.factorial(len(second)) <= MOST_ORDERS:
        orders = [abs(float(centred @ np.array(order))) for order in itertools.permutations(second)]
        return sum(size >= seen for size in orders) / len(orders)
    rng = np.random.default_rng(0)
    drawn = abs(rng.permuted(np.tile(second, (MOST_ORDERS - 1, 1)), axis=1) @ centred)
    return (1 + int((drawn >= seen).sum())) / MOST_ORDERS
