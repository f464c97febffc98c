"""On how many texts each draw of a control is measured: an elimination, then looks at the draw that came out first.

(The race in `race.py` is another thing: it seeks the most harmful of many candidates of `ablate`.)

The elimination. A critical set and the draws of one control are entrants. All are measured on 2 of the evaluation texts.
Whoever changes the losses of these by less than a tenth of what the first does is out; by how much is the root mean square over
the tokens of the texts, for on few texts changes of either sign cancel. The others go on to 4 texts, and by the same rule to
8, the sample, where the change of the mean loss has the last word. Four go on in any case. Who is out is behind all that go
on; of those who leave together the larger is ahead, and a draw that does as much as the critical set is ahead of it. The place
of the critical set gives p = place / entrants.

Why this p is exact: places are a function of the losses that treats all entrants alike, but for ties, which go against the
critical set. If that is exchangeable with its draws, each place is equally likely, so p <= a has at most the probability a,
whatever the rule by which entrants are out, and whatever the texts.

The looks. A critical set with p <= 0.05 is distinguishable if it also changes the loss more than the first of the draws does
on all texts. That draw is measured on all texts halved as often as 16 are left, then on twice as many and so on, until it is
clear: until the change by the critical set on all texts is outside of the interval of the draw's. The intervals of all looks
together hold with 99 %. Looks can only take distinction away, so the level stays that of p.

numpy-free: runs measure by this rule, files are verified by it, and studies tell its cost beforehand.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

ELIMINATION = "elimination"  # this rule, as manifests call it;
SAMPLE = "sample"  # that of early versions: all draws on the sample, and the worst draw there on all texts

SAMPLE_TEXTS = 8  # of the last round, evenly spaced
FIRST_TEXTS = 2  # of the first round; each has twice as many as the one before
BEHIND = 10  # times smaller a change is than that of the first, where its entrant is out
LEAST_KEPT = 4  # entrants that go on in any case
LEAST_LOOK = 16  # texts of the first look
LOOKS_HOLD = 0.99  # probability that the intervals of all looks hold

LEAST_DRAWS = 19  # with which p can be 0.05

CRITICAL = 0  # the entrant that is the critical set; draws are 1, 2, ...

Size = Callable[[int, int], float]  # (entrant, texts) -> how much it does on the first so many texts
Interval = Callable[[int], tuple[float, float]]  # texts -> (low, high) of a draw's change on the first so many


@dataclass(frozen=True)
class Standing:
    """How an elimination ended: all entrants, the first one first, and on how many texts each was measured, by entrant."""

    order: tuple[int, ...]
    texts: tuple[int, ...]

    @property
    def ahead(self) -> int:
        """How many draws came out ahead of the critical set."""
        return self.order.index(CRITICAL)

    @property
    def first_draw(self) -> int:
        """The draw that is ahead of all others, counted from 0."""
        return next(entrant for entrant in self.order if entrant != CRITICAL) - 1


def rounds_of(texts: int) -> list[int]:
    """On how many of so many evaluation texts the rounds of an elimination measure, ascending."""
    last = min(SAMPLE_TEXTS, texts)
    return [*(count for count in (FIRST_TEXTS, 2 * FIRST_TEXTS) if count < last), last]


def looks_of(texts: int) -> list[int]:
    """On how many texts the first draw is measured after the rounds, ascending; nothing if these had all."""
    if texts <= SAMPLE_TEXTS:
        return []
    looks = [texts]
    while looks[0] // 2 >= LEAST_LOOK:
        looks.insert(0, looks[0] // 2)
    return looks


def most_measured(draws: int, texts: int) -> int:
    """The most texts that so many draws of a control are measured on, all draws together, without those of the critical set."""
    rounds = rounds_of(texts)
    return draws * rounds[-1] + texts - rounds[-1]


def eliminate(draws: int, rounds: Sequence[int], size: Size) -> Standing:
    """Let the critical set and so many draws compete. `rounds` are numbers of texts, ascending."""
    alive, texts = list(range(draws + 1)), [0] * (draws + 1)
    out: list[int] = []
    for count in rounds:
        sizes = {entrant: comparable(size(entrant, count)) for entrant in alive}
        for entrant in alive:
            texts[entrant] = count
        order = sorted(alive, key=lambda entrant: (-sizes[entrant], entrant == CRITICAL, entrant))
        kept = 0 if count == rounds[-1] else _that_go_on([sizes[entrant] for entrant in order])
        alive, out = order[:kept], [*order[kept:], *out]
    return Standing(tuple(out), tuple(texts))


def comparable(size: float) -> float:
    """A loss that is not finite is the largest change there is."""
    return size if math.isfinite(size) else math.inf


def _that_go_on(sizes: Sequence[float]) -> int:
    """How many entrants with these changes go on, the largest first."""
    near = sum(BEHIND * size >= sizes[0] for size in sizes)
    return max(near, min(LEAST_KEPT, len(sizes)))


def texts_until_clear(critical: float, looks: Sequence[int], interval: Interval) -> int:
    """On how many texts a draw is measured until it is clear whether the critical set changes the loss more than it.

    `critical` is the size of its change on all texts; `looks` are numbers of texts, ascending, the last one all.
    """
    for count in looks[:-1]:
        low, high = interval(count)
        if not (math.isfinite(low) and math.isfinite(high)):
            return count  # the draw makes the model collapse, and so it does on all texts
        least = 0.0 if low <= 0 <= high else min(abs(low), abs(high))
        if not least <= comparable(critical) <= max(abs(low), abs(high)):
            return count
    return looks[-1]
