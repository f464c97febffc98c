"""Critical weights by layer and component: numbers, and behind them blocks that grow darker with the number."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from cwa_engine.records.places import Places
from cwa_tui.text.visible import words
from cwa_tui.widgets.quiet_static import QuietStatic

SHADES = "░▒▓█"  # from the fewest to the most; fewer than 1 of 4 parts of the largest count is the first
NONE = "·"


class HeatMap(QuietStatic):
    """Components down and layers across where that fits, else layers down and components across."""

    def show_places(self, places: Places | None, width: int, nothing: str) -> int:
        """Draw these counts, `nothing` where there are none; gives the number of lines."""
        said = heat_map(places, width) if places and places.total else words(nothing)
        self.say(said)
        return len(said.split())


def heat_map(places: Places, width: int) -> Text:
    """The map in lines of at most `width` cells."""
    layers, components = places.layers, places.components
    counts = [[places.counts.get((layer, component), 0) for layer in layers] for component in components]
    labels = ["-" if layer is None else str(layer) for layer in layers]
    sums = [sum(row) for row in counts]
    across = _grid("layer", labels, components, counts, sums)
    if across[0].cell_len > width:
        turned = [list(column) for column in zip(*counts, strict=True)]
        across = _grid("layer", components, labels, turned, [sum(row) for row in turned])
    legend = f"{NONE} none  " + "  ".join(_legend(places.largest))
    return Text("\n").join([*across, Text(legend, "dim")])


def _grid(
    corner: str, head: Sequence[str], side: Sequence[str], counts: Sequence[Sequence[int]], sums: Sequence[int]
) -> list[Text]:
    most = max(max(row) for row in counts)
    lead = max(len(corner), *map(len, side))
    cells = [max(len(name), 1 + max(len(str(row[at])) for row in counts)) for at, name in enumerate(head)]
    total = max(len("all"), *(len(str(number)) for number in sums))
    top = [corner.ljust(lead), *(name.rjust(cell) for name, cell in zip(head, cells, strict=True)), "all".rjust(total)]
    lines = [Text(" ".join(top), "dim")]
    for name, row, number in zip(side, counts, sums, strict=True):
        line = Text(name.rjust(lead) if name.isdigit() else name.ljust(lead))
        for count, cell in zip(row, cells, strict=True):
            line.append(" ")
            line.append(_cell(count, most, cell), "bold" if count else "dim")
        lines.append(line.append(f" {number:>{total}}"))
    return lines


def _cell(count: int, most: int, width: int) -> str:
    if not count:
        return NONE.rjust(width)
    return f"{_shade(count, most)}{count}".rjust(width)


def _shade(count: int, most: int) -> str:
    return SHADES[min(len(SHADES) - 1, (count * len(SHADES) - 1) // most)]


def _legend(most: int) -> list[str]:
    """From how many to how many each shade stands for, of those that are used."""
    spans: dict[str, list[int]] = {}
    for count in {1, most, *(most * part // len(SHADES) + step for part in range(len(SHADES)) for step in (0, 1))}:
        if 1 <= count <= most:
            spans.setdefault(_shade(count, most), []).append(count)
    return [
        f"{shade} {_span(min(found), max(found))}" for shade, found in sorted(spans.items(), key=lambda s: min(s[1]))
    ]


def _span(first: int, last: int) -> str:
    return f"{first:,}" if first == last else f"{first:,}-{last:,}"
