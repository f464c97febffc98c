"""Where the critical weights are: by layer and component, and by depth."""

from __future__ import annotations

from collections.abc import Mapping

from textual.app import ComposeResult
from textual.containers import VerticalScroll

from cwa_engine.records.places import Places
from cwa_tui.widgets.depth_profile import DepthProfile
from cwa_tui.widgets.heat_map import HeatMap

LEAST_BARS = 6


class ProfilePane(VerticalScroll):
    """The map above the bars. Bars are put together where the layers of a deep model would not fit below it."""

    def __init__(self, id: str) -> None:
        super().__init__(id=id)
        self._map, self._bars = HeatMap(id="heat-map"), DepthProfile(id="depth-profile")
        self._shown: tuple[Places | None, Mapping[int | None, int], str] = (None, {}, "")

    def compose(self) -> ComposeResult:
        yield self._map
        yield self._bars

    def show_places(self, title: str, places: Places | None, drawn: Mapping[int | None, int], nothing: str) -> None:
        if title != self.border_title:
            self.border_title = title
        if (places, drawn, nothing) != self._shown:
            self._shown = (places, drawn, nothing)
            self._draw()

    def on_resize(self) -> None:
        self._draw()

    def _draw(self) -> None:
        places, drawn, nothing = self._shown
        region = self.scrollable_content_region
        if not region.width:
            return
        lines = self._map.show_places(places, region.width, nothing)
        self._bars.display = bool(places and places.total)
        if places:
            self._bars.show_profile(places.by_layer, drawn, region.width, max(LEAST_BARS, region.height - lines - 1))
