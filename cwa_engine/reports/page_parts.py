"""What a page consists of, as plain data: `page` makes it HTML, and modules of the kinds of pages fill it. torch-free.

Texts are as they are, never HTML: whatever stands in them is escaped when the page is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell of a table: what it shows, and the exact value where that is something else. Numbers are sorted by `exact`."""

    text: str
    exact: float | int | None = None


@dataclass(frozen=True, slots=True)
class Heading:
    """A column. Of numbers the cells stand to the right and are sorted as numbers, missing ones last."""

    label: str
    is_number: bool = False


@dataclass(frozen=True, slots=True)
class TableBlock:
    """A table that can be sorted and filtered. `rows` may be the first of `total` rows, all of which `whole` tells of."""

    kind: ClassVar[str] = "table"
    title: str
    headings: tuple[Heading, ...]
    rows: tuple[tuple[Cell, ...], ...]
    total: int
    whole: str = ""  # where all rows are: "topk_grad_x_weight.csv of the run"
    note: str = ""  # how to read it


@dataclass(frozen=True, slots=True)
class FigureBlock:
    """A figure: its Vega-Lite specification in the light look, and what of it changes in the dark one.

    Without one, for a page has limits, its data alone is shown.
    """

    kind: ClassVar[str] = "figure"
    name: str
    title: str
    caption: str
    data: TableBlock
    specs: Mapping[str, Any] | None  # light: the specification, dark: its changes as (path, value)
    csv: str = ""  # a data: link with all rows; empty where they are too many for the page


@dataclass(frozen=True, slots=True)
class Prose:
    """A paragraph."""

    kind: ClassVar[str] = "prose"
    text: str


@dataclass(frozen=True, slots=True)
class Statement:
    """A sentence, and below it what belongs to it. `outcome` marks a verdict, by sign, word and colour."""

    sentence: str
    below: str = ""
    outcome: str = ""  # "harmful", "helpful", "indistinguishable", "not tested", or ""


@dataclass(frozen=True, slots=True)
class Statements:
    """A list of sentences."""

    kind: ClassVar[str] = "statements"
    entries: tuple[Statement, ...]
    title: str = ""


@dataclass(frozen=True, slots=True)
class Code:
    """Lines to copy."""

    kind: ClassVar[str] = "code"
    title: str
    text: str

    @property
    def lines(self) -> list[str]:
        return self.text.split("\n")


@dataclass(frozen=True, slots=True)
class Facts:
    """What something is, in pairs of a name and a text."""

    kind: ClassVar[str] = "facts"
    title: str
    pairs: tuple[tuple[str, str], ...]


Block = TableBlock | FigureBlock | Prose | Statements | Code | Facts


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a page under a heading of its own. One without blocks is left out."""

    name: str  # of its anchor
    title: str
    blocks: tuple[Block, ...]
    note: str = ""  # how to use it on a screen; paper is without


@dataclass(frozen=True, slots=True)
class Headline:
    """A number of which the reader is to know first, with its interval or unit below."""

    label: str
    text: str
    below: str = ""


@dataclass(frozen=True, slots=True)
class Page:
    """One page. The question and its answer stand before everything else."""

    subject: str  # what it is about, for programs: "run 20260101-000000-gpt2-abcd"
    kicker: str  # the line above the title
    title: str
    question: str
    answer: tuple[Statement, ...]
    headlines: tuple[Headline, ...]
    sections: tuple[Section, ...]
