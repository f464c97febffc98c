"""The share of critical weights by depth, beside the share that weights drawn at random have there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.text import Text

from cwa_tui.widgets.quiet_static import QuietStatic

OUTSIDE = "outside blocks"
_BAR, _EXPECTED, _EXPECTED_INSIDE = "█", "│", "▌"

Shares = Mapping[int | None, int]  # how many are in a layer, None for outside the decoder blocks


class DepthProfile(QuietStatic):
    """One bar for each layer, or for some neighbouring layers where there are more than lines."""

    def show_profile(self, critical: Shares, drawn: Shares, width: int, height: int) -> None:
        """Draw how many critical weights each layer has; `drawn` are weights that were drawn at random, or none."""
        self.say(depth_profile(critical, drawn, width, height) if sum(critical.values()) else Text(""))


def depth_profile(critical: Shares, drawn: Shares, width: int, height: int) -> Text:
    """Bars in lines of `width` cells; at most `height` of them where layers can be put together for that."""
    groups = _groups([layer for layer in {*critical, *drawn} if layer is not None], height - 2)
    rows = [(_name(group), list(group)) for group in groups]
    if critical.get(None) or drawn.get(None):
        rows.append((OUTSIDE, [None]))  # type: ignore[list-item]
    all_critical, all_drawn = sum(critical.values()), sum(drawn.values())
    figures = [
        (name, _share(critical, layers, all_critical), _share(drawn, layers, all_drawn) if all_drawn else None)
        for name, layers in rows
    ]
    most = max(max(share, expected or 0) for _, share, expected in figures)
    lead = max(len("layers"), *(len(name) for name, _, _ in figures))
    room = max(4, width - lead - (18 if all_drawn else 10))
    lines = [Text(f"{'layers':>{lead}}  critical" + ("  by chance" if all_drawn else ""), "dim")]
    for name, share, expected in figures:
        figure = f"{share:>6.1%}" + ("" if expected is None else f"  {expected:>6.1%}")
        lines.append(Text(f"{name:>{lead}}  {figure}  {_bar(share, expected, most, room)}"))
    if all_drawn:
        lines.append(Text(f"{_EXPECTED} by chance: of {all_drawn:,} weights that random controls drew", "dim"))
    return Text("\n").join(lines)


def _bar(share: float, expected: float | None, most: float, room: int) -> str:
    cells = list(_BAR * round(room * share / most))
    if expected is not None:
        at = min(room - 1, round(room * expected / most))
        cells += [" "] * (at + 1 - len(cells))
        cells[at] = _EXPECTED if cells[at] == " " else _EXPECTED_INSIDE
    return "".join(cells)


def _share(counts: Shares, layers: Sequence[int | None], total: int) -> float:
    return sum(counts.get(layer, 0) for layer in layers) / total


def _groups(layers: Sequence[int], most: int) -> list[range]:
    """All layers up to the last of these, in at most `most` groups of neighbours."""
    count = max(layers) + 1 if layers else 0
    size = max(1, -(-count // max(1, most)))
    return [range(first, min(first + size, count)) for first in range(0, count, size)]


def _name(group: range) -> str:
    return str(group[0]) if len(group) == 1 else f"{group[0]}-{group[-1]}"
