"""Which columns of a table fit, how wide they are, and how long text is cut. No Textual in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

PADDING = 2  # cells that a table puts around each cell
MOST_LOST = 8  # cells that may stay empty so that a name is cut between its parts

# parts: at the start, between the parts of a dotted name; weight: the name of a weight, see `short_weight`
Cut = Literal["start", "middle", "end", "parts", "weight"]


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a fixed width, except that one with `most` grows up to that where there is room."""

    key: str
    label: str
    width: int  # cells
    most: int = 0
    right: bool = False
    cut: Cut = "end"  # where text that is too long is cut
    optional: int = 0  # 0 is always shown; the others are added in this order while they fit
    hidden: bool = False  # shown only where the user chose it
    least: int = 0  # it may shrink to this where there is no room for `width`; 0: it does not


def fit(columns: Sequence[Column], room: int) -> dict[str, int]:
    """Column key -> width of the columns that fit into `room` cells, in their order."""
    chosen = [column for column in columns if not column.optional]
    for column in sorted(columns, key=lambda column: column.optional):
        if column.optional and _needed([*chosen, column]) <= room:
            chosen.append(column)
    shown = [column for column in columns if column in chosen]
    spare = max(0, room - _needed(shown))
    widths = {}
    for column in shown:
        extra = min(spare, max(0, column.most - column.width))
        widths[column.key] = column.width + extra
        spare -= extra
    lacking = max(0, _needed(shown) - room)
    for column in shown:
        given_up = min(lacking, max(0, column.width - column.least)) if column.least else 0
        widths[column.key] -= given_up
        lacking -= given_up
    return widths


def columns_from(columns: Sequence[Column], first: int, room: int) -> list[Column]:
    """The columns without those that were scrolled away at the left. The very first one, which says what a row is, stays.

    Columns that a user scrolled to are shown even where they are left out for lack of room otherwise.
    """
    if not first:
        return list(columns)
    rest = [replace(column, optional=0) for column in columns[first + 1 :]]
    shown, used = [columns[0]], columns[0].width + PADDING
    for column in rest:
        used += column.width + PADDING
        if used > room and len(shown) > 1:
            break
        shown.append(column)
    return shown


def shorten(text: str, width: int, cut: Cut) -> str:
    """The text in at most `width` cells, with an ellipsis for what was cut."""
    if len(text) <= width:
        return text
    if cut == "weight" and width > 1:
        return short_weight(text, width)
    if width < 2 or cut == "end":
        return text[: max(0, width - 1)] + "…"
    if cut in ("start", "parts"):
        kept = text[-(width - 1) :]
        whole = kept.partition(".")[2] if cut == "parts" else ""
        return "…" + (whole if len(kept) - len(whole) <= MOST_LOST else kept)
    tail = (width - 1) // 2
    return text[: width - 1 - tail] + "…" + text[-tail:] if tail else text[: width - 1] + "…"


def short_weight(name: str, width: int) -> str:
    """`…layers.3.mlp.down_proj.weight[12,4]`: the name without what all names begin with, then without its middle.

    The number of the layer and the indices, which tell weights apart, are the last to go.
    """
    parts = name.split(".")
    layer = next((place for place, part in enumerate(parts) if part.isdigit()), None)
    if layer is None:
        return shorten(name, width, "parts")
    for first in range(1, layer + 1):
        kept = "…" + ".".join(parts[first:])
        if len(kept) <= width:
            return kept
    head, tail = f"…{parts[layer]}.…", ".".join(parts[layer + 1 :])
    return head + tail[-(width - len(head)) :] if width > len(head) else shorten(name, width, "start")


def _needed(columns: Sequence[Column]) -> int:
    return sum(column.width + PADDING for column in columns)
