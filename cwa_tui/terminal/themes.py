"""cwtool's own themes, which of them a terminal gets, and what is shown in place of colours where NO_COLOR is set.

Styles of cells are named with the colours every terminal has (`fmt.STATE_STYLES`). Each theme says how these look on its
background, so that they can be read there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from rich.color import Color as RichColor
from rich.segment import Segment
from rich.style import Style
from rich.terminal_theme import TerminalTheme
from textual.color import Color
from textual.filter import LineFilter
from textual.theme import Theme

DARK, LIGHT, COLOUR_BLIND, CONTRAST, TERMINAL = (
    "cwtool-dark",
    "cwtool-light",
    "cwtool-colour-blind",
    "cwtool-high-contrast",
    "cwtool-terminal",
)


@dataclass(frozen=True, slots=True)
class Named:
    """How the colours with names look: black, red, green, yellow, blue, magenta, cyan, white."""

    black: str
    red: str
    green: str
    yellow: str
    blue: str
    magenta: str
    cyan: str
    white: str

    def terminal_theme(self, background: str, foreground: str) -> TerminalTheme:
        """What turns a named colour into one of this theme. Bright colours look like the others."""
        named = [self.black, self.red, self.green, self.yellow, self.blue, self.magenta, self.cyan, self.white]
        triplets = [_triplet(colour) for colour in named]
        return TerminalTheme(_triplet(background), _triplet(foreground), triplets, triplets)


def _triplet(colour: str) -> tuple[int, int, int]:
    return Color.parse(colour).rgb


def _more(
    cursor: str, on_cursor: str, blurred_cursor: str, blurred_border: str, on_button: str, **others: str
) -> dict[str, str]:
    """Variables of Textual that a theme sets beside its main colours; `_` in a name stands for `-`."""
    return {
        "block-cursor-background": cursor,
        "block-cursor-foreground": on_cursor,
        "block-cursor-blurred-background": blurred_cursor,
        "border-blurred": blurred_border,
        "surface-lighten-2": blurred_border,  # which frames take, as it is seen in Textual's own themes too
        "button-color-foreground": on_button,
    } | {name.replace("_", "-"): value for name, value in others.items()}


THEMES: tuple[Theme, ...] = (
    Theme(
        name=DARK,
        primary="#5aa9e6", secondary="#8fa7bf", accent="#f2b84b", warning="#f2b84b", error="#ff7a70", success="#6fcf97",
        foreground="#d8dee6", background="#0f1419", surface="#161d25", panel="#1f2832",
        variables=_more("#2c5d8a", "#ffffff", "#24323f", "#5b6b7b", "#0f1419"),
    ),
    Theme(
        name=LIGHT, dark=False,
        primary="#0b5cad", secondary="#50606f", accent="#874800", warning="#805000", error="#b3261e", success="#1b6b3a",
        foreground="#1f2328", background="#fbfaf7", surface="#f3f1ec", panel="#e8e5dd",
        variables=_more("#0b5cad", "#ffffff", "#d5dfea", "#857f70", "#ffffff", foreground_muted="#4f555c"),
    ),
    # Okabe and Ito, "Color Universal Design" (2008): colours that people with any common form of colour vision tell apart.
    Theme(
        name=COLOUR_BLIND,
        primary="#56b4e9", secondary="#cc79a7", accent="#f0e442", warning="#e69f00", error="#e8763a", success="#00b386",
        foreground="#e6e6e6", background="#101214", surface="#181b1e", panel="#22262a",
        variables=_more("#0b5f94", "#ffffff", "#2a3138", "#6b737b", "#101214"),
    ),
    Theme(
        name=CONTRAST,
        primary="#7fd4ff", secondary="#ffffff", accent="#ffff66", warning="#ffd75f", error="#ff9d9d", success="#87ff87",
        foreground="#ffffff", background="#000000", surface="#000000", panel="#1c1c1c",
        variables=_more(
            "#ffff66", "#000000", "#3a3a3a", "#a8a8a8", "#000000",
            text="auto 100%", text_muted="auto 87%", foreground_muted="#dadada",
        ),
    ),
    # The 16 colours of the terminal itself, on its own background, be that light or dark.
    Theme(
        name=TERMINAL, ansi=True,
        primary="ansi_blue", secondary="ansi_cyan", accent="ansi_cyan", warning="ansi_yellow", error="ansi_red",
        success="ansi_green", foreground="ansi_default", background="ansi_default", surface="ansi_default",
        panel="ansi_default", boost="ansi_default",
        variables={
            "ansi-background": "ansi_default", "ansi-foreground": "ansi_default",
            "text-muted": "ansi_default", "text-disabled": "ansi_bright_black", "foreground-muted": "ansi_default",
            "surface-lighten-1": "ansi_default", "surface-lighten-2": "ansi_default",
            "border": "ansi_cyan", "border-blurred": "ansi_default",
            "block-cursor-background": "ansi_default", "block-cursor-foreground": "ansi_default",
            "block-cursor-text-style": "bold reverse", "block-cursor-blurred-text-style": "reverse",
            "scrollbar": "ansi_cyan", "scrollbar-hover": "ansi_cyan", "scrollbar-active": "ansi_cyan",
            "footer-key-foreground": "ansi_cyan", "link-color": "ansi_default",
            "screen-selection-background": "ansi_cyan", "screen-selection-foreground": "ansi_black",
        },
    ),
)  # fmt: skip

NAMED: dict[str, Named] = {
    DARK: Named("#5b6b7b", "#ff7a70", "#6fcf97", "#f2b84b", "#6cb4f0", "#d6a2f5", "#62d0dd", "#d8dee6"),
    LIGHT: Named("#1f2328", "#b3261e", "#1b6b3a", "#7a4d00", "#0b5cad", "#8a2a8f", "#005f6b", "#50606f"),
    COLOUR_BLIND: Named("#6b737b", "#e8763a", "#00b386", "#e69f00", "#56b4e9", "#d68fb6", "#7cc8f2", "#e6e6e6"),
    CONTRAST: Named("#a8a8a8", "#ff9d9d", "#87ff87", "#ffd75f", "#9fd0ff", "#ffafff", "#87ffff", "#ffffff"),
}


def terminal_theme(theme: Theme) -> TerminalTheme | None:
    """How the colours with names look in one of cwtool's themes; None for themes of others."""
    named = NAMED.get(theme.name)
    if named is None or theme.background is None or theme.foreground is None:
        return None
    return named.terminal_theme(theme.background, theme.foreground)


