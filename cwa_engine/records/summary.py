"""Parts of summary.json that are made from rows of a run, by `export` and by `verification`. torch-free."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from cwa_engine.base.plain import JsonMap
from cwa_engine.data.corpus import split
from cwa_engine.questions.registry import STAGE_QUESTIONS
from cwa_engine.result import RunResult
from cwa_engine.rows import DamagePoint, Separation, TextUse, Verdict, to_plain


def numbers_of(texts: TextUse) -> tuple[list[int], list[int]]:
    """(texts that were scored, texts that were measured) by their numbers; of texts that differ the first is 1."""
    scored, measured = halves_of(texts)
    return scored, measured[: texts.damage] if texts.damage and not texts.packed else measured


def halves_of(texts: TextUse) -> tuple[list[int], list[int]]:
    """(scoring texts, evaluation texts) by their numbers, whether damage was measured on all of the latter or not."""
    left_out = set(texts.too_short)
    return split([n for n in range(1, texts.texts + 1) if n not in left_out])


def answers_in_summary(result: RunResult) -> JsonMap:
    """What the answers to all questions come to, asked or not."""
    return {key: value for question in STAGE_QUESTIONS for key, value in question.summary(result).items()}


def damage_groups(
    points: Sequence[DamagePoint], separations: Sequence[Separation], verdicts: Sequence[Verdict]
) -> list[JsonMap]:
    """Per metric, k and perturbation: the critical set, each control with the ratio it is beaten by, the verdict.

    The position test has no critical set of its own, only its draws.
    """

    def group(row: DamagePoint | Separation | Verdict) -> tuple[str, int, str]:
        return row.metric, row.k, row.perturbation

    groups = []
    for key, grouped in itertools.groupby(points, key=group):
        members = list(grouped)
        critical = next((point for point in members if point.selection == "critical"), None)
        verdict = next((verdict for verdict in verdicts if group(verdict) == key), None)
        groups.append(
            {
                "metric": key[0],
                "k": key[1],
                "perturbation": key[2],
                "critical": to_plain(critical) if critical else None,
                "controls": [_without_key(row) for row in separations if group(row) == key],
                "elsewhere": [to_plain(point) for point in members if point.selection == "elsewhere"],
                "outcome": verdict.outcome if verdict else None,
                "verdict": verdict.sentence if verdict else None,
            }
        )
    return groups


def _without_key(row: Separation) -> JsonMap:
    hidden = ["metric", "k", "perturbation"]
    if row.largest_texts is None:  # as in the files of early versions
        hidden.append("largest_texts")
    return {name: value for name, value in to_plain(row).items() if name not in hidden}
