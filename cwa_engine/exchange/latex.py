"""Printed tables in LaTeX, with booktabs: numbers aligned at the decimal point, each interval beside its number. torch-free.

A number with an interval is `$2.31$ [$2.10$, $2.52$]`. Texts are escaped, so that no name of a model is taken for a command;
characters that pdfLaTeX does not have are written as in `U+4E2D`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from cwa_engine.base.version import __version__
from cwa_engine.exchange.printed import Cell, Number, PrintedTable, Strong, is_numeric, number_texts

_ESCAPED = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    '"': r"\textquotedbl{}", "`": r"\textasciigrave{}",
    "Δ": r"$\Delta$", "×": r"$\times$", "≤": r"$\leq$", "≥": r"$\geq$", "±": r"$\pm$", "²": r"$^{2}$", "·": r"$\cdot$",
    "−": "$-$", "–": "--", "—": "---", "…": r"\ldots{}", "“": "``", "”": "''", "‘": "`", "’": "'",
    "√": r"$\surd$", "‖": r"$\Vert$", "→": r"$\rightarrow$", "½": r"$\frac{1}{2}$", "α": r"$\alpha$", "σ": r"$\sigma$",
    "\t": " ", "\n": " ", "\r": " ", "\xa0": "~",
}  # fmt: skip
_LETTERS = re.compile("[À-ÖØ-öø-ÿ]")  # of Latin 1: the T1 encoding has them
_BREAK = re.compile(r"(?<=\w)[/._](?=\w)")  # in a caption a long name may be broken behind these
_LIGATURE = re.compile(r"([-',])(?=\1)")  # "--" would be printed as a dash
_PREAMBLE = r"% needs \usepackage[T1]{fontenc} \usepackage{textcomp} \usepackage{booktabs} \usepackage{graphicx}"


def latex(table: PrintedTable, label: str) -> str:
    """The table as a float of its own, no wider than the line. `label` is for references, and is cleaned of odd characters."""
    numeric = [is_numeric([row[place] for row in table.rows]) for place in range(len(table.columns))]
    intervals = [number and any(_interval(row[place]) for row in table.rows) for place, number in enumerate(numeric)]
    spec, head = [], []
    for name, number, interval in zip(table.columns, numeric, intervals, strict=True):
        spec.append(("r@{}l" + ("l" if interval else "")) if number else "l")
        span = 3 if interval else 2
        head.append(rf"\multicolumn{{{span}}}{{c}}{{{escape(name)}}}" if number else escape(name))
    lines = [
        f"% written by cwtool {__version__}",
        _PREAMBLE,
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escape(table.caption, breaks=True)}}}",
        rf"\label{{tab:{re.sub('[^A-Za-z0-9-]+', '-', label).strip('-')}}}",
        r"\medskip",
        r"\setlength{\tabcolsep}{4pt}",
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        rf"\begin{{tabular}}{{{''.join(spec)}}}",
        r"\toprule",
        f"{' & '.join(head)} \\\\",
        r"\midrule",
        *(f"{' & '.join(_row(row, numeric, intervals))} \\\\" for row in table.rows),
        r"\bottomrule",
        r"\end{tabular}}",
        r"\end{table}",
    ]
    return "".join(f"{line}\n" for line in lines)


def escape(text: str, breaks: bool = False) -> str:
    """The text as LaTeX prints it literally; with `breaks` lines may end behind the parts of a long name."""
    places = {found.start() for found in _BREAK.finditer(text)} if breaks else set()
    apart = {found.start() for found in _LIGATURE.finditer(text)}
    return "".join(
        _character(character) + (r"\allowbreak{}" if place in places else "{}" if place in apart else "")
        for place, character in enumerate(text)
    )


def _character(character: str) -> str:
    if character in _ESCAPED:
        return _ESCAPED[character]
    if " " <= character <= "~" or _LETTERS.match(character):
        return character
    return f"U+{ord(character):04X}"


def _row(row: Sequence[Cell], numeric: Sequence[bool], intervals: Sequence[bool]) -> list[str]:
    cells: list[str] = []
    for cell, number, interval in zip(row, numeric, intervals, strict=True):
        bold, inner = (True, cell.cell) if isinstance(cell, Strong) else (False, cell)
        if not number:
            cells.append(_bold(_text(inner), bold))
        elif isinstance(inner, str) or inner is None:  # no number in a column of numbers
            cells.append(rf"\multicolumn{{{3 if interval else 2}}}{{c}}{{{_bold(_text(inner), bold)}}}")
        else:
            value, ends = number_texts(inner) if isinstance(inner, Number) else (f"{inner:,}", "")
            cells += [*_halves(value, bold)] + ([_ends(ends)] if interval else [])
    return cells


def _halves(value: str, bold: bool) -> tuple[str, str]:
    """What stands before the decimal point, and it with what follows: the two columns that align it."""
    if value == "n/a":
        return "", value
    mantissa, _, power = value.partition("e")
    whole, point, fraction = mantissa.partition(".")
    tail = rf"{{\times}}10^{{{int(power)}}}" if power else ""
    whole = whole.replace(",", "{,}")
    return _math(whole, bold), _math(f"{point}{fraction}{tail}", bold) if point or tail else ""


def _ends(interval: str) -> str:
    if not interval:
        return ""
    low, high = interval.strip("[]").split(", ")
    return f"[{_whole(low)}, {_whole(high)}]"


def _whole(value: str) -> str:
    return "".join(_halves(value, False)).replace("$$", "")


def _math(text: str, bold: bool) -> str:
    return rf"$\mathbf{{{text}}}$" if bold else f"${text}$"


def _bold(text: str, bold: bool) -> str:
    return rf"\textbf{{{text}}}" if bold and text else text


def _text(cell: str | int | Number | None) -> str:
    match cell:
        case None:
            return ""
        case Number():
            return " ".join(part for part in number_texts(cell) if part)
    return escape(f"{cell:,}" if isinstance(cell, int) else cell)


def _interval(cell: Cell) -> str:
    inner = cell.cell if isinstance(cell, Strong) else cell
    return number_texts(inner)[1] if isinstance(inner, Number) else ""
