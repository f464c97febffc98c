"""Lists of studies, the plan of one, and its files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType

from cwa_engine.studies.folder import StudyFolder
from cwa_engine.studies.progress import CellProgress
from cwa_tui.cli.lines import RUN_ID, Field, LineTable, Row
from cwa_tui.tables.study import counted
from cwa_tui.text import format as fmt
from cwa_tui.text.visible import words

if TYPE_CHECKING:
    from cwa_engine.studies.plan import StudyPlan


def studies_table(rows: Sequence[tuple[StudyFolder, tuple[CellProgress, ...]]]) -> LineTable:
    """One line for each study."""
    fields = [
        Field(RUN_ID),
        Field("question", 8),
        Field("name", 8, optional=2),
        Field("age", optional=1),
        Field("cells", 10),
    ]
    lines = [
        Row(
            {
                RUN_ID: folder.id,
                "question": folder.study.question or "-",
                "name": folder.study.name,
                "age": fmt.ago(folder.created),
                "cells": counted(progress),
            }
        )
        for folder, progress in rows
    ]
    return LineTable(fields, lines)


def slots_in_words(plan: StudyPlan, kind: str, slots: int | None) -> str:
    """How many cells run at once on a runner with slots, and what that makes of the time at best."""
    if slots is None:
        return f"one for each GPU that {kind} has, else one for each node; how many that is, it says when it is joined"
    left = [entry.seconds for entry in plan.cells if not entry.done]
    known = [seconds for seconds in left if seconds is not None]
    if len(known) < len(left) or not left:
        return f"{slots}, by --slots"
    least = max(sum(known) / slots, *known)
    return f"{slots}, by --slots; at best {fmt.duration(least)}, were each as fast as one run alone is here"


def plan_table(plan: StudyPlan, slots: str = "") -> RenderableType:
    """What each cell takes, and all of them. `slots` are how many run at once, in words."""
    fields = [
        Field("#", right=True),
        Field("cell", 12, cut="middle"),
        Field("passes", right=True),
        Field("time", right=True),
        Field("memory", right=True),
        Field("state"),
    ]
    rows = [
        Row(
            {
                "#": str(entry.cell.number),
                "cell": entry.cell.label,
                "passes": "unknown" if entry.passes is None else f"{entry.passes:,}",
                "time": fmt.duration(entry.seconds) if entry.seconds is not None else "unknown",
                "memory": fmt.size(entry.memory_bytes) if entry.memory_bytes is not None else "unknown",
                "state": "done already" if entry.done else "to run",
            }
        )
        for entry in plan.cells
    ]
    todo = sum(not entry.done for entry in plan.cells)
    passes = "unknown" if plan.passes is None else f"{plan.passes:,}"
    time = "time unknown" if plan.seconds is None else fmt.duration(plan.seconds)
    return Group(
        words(f"{len(plan.cells)} cells, {todo} to run: {passes} forward passes, {time}"),
        "",
        LineTable(fields, rows),
        "",
        words(f"Passes: {plan.passes_from}", "dim"),
        words(f"Time: {plan.seconds_from}", "dim"),
        words(f"Memory: {plan.memory_from}", "dim"),
        *([words(f"Slots: {slots}", "dim")] if slots else []),
    )
