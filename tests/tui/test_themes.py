"""Themes: every text can be read on every background, and what a terminal without colours shows instead."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from rich.segment import Segment
from rich.style import Style
from textual.color import Color
from textual.theme import Theme

from cwa_tui.terminal.themes import COLOUR_BLIND, CONTRAST, DARK, NAMED, TERMINAL, THEMES, WithoutColour, theme_for
from cwa_tui.text import format as fmt

COLOURED = [theme for theme in THEMES if not theme.ansi]
TEXTS = (
    "text", "text-muted", "foreground", "foreground-muted", "text-primary", "text-secondary", "text-warning",
    "text-error", "text-success", "text-accent", "primary", "accent", "warning", "error", "success",
    "footer-key-foreground", "footer-foreground", "footer-description-foreground", "input-selection-foreground",
)  # fmt: skip
BACKGROUNDS = ("background", "surface", "panel")
PAIRS = (
    ("block-cursor-foreground", "block-cursor-background"),
    ("block-cursor-blurred-foreground", "block-cursor-blurred-background"),
    ("footer-key-foreground", "footer-background"),
    ("input-cursor-foreground", "input-cursor-background"),
    ("foreground", "input-selection-background"),
    ("button-color-foreground", "primary"),
    ("button-color-foreground", "success"),
    ("button-color-foreground", "error"),
    ("text", "error"),  # the banner
    ("text", "primary"),
)


def luminance(colour: Color) -> float:
    """WCAG 2.2, relative luminance."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour.normalized]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(text: Color, background: Color) -> float:
    """WCAG 2.2, contrast ratio, from 1 to 21."""
    lighter, darker = sorted((luminance(text), luminance(background)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def on(background: Color, text: str) -> Color:
    """The colour that is seen: `auto` is black or white, whatever can be read, and some are mixed with the background."""
    if text.startswith("auto"):
        alpha = float(text.split()[1].rstrip("%")) / 100
        return background.blend(background.get_contrast_text(1.0), alpha, alpha=1)
    colour = Color.parse(text)
    return background.blend(colour, colour.a, alpha=1)


def pairs(theme: Theme) -> Iterator[tuple[str, str, float]]:
    variables = theme.to_color_system().generate()
    ground = Color.parse(variables["background"])
    for behind in BACKGROUNDS:
        background = Color.parse(variables[behind])
        for text in TEXTS:
            yield text, behind, contrast(on(background, variables[text]), background)
        for name in set(fmt.STATE_STYLES.values()):
            yield name, behind, contrast(Color.parse(getattr(NAMED[theme.name], name)), background)
    for text, behind in PAIRS:
        background = on(ground, variables[behind])
        yield text, behind, contrast(on(background, variables[text]), background)


@pytest.mark.parametrize("theme", COLOURED, ids=lambda theme: theme.name)
def test_every_text_can_be_read_on_every_background(theme: Theme) -> None:
    least = 7.0 if theme.name == CONTRAST else 4.5  # WCAG 1.4.6 and 1.4.3
    assert [pair for pair in pairs(theme) if pair[2] < least] == []


@pytest.mark.parametrize("theme", COLOURED, ids=lambda theme: theme.name)
def test_the_frame_of_a_pane_stands_out(theme: Theme) -> None:
    variables = theme.to_color_system().generate()
    background = Color.parse(variables["background"])
    for line in ("border", "border-blurred", "surface-lighten-2", "accent"):
        assert contrast(Color.parse(variables[line]), background) >= 3  # WCAG 1.4.11


def seen_by(colour: Color, matrix: tuple[tuple[float, float, float], ...]) -> tuple[float, ...]:
    """A colour in linear light as somebody sees it whose vision is simulated by this matrix."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour.normalized]
    return tuple(sum(m * c for m, c in zip(row, linear, strict=True)) for row in matrix)


# Machado, Oliveira and Fernandes 2009, severity 1.0, for linear light
PROTANOPIA = ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998))
DEUTERANOPIA = ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881))


@pytest.mark.parametrize("vision", [PROTANOPIA, DEUTERANOPIA], ids=["protanopia", "deuteranopia"])
def test_done_failed_and_running_differ_to_the_colour_blind(vision: tuple[tuple[float, float, float], ...]) -> None:
    named = NAMED[COLOUR_BLIND]
    states = [Color.parse(getattr(named, fmt.STATE_STYLES[state])) for state in ("done", "failed", "running")]
    seen = [seen_by(colour, vision) for colour in states]
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert max(abs(a - b) for a, b in zip(seen[first], seen[second], strict=True)) > 0.15


@pytest.mark.parametrize(
    ("preferred", "no_color", "colour_system", "chosen"),
    [
        (None, False, "truecolor", DARK),
        (CONTRAST, False, "256", CONTRAST),
        ("one that was removed", False, "truecolor", DARK),
        (CONTRAST, True, "truecolor", TERMINAL),
        (CONTRAST, False, "standard", TERMINAL),
        (None, False, None, TERMINAL),
    ],
)
def test_a_terminal_of_few_colours_gets_its_own(
    preferred: str | None, no_color: bool, colour_system: str | None, chosen: str
) -> None:
    assert theme_for(preferred, [theme.name for theme in THEMES], no_color, colour_system) == chosen


def test_without_colours_a_failure_is_bold_and_a_cursor_reversed() -> None:
    shown = WithoutColour().apply(
        [
            Segment("failed", Style.parse("red")),
            Segment("done", Style.parse("green")),
            Segment("row", Style.parse("black on cyan")),
            Segment("line", Style.parse("#777777 on #101010")),
            Segment("plain"),
        ],
        Color.parse("black"),
    )
    styles = {text: style for text, style, _ in shown}
    colours = [colour for style in styles.values() if style for colour in (style.color, style.bgcolor)]
    assert all(colour is not None and colour.is_default for colour in colours)
    assert styles["failed"] and styles["failed"].bold and styles["failed"].underline
    assert styles["done"] and not styles["done"].bold
    assert styles["row"] and styles["row"].reverse
    assert styles["line"] and not styles["line"].reverse and not styles["line"].dim
