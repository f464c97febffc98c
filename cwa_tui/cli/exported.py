"""Where exported files go, and what is printed of them: for `cwtool export`, `results export` and `study export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cwa_engine.base.errors import InvalidInput
from cwa_engine.base.files import user_path
from cwa_engine.exchange.tables import identity
from cwa_engine.exchange.writing import BINARY, ENDINGS, SAFETENSORS, one_table, write_file, write_tables
from cwa_tui.cli.output import show, show_exactly

if TYPE_CHECKING:
    from cwa_engine.exchange.tables import Report


def exported(
    report: Report,
    form: str,
    table: str | None = None,
    output: str | None = None,
    metric: str | None = None,
    k: int | None = None,
    as_json: bool = False,
) -> None:
    """Print one table, or write files and print their paths. `output` is a file for one table and for masks, else a folder."""
    given = user_path(output, "--output") if output else None
    if form == SAFETENSORS and table:
        raise InvalidInput("safetensors has masks of a ranking, no tables", hint="choose the ranking by --metric")
    if table and not given and form not in BINARY and not as_json:
        show_exactly(one_table(report, table, form, metric, k).decode())
        return
    if table or form == SAFETENSORS:
        name = table or "-".join([metric or "masks", *([f"k{k}"] if k else [])])
        path = given or Path(f"{identity(report)}-{name}{ENDINGS[form]}").absolute()
        paths = [write_file(report, path, form, table, metric, k)]
    else:
        folder = given or Path(f"{identity(report)}-tables").absolute()
        paths = write_tables(report, folder, form, metric, k)
    show({"files": [str(path) for path in paths]} if as_json else "\n".join(map(str, paths)))
