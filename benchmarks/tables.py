"""Markdown tables of what was measured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table, text to the left and the rest to the right."""
    found = [[str(cell) for cell in row] for row in rows]
    lines = [list(columns), ["---", *["---:"] * (len(columns) - 1)], *found]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def section_of(text: str, title: str) -> str:
    """What stands below the heading `## title`, up to the next one."""
    return text.partition(f"## {title}\n")[2].partition("\n## ")[0].strip()


def known_rows(text: str, title: str) -> list[tuple[str, ...]]:
    """The rows of the table in a section."""
    lines = [line for line in section_of(text, title).splitlines() if line.startswith("|")][2:]
    return [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines]


def with_section(text: str, title: str, body: str) -> str:
    """The text with this section's content replaced, or with the section at its end."""
    heading = f"## {title}\n"
    if heading not in text:
        return f"{text.rstrip()}\n\n{heading}\n{body}\n"
    before, _, rest = text.partition(heading)
    _, following, after = rest.partition("\n## ")
    return f"{before}{heading}\n{body}\n{following}{after}"