def theme_for(preferred: str | None, known: Sequence[str], no_color: bool, colour_system: str | None) -> str:
    """The name of the theme to begin with.

    A terminal of 16 colours shows its own ones, as the nearest of 16 to those of a theme may be two alike; so does one
    that is to show none.
    """
    if no_color or colour_system in (None, "standard"):
        return TERMINAL
    return preferred if preferred and preferred in known else DARK


class WithoutColour(LineFilter):
    """Take the colours out of a line. What they said is said by bold, underlined and reversed text.

    Textual's own filter makes greys of the colours, and a red on black becomes a dark grey.
    """

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        return [Segment(text, style and _without_colour(style), control) for text, style, control in segments]


_RED, _YELLOW, _MAGENTA, _CYAN = 1, 3, 5, 6
_INSTEAD = {
    _RED: Style(bold=True, underline=True),
    _YELLOW: Style(underline=True),
    _MAGENTA: Style(bold=True),
    _CYAN: Style(bold=True),
}
_NO_COLOURS = Style.from_color(RichColor.default(), RichColor.default())
_REVERSED = Style(reverse=True)
_DARKEST = 0.2  # of the luminance of a background that is taken for the terminal's own


@lru_cache(1024)
def _without_colour(style: Style) -> Style:
    plain = style + _NO_COLOURS
    if style.color and style.color.number is not None:
        plain += _INSTEAD.get(style.color.number % 8, Style.null())
    behind = style.bgcolor
    if behind and not behind.is_default and Color.from_rich_color(behind, ansi=False).brightness > _DARKEST:
        plain += _REVERSED
    return plain
