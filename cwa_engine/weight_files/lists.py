"""Lists in text: one weight in each line, or a table in CSV, TSV or Markdown."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from cwa_engine.base.errors import DataError, InvalidInput
from cwa_engine.weight_files.entries import MODELS, Listed, key_of, target_of_entry, target_of_line

# A line with two of these among its cells is the heading of a table.
_HEADINGS = {
    "target", "parameter", "param", "name", "module", "layer", "no", "type", "weight", "coordinates", "row", "col", "column",
    "outfeature", "infeature", "flatindex", "index", "out", "in", "tensor", "i", "j", "coords", "indices",
}  # fmt: skip
_Split = Callable[[str], list[str]]
_RULE = re.compile(r"\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?")


def targets_of_text(text: str, path: Path) -> list[Listed]:
    """The targets of a list or a table, each with its line. Raises DataError, naming the line, for one that names no weight."""
    lines = text.splitlines()
    for place, line in enumerate(lines):
        if not line.strip():
            continue
        for split in (_csv_cells, _tab_cells, _pipe_cells):
            if _is_heading(split(line)):
                return list(_of_table(lines, place, split, path))
        if not line.lstrip().startswith(("#", "|")):
            break
    return list(_of_lines(lines, path))


def _of_lines(lines: Sequence[str], path: Path) -> Iterator[Listed]:
    for number, line in enumerate(lines, start=1):
        if said := line.split("#")[0].strip():
            with _at(path, f"line {number}"):
                yield f"line {number}", target_of_line(said)


def _of_table(lines: Sequence[str], first: int, split: _Split, path: Path) -> Iterator[Listed]:
    heading = split(lines[first])
    models: set[str] = set()
    for number, line in enumerate(lines[first + 1 :], start=first + 2):
        if not line.strip() or line.startswith("#") or _RULE.fullmatch(line.strip()):
            continue
        cells = split(line)
        with _at(path, f"line {number}"):
            if len(cells) > len(heading):
                raise InvalidInput(f"it has {len(cells)} cells, and the heading {len(heading)}", hint="quote commas")
            entry = dict(zip(heading, cells, strict=False))
            models |= {value for name, value in entry.items() if key_of(name) in MODELS and value}
            if len(models) > 1:
                raise InvalidInput(
                    f"it is of another model: {', '.join(sorted(models))}", hint="keep the lines of one model"
                )
            yield f"line {number}", target_of_entry(entry)


class _at:
    """Says of an error in which line of which file it is."""

    def __init__(self, path: Path, place: str) -> None:
        self._path, self._place = path, place

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, InvalidInput):
            raise DataError(f"{self._path}, {self._place}: {error.message}", hint=error.hint) from None


def _is_heading(cells: Sequence[str]) -> bool:
    return (len(cells) > 1 and len(_HEADINGS & {key_of(cell) for cell in cells}) > 1) or "target" in cells


def _csv_cells(line: str) -> list[str]:
    return [cell.strip() for cell in next(csv.reader([line], skipinitialspace=True), [])]


def _tab_cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("\t")]


def _pipe_cells(line: str) -> list[str]:
    return [cell.strip().strip("`*") for cell in line.strip().strip("|").split("|")] if "|" in line else []
