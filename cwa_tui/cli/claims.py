"""Claims and what became of them, as people and programs read them."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from cwa_engine.base.plain import JsonMap
from cwa_engine.claims.claim import BASELINE, Claim, Expectation
from cwa_engine.claims.judging import AGREES, DISAGREES, NO_FIGURE, Judgement
from cwa_engine.claims.obstacles import Obstacle
from cwa_engine.claims.running import ClaimResult
from cwa_engine.rows import to_plain
from cwa_tui.cli.lines import Field, LineTable, Row
from cwa_tui.text import format as fmt
from cwa_tui.text.visible import words

_SIGNS = {AGREES: "✓ agrees", DISAGREES: "✗ does not", NO_FIGURE: "· no figure", "not measured": "- not measured"}
_STYLES = {AGREES: "green", DISAGREES: "red"}
_OUTCOME_STYLES = {"agrees": "bold green", "does not agree": "bold red", "failed": "bold red"}
_HERE = "yes"


def claims_table(found: Sequence[tuple[Claim, Obstacle | None]]) -> LineTable:
    """One line a claim."""
    fields = [Field("id"), Field("here", 11), Field("model", 14, cut="start"), Field("source", 10, optional=1)]
    rows = [
        Row(
            {
                "id": claim.id,
                "model": claim.model,
                "source": claim.source,
                "here": obstacle.short if obstacle else _HERE,
            },
            {"here": "" if obstacle else "green"},
        )
        for claim, obstacle in found
    ]
    runnable = sum(obstacle is None for _, obstacle in found)
    return LineTable(fields, rows, caption=f"{len(found)} claims, {runnable} of them can be measured here")


def claim_report(claim: Claim, obstacle: Obstacle | None) -> RenderableType:
    """What is claimed, by whom, and how it is measured."""
    said = {
        "source": ", ".join(part for part in (claim.source, claim.where, claim.link) if part),
        "found in": claim.found_in,
        "model": f"{claim.model}, revision {claim.pinned}",
        "protocol": claim.protocol,
        "here": claim.differs,
        "no gate": claim.no_gate,
        "texts": "the rows of the dataset as one text" if claim.joined else "",
        "every run": _fields(claim.run),
        **{f"run {step.name}": _fields({**step.run, **_weights_of(step.weights_of)}) for step in claim.step},
        "runnable": obstacle.reason if obstacle else "yes, here",
    }
    lines = [line for name, text in said.items() if text for line in _folded(name, text)]
    head = words("\n".join(textwrap.wrap(f"{claim.id}: {claim.title}", 80)), "bold")
    parts: list[RenderableType] = [head, words("\n".join(lines), overflow="fold")]
    if claim.expect:
        parts += ["", _expectations(claim)]
    return Group(*parts)


def result_report(result: ClaimResult) -> RenderableType:
    """The outcome, then what was claimed beside what was measured."""
    claim = result.claim
    head = Text.assemble(
        (f"{claim.id}: ", "bold"), (result.outcome, _OUTCOME_STYLES.get(result.outcome, "bold yellow"))
    )
    parts: list[RenderableType] = [head, words("\n".join(_folded("", f"{claim.title} ({claim.source})")))]
    if result.reason:
        parts.append(words("\n".join(_folded("", result.reason))))
    if result.runs:
        parts.append(words("\n".join(_folded("runs", ", ".join(f"{name} {run}" for name, run in result.runs.items())))))
        parts.append(_judgements(result))
    return Group(*parts, "")


def _expectations(claim: Claim) -> LineTable:
    fields = [Field("what", 22), Field("claimed", 16), Field("tolerance from", 12, optional=1)]
    rows = [
        Row(
            {
                "what": _what(entry, claim),
                "claimed": claimed(entry),
                "tolerance from": entry.tolerance_from or entry.note,
            }
        )
        for entry in claim.expect
    ]
    return LineTable(fields, rows)


def _judgements(result: ClaimResult) -> LineTable:
    fields = [Field("what", 22), Field("claimed", 14), Field("measured", 16), Field("agrees")]
    rows = [
        Row(
            {
                "what": _what(entry.expectation, result.claim),
                "claimed": claimed(entry.expectation),
                "measured": _shown(entry) if entry.measured else entry.reason,
                "agrees": _SIGNS[entry.agreement],
            },
            {"agrees": _STYLES.get(entry.agreement, "")},
        )
        for entry in result.judgements
    ]
    return LineTable(fields, rows)


def claimed(entry: Expectation) -> str:
    """`5.67 ± 2 %`, `at most 0.1`."""
    if isinstance(entry.value, str):
        return entry.value
    said = []
    if entry.value is not None:
        reach = [f"{100 * entry.within_share:g} %"] if entry.within_share else []
        reach += [fmt.number(entry.within)] if entry.within else []
        said.append(" ± ".join((_number(entry.value), *reach)))
    said += [f"at least {_number(entry.at_least)}"] if entry.at_least is not None else []
    said += [f"at most {_number(entry.at_most)}"] if entry.at_most is not None else []
    return ", ".join(said) or "no figure"


def _number(value: float) -> str:
    """Whole numbers in full, others to four digits."""
    return f"{value:,.0f}" if value.is_integer() and abs(value) < 1e15 else fmt.number(value)


def _shown(judgement: Judgement) -> str:
    """The value with its interval; of one that does not agree all digits that tell it from the claimed one."""
    found = judgement.measured
    if found is None or isinstance(found.value, str):
        return str(found.value) if found else ""
    if not math.isfinite(found.value):
        return found.note or fmt.NOT_FINITE
    low, high = found.low, found.high
    interval = f" [{fmt.number(low)}, {fmt.number(high)}]" if fmt.is_known(low) and fmt.is_known(high) else ""
    value = f"{found.value:.8g}" if judgement.agreement == DISAGREES else _number(found.value)
    return f"{value}{interval}"


def _what(entry: Expectation, claim: Claim) -> str:
    """`[507,:] zero relative_alone`: what tells a number from its like comes first, as the end may be cut."""
    target = entry.target or (f"{len(entry.targets)} weights" if entry.targets else "")
    step = entry.step if len(claim.step) > 1 and entry.step != BASELINE else ""
    named = {name: str(getattr(entry, name)) for name in _IN_LABEL if name in entry.model_fields_set}
    parts = (
        target[target.index("[") :] if "[" in target else target,
        step,
        named.get("perturbation"),
        entry.what,
        named.get("selection"),
        named.get("metric"),
        f"k {entry.k}" if entry.k else "",
        "(gate)" if entry.gate else "",
    )
    return " ".join(filter(None, parts))


_IN_LABEL = ("perturbation", "selection", "metric")


def _fields(fields: JsonMap) -> str:
    return ", ".join(f"{name} {_value(value)}" for name, value in fields.items())


def _value(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return " ".join(map(str, value)) or "none"
    return str(value)


def _weights_of(rule: Any) -> JsonMap:
    if rule is None:
        return {}
    left_out = f" without {' '.join(rule.without)}" if rule.without else ""
    return {"weights": f"the first {rule.k:,} by {rule.metric} of run {rule.step}{left_out}"}


def _folded(name: str, text: str) -> Iterator[str]:
    """A paragraph with its name in front, folded so that it can be read at 80 columns."""
    lead = f"  {name:<9} " if name else "  "
    yield from textwrap.wrap(
        text, 78, initial_indent=lead, subsequent_indent=" " * len(lead), break_long_words=False, break_on_hyphens=False
    )


def claims_as_plain(found: Sequence[tuple[Claim, Obstacle | None]]) -> list[JsonMap]:
    """For `list --json`."""
    return [
        {
            "id": claim.id,
            "title": claim.title,
            "model": claim.model,
            "revision": claim.revision,
            "source": claim.source,
            "runnable_here": obstacle is None,
            "obstacle": obstacle.reason if obstacle else None,
        }
        for claim, obstacle in found
    ]


def claim_as_plain(claim: Claim, obstacle: Obstacle | None) -> JsonMap:
    """For `show --json`: all that the table says."""
    return {**claim.model_dump(mode="json"), "obstacle": obstacle.reason if obstacle else None}


def result_as_plain(result: ClaimResult) -> JsonMap:
    """For `run --json`."""
    return {
        "id": result.claim.id,
        "title": result.claim.title,
        "source": result.claim.source,
        "model": result.claim.model,
        "outcome": result.outcome,
        "reason": result.reason or None,
        "runs": result.runs,
        "numbers": [
            {
                "what": entry.expectation.what,
                "step": entry.expectation.step,
                "row": _what(entry.expectation, result.claim),
                "gate": entry.expectation.gate,
                "claimed": claimed(entry.expectation),
                "tolerance_from": entry.expectation.tolerance_from,
                "measured": to_plain(entry.measured),
                "agreement": entry.agreement,
                "reason": entry.reason or None,
            }
            for entry in result.judgements
        ],
    }
