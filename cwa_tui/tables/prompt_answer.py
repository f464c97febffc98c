"""The answers to a prompt as coloured texts, sentences and a table, for the command line and the full-screen interface."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.style import Style
from rich.text import Text

from cwa_engine.prompt_rows import COLLAPSED, END_TOKEN, POSITIONS, PromptAnswer, PromptToken
from cwa_tui.tables.columns import Column
from cwa_tui.tables.rows import TableRow, ViewTable
from cwa_tui.text import format as fmt
from cwa_tui.text.visible import visible

STACKED_BELOW = 60  # cells; wider terminals have both texts beside each other
_GAP = 3  # cells between them
_MARK = "mark"  # what a style's meta says of the sign under a text without colours


@dataclass(frozen=True, slots=True)
class Level:
    """From `least` nats of KL on: the colour of a token, one of 16, and the sign under it where there are no colours."""

    least: float
    style: str
    sign: str


LEVELS = (
    Level(0.0, "", " "),
    Level(0.01, "cyan", "."),
    Level(0.1, "yellow", ":"),
    Level(1.0, "red", "+"),
    Level(5.0, "bold white on red", "#"),
)
GONE = Level(float("inf"), "bold reverse", "X")  # the damaged model's prediction is NaN or infinite
CHANGED = "!"  # begins the signs under a token for which the likeliest token is another one


def level_of(token: PromptToken) -> Level:
    """How far the damaged model's prediction of a token is from the intact one's."""
    if token.collapsed:
        return GONE
    return next(level for level in reversed(LEVELS) if (token.kl or 0.0) >= level.least)


def coloured(tokens: Sequence[PromptToken]) -> Text:
    """The text of tokens, each in the colour of its KL, underlined where the likeliest token is another one."""
    text = Text()
    for token in tokens:
        level, changed = level_of(token), token.top1_changed
        sign = (CHANGED if changed else level.sign) + level.sign
        _append(text, token.text, f"{level.style}{' underline' if changed else ''}".strip(), sign)
    return text


def prompt_text(answer: PromptAnswer) -> Text:
    """The prompt, with what stands before it."""
    return coloured([token for token in answer.tokens if token.in_prompt])


def intact_text(answer: PromptAnswer) -> Text:
    """What the intact model goes on with."""
    return coloured([token for token in answer.tokens if not token.in_prompt])


def damaged_text(answer: PromptAnswer) -> Text:
    """What the damaged model goes on with: bold from the first token on that differs."""
    text = Text()
    for place, token in enumerate(answer.damaged_tokens):
        differs = answer.first_difference is not None and place >= answer.first_difference
        _append(text, token, "bold" if differs else "", "^^" if place == answer.first_difference else "  ")
    return text


def _append(text: Text, said: str, style: str, sign: str) -> None:
    """Append a token: `sign` is what stands under its first cell, and under its others."""
    shown = visible(said)
    for place, part in ((0, shown[:1]), (1, shown[1:])):
        text.append(part, Style.parse(style) + Style(meta={_MARK: sign[place]}))


@dataclass(frozen=True, slots=True)
class Passage:
    """Something rich prints: a text in the width there is, with signs under its lines where there are no colours."""

    text: Text
    signs: bool

    def lines(self, console: Console, width: int) -> list[Text]:
        found = []
        for line in self.text.wrap(console, width, overflow="fold", tab_size=4):
            line.rstrip()
            found.append(line)
            if self.signs and (signs := _signs(line)):
                found.append(Text(signs))
        return found

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from self.lines(console, options.max_width)


@dataclass(frozen=True, slots=True)
class SideBySide:
    """Something rich prints: two texts beside each other under their titles, or below each other where it is narrow.

    With `height` only the last lines of each that fit.
    """

    titles: tuple[str, str]
    passages: tuple[Passage, ...]  # one or two
    height: int | None = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width
        if len(self.passages) == 1 or width < STACKED_BELOW:
            for title, passage in zip(self.titles, self.passages, strict=False):
                yield _title(title, width)
                yield from self._last(passage.lines(console, width))
            return
        each = (width - _GAP) // 2
        columns = [
            [_title(title, each), *self._last(passage.lines(console, each))]
            for title, passage in zip(self.titles, self.passages, strict=True)
        ]
        for place in range(max(map(len, columns))):
            left, right = (column[place] if place < len(column) else Text() for column in columns)
            line = left.copy()
            line.append(" " * (each + _GAP - cell_len(left.plain)))
            yield line.append_text(right)

    def _last(self, lines: list[Text]) -> list[Text]:
        return lines if self.height is None else lines[-max(1, self.height) :]


def both_texts(answer: PromptAnswer, signs: bool) -> SideBySide:
    """The texts of both models, with titles that say why they end."""
    passages = [Passage(intact_text(answer), signs)]
    titles = [f"intact · {_ending(answer, answer.intact_end, len(answer.tokens) - _in_prompt(answer))}"]
    if answer.damaged_end is not None:
        passages.append(Passage(damaged_text(answer), signs))
        titles.append(f"damaged · {_ending(answer, answer.damaged_end, len(answer.damaged_tokens))}")
    return SideBySide((titles[0], titles[-1]), tuple(passages))


def texts_so_far(intact: str, damaged: str | None, height: int) -> SideBySide:
    """The texts while they grow, without colours."""
    texts = [text for text in (intact, damaged) if text is not None]
    return SideBySide(("intact", "damaged"), tuple(Passage(Text(visible(text)), False) for text in texts), height)


def headline(answer: PromptAnswer) -> str:
    """`gpt2 · zero 1 weight · greedy`."""
    weights = f"{answer.perturbation} {answer.weights:,} weight{'s' * (answer.weights != 1)}"
    if answer.unchanged:
        weights += f" ({answer.unchanged:,} had that value already)"
    how = "greedy" if answer.temperature == 0 else f"temperature {answer.temperature:g}, seed {answer.seed}"
    parts = [answer.model, answer.dtype, weights if answer.damaged_end is not None else "no weights are damaged", how]
    return " · ".join([*parts, f"after {answer.bos}"] if answer.bos else parts)


def legend(signs: bool) -> Text:
    """What colours or signs mean."""
    changed = "likeliest token changed"
    if signs:
        levels = "  ".join(f"{level.least:g}+ {level.sign}" for level in LEVELS[1:])
        return Text(f"KL in nats: {levels}  {changed}: {CHANGED}")
    text = Text("KL in nats: ")
    for level in LEVELS[1:]:
        text.append(f"{level.least:g}+", level.style).append("  ")
    return text.append(changed, "underline")


def sentences(answer: PromptAnswer) -> list[str]:
    """What the answer says in figures: where the texts part, KL, changes of the likeliest token, collapse."""
    if answer.damaged_end is None:
        return []
    found = [_parting(answer)]
    predicted, gone = answer.predicted, answer.collapsed_tokens
    if answer.collapsed_at is not None:
        found.append(f"the damaged model collapsed: {answer.collapsed_at} is the first layer to give NaN or infinity")
    if not predicted:
        return [*found, "no token is predicted, so there is no KL"]
    if gone:
        found.append(
            f"mean KL: none, for {gone:,} of {len(predicted):,} predictions of the damaged model are not finite"
        )
    else:
        found.append(
            f"mean KL {fmt.number(answer.mean_kl)} nats over {len(predicted):,} tokens of the intact model's text"
        )
    share = answer.top1_changes / len(predicted)
    return [*found, f"likeliest token changed for {answer.top1_changes:,} of {len(predicted):,} tokens ({share:.0%})"]


def _parting(answer: PromptAnswer) -> str:
    place = answer.first_difference
    if place is None:
        return "both texts are the same" if answer.damaged_tokens else "nothing was generated"
    texts = [token.text for token in answer.tokens if not token.in_prompt], answer.damaged_tokens
    intact, damaged = (_named(tokens[place]) if place < len(tokens) else "nothing" for tokens in texts)
    return f"the texts part at token {place + 1}: {intact} intact, {damaged} damaged"


def _named(token: str) -> str:
    return repr(token) if token else "a part of a character"


def _ending(answer: PromptAnswer, end: str, tokens: int) -> str:
    number = tokens - 1 if end == END_TOKEN else tokens
    count = f"{number:,} token{'s' * (number != 1)}"
    how = {END_TOKEN: "then its end", POSITIONS: "as many as it takes", COLLAPSED: "then it collapsed"}
    return f"{count}, {how[end]}" if end in how else count


def _in_prompt(answer: PromptAnswer) -> int:
    return sum(token.in_prompt for token in answer.tokens)


def token_table(answer: PromptAnswer) -> ViewTable:
    """Every token of the intact model's text with both models' predictions."""
    columns = (
        Column("place", "#", 4, right=True),
        Column("token", "token", 10, most=24),
        Column("kl", "KL nats", 8, right=True),
        Column("change", "", 1),
        Column("intact_top", "intact says", 11, most=24),
        Column("damaged_top", "damaged says", 12, most=24),
        Column("intact", "p intact", 8, right=True, optional=1),
        Column("damaged", "p damaged", 9, right=True, optional=2),
        Column("part", "part", 6, optional=3),
    )
    return ViewTable("tokens", columns, tuple(_token_rows(answer)))


def _token_rows(answer: PromptAnswer) -> Iterator[TableRow]:
    for place, token in enumerate(answer.tokens, start=1):
        values = {
            "place": place,
            "token": _shown(token.token),
            "kl": token.kl,
            "change": CHANGED if token.top1_changed else "",
            "intact_top": _shown(token.intact_top),
            "damaged_top": _shown(token.damaged_top),
            "intact": token.intact,
            "damaged": token.damaged,
            "part": "prompt" if token.in_prompt else "text",
        }
        shown = {
            "place": f"{place:,}",
            "kl": COLLAPSED if token.collapsed else _figure(token.kl),
            "intact": _figure(token.intact),
            "damaged": _figure(token.damaged),
        }
        cells = {key: shown.get(key, str(value)) for key, value in values.items()}
        yield TableRow(str(place), cells, styles={"kl": level_of(token).style}, values=values)


def _shown(token: str) -> str:
    """A token in a cell: blanks alone would not be seen."""
    return repr(token) if token.isspace() else token


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _signs(line: Text) -> str:
    """The signs under a line; empty where there are none."""
    under = [" "] * len(line.plain)
    for span in line.spans:
        if isinstance(span.style, Style) and _MARK in span.style.meta:
            under[span.start : span.end] = span.style.meta[_MARK] * (min(span.end, len(under)) - span.start)
    return "".join(sign * cell_len(character) for sign, character in zip(under, line.plain, strict=True)).rstrip()


def _title(title: str, width: int) -> Text:
    text = Text(visible(title), "bold", no_wrap=True)
    text.truncate(width, overflow="ellipsis")
    return text
