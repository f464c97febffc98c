"""The rule of docs/method.md for controls, written from its words alone, in exact fractions: it shares nothing with ours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from statistics import NormalDist
from typing import Any

from scipy import stats

FAR = Fraction(10**1000)  # a loss that is not finite
CRITICAL = -1


class TooClose(Exception):
    """Rounding decides, so that nothing can be expected."""


@dataclass(frozen=True)
class Told:
    """What the rule says of one control: draws ahead, texts of each draw (numbers from 1), the leading draw, whether beyond."""

    ahead: int
    texts: list[list[int]]
    leading: int
    beyond: bool


def spread(many: Sequence[int], few: int) -> list[int]:
    return [many[(2 * j + 1) * len(many) // (2 * few)] for j in range(few)]


def last_round(n: int) -> list[int]:
    return (
        [*range(1, n + 1)] if n <= 8 else [1 + math.floor(Fraction(i * (n - 1), 7) + Fraction(1, 2)) for i in range(8)]
    )


def rounds(n: int) -> list[list[int]]:
    found = [last_round(n)]
    for few in (4, 2):
        if few < len(found[0]):
            found.insert(0, spread(found[0], few))
    return found


def looks(n: int) -> list[list[int]]:
    if n <= 8:
        return []
    eight, sizes = last_round(n), [n]
    while sizes[0] // 2 >= 16:
        sizes.insert(0, sizes[0] // 2)
    further = [[text for text in range(1, n + 1) if text not in eight]]
    for size in reversed(sizes[:-1]):
        further.insert(0, spread(further[0], size - 8))
    return [sorted(eight + more) for more in further]


def moved(change: Sequence[float], tokens: Sequence[int], texts: Sequence[int]) -> Fraction:
    """|change of the mean loss of a token|"""
    if not all(math.isfinite(change[t - 1]) for t in texts):
        return FAR
    return abs(sum((Fraction(change[t - 1]) for t in texts), Fraction(0)) / sum(tokens[t - 1] for t in texts))


def mean_square(change: Sequence[float], tokens: Sequence[int], texts: Sequence[int]) -> Fraction:
    """Of the changes of texts in nats per token, over tokens."""
    if not all(math.isfinite(change[t - 1]) for t in texts):
        return FAR
    squares = (Fraction(change[t - 1]) ** 2 / tokens[t - 1] for t in texts)
    return sum(squares, Fraction(0)) / sum(tokens[t - 1] for t in texts)


def interval(change: Sequence[float], tokens: Sequence[int], texts: Sequence[int], of: int) -> tuple[float, float]:
    """Jackknife over texts with Student's t and 1 + 2/n; of so many looks each holds with a share of the 1 %."""
    n, total, weight = len(texts), sum(change[t - 1] for t in texts), sum(tokens[t - 1] for t in texts)
    left = [(total - change[t - 1]) / (weight - tokens[t - 1]) for t in texts]
    mean = math.fsum(left) / n
    error = math.sqrt((n - 1) / n * math.fsum((value - mean) ** 2 for value in left))
    wider = NormalDist().inv_cdf(1 - 0.01 / of / 2) / NormalDist().inv_cdf(0.975)
    reach = wider * (1 + 2 / n) * float(stats.t.ppf(0.975, n - 1)) * error
    return total / weight - reach, total / weight + reach


def told(
    critical: Sequence[float], draws: Sequence[Sequence[float]], tokens: Sequence[int], random: bool
) -> Told:  # changes of the loss of each text, in nats
    n, everyone = len(tokens), {CRITICAL: critical, **dict(enumerate(draws))}
    left, seen = list(everyone), {entrant: [0] for entrant in everyone}
    behind: list[int] = []
    for texts in rounds(n):
        last = texts == rounds(n)[-1]
        size = {e: (moved if last else mean_square)(everyone[e], tokens, texts) for e in left}
        seen.update(dict.fromkeys(left, texts))
        left.sort(key=lambda e: (-size[e], e == CRITICAL, e))
        if not last:
            near = [e for e in left if size[e] * 100 >= size[left[0]]]
            if any(size[e] and size[e] * 100 == size[left[0]] for e in left):
                raise TooClose
            staying = near if len(near) > 4 else left[:4]
            behind = [e for e in left if e not in staying] + behind
            left = staying
    order = left + behind
    ahead = order.index(CRITICAL)
    leading = next(e for e in order if e != CRITICAL)
    on_all = moved(critical, tokens, range(1, n + 1))
    has_p = random and len(draws) >= 19
    if not has_p or Fraction(1 + ahead, 1 + len(draws)) <= Fraction(1, 20):
        for texts in looks(n):
            seen[leading] = texts
            if len(texts) == n or not all(math.isfinite(draws[leading][t - 1]) for t in texts):
                break
            low, high = interval(draws[leading], tokens, texts, len(looks(n)))
            least, most = (0.0 if low <= 0 <= high else min(abs(low), abs(high))), max(abs(low), abs(high))
            if on_all < FAR and any(
                abs(float(on_all) - end) <= 1e-4 * max(most, 1e-9) for end in (least, most)
            ):  # t of tables
                raise TooClose
            if not least <= on_all <= most:
                break
    beyond = on_all > moved(draws[leading], tokens, seen[leading])
    return Told(ahead, [seen[e] for e in range(len(draws))], leading, beyond)


def outcome(of: Any, n: int, change: float, floor: float) -> str:
    """`of`: of each control (whether it is drawn at random, its draws, what is told of it)."""
    if not any(random for random, _, _ in of) or any(random and draws < 19 for random, draws, _ in of) or n < 16:
        return "not tested"
    passed = all(not random or Fraction(1 + told.ahead, 1 + draws) <= Fraction(1, 20) for random, draws, told in of)
    if not (passed and all(told.beyond for _, _, told in of) and not abs(change) <= floor):
        return "indistinguishable"
    return "helpful" if change < 0 else "harmful"
