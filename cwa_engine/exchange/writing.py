"""`cwtool export`: what a run or a study has, in files that other programs and papers take. One piece serves all commands.

- csv, json, parquet: every table with every number exact
- markdown: the same, and the tables that papers print in one page
- latex: the tables that papers print
- safetensors: the ranked weights as masks that load beside the model
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from cwa_engine.base.errors import InvalidInput, NotFound, OutputError, OutputTaken, did_you_mean
from cwa_engine.base.files import user_path, write_folder, write_whole
from cwa_engine.exchange import formats
from cwa_engine.exchange.formats import SUFFIXES
from cwa_engine.exchange.latex import latex
from cwa_engine.exchange.masks import write_masks
from cwa_engine.exchange.parquet import parquet_bytes
from cwa_engine.exchange.printed import PrintedTable
from cwa_engine.exchange.printed_markdown import page, printed_markdown
from cwa_engine.exchange.run_printed import printed_of_run
from cwa_engine.exchange.study_printed import printed_of_study
from cwa_engine.exchange.tables import DataTable, Report, data_table, identity, table_names
from cwa_engine.records.run_report import RunReport
from cwa_engine.studies.report import ANSWER, StudyReport

CSV, JSON, PARQUET, MARKDOWN, LATEX, SAFETENSORS = "csv", "json", "parquet", "markdown", "latex", "safetensors"
EXPORTS = (CSV, JSON, PARQUET, MARKDOWN, LATEX, SAFETENSORS)
TABLES = (CSV, JSON, PARQUET, MARKDOWN)  # formats of every table as it is
BINARY = (PARQUET, SAFETENSORS)
ENDINGS: dict[str, str] = {**SUFFIXES, PARQUET: ".parquet", LATEX: ".tex", SAFETENSORS: ".safetensors"}
PAGE = "tables.md"


def export(
    report: Report,
    path: str | Path,
    form: str = CSV,
    table: str | None = None,
    metric: str | None = None,
    k: int | None = None,
) -> list[Path]:
    """Write what a run or a study has, and give the paths of the files. This is `cwtool export`, for programs.

    All tables go into the new folder `path`; one `table`, and the masks of a ranking (form "safetensors"), into the new file
    `path`. `metric` and `k` say of which ranking and of how many of its weights, where form is "latex", "markdown" or
    "safetensors". Raises InvalidInput for another form, NotFound for a table or a metric that is not there, and OutputError
    where `path` is there already or cannot be written.

        export(report, "tables", "latex")
        export(report, "top.safetensors", "safetensors", k=10)
    """
    target, checked = user_path(str(path), "the path"), checked_export(form)
    if table is None and checked != SAFETENSORS:
        return write_tables(report, target, checked, metric, k)
    return [write_file(report, target, checked, table, metric, k)]


def checked_export(form: str, among: Sequence[str] = EXPORTS) -> str:
    """The format of this name. Raises InvalidInput."""
    if form in among:
        return form
    hint = did_you_mean(form, among) or f"there are: {', '.join(among)}"
    raise InvalidInput(f"there is no format '{form}'", hint=hint)


def printed_tables(report: Report, metric: str | None = None, k: int | None = None) -> dict[str, PrintedTable]:
    """Name -> table, of what papers print; of one metric and its first `k` weights, where given. Raises NotFound."""
    if isinstance(report, StudyReport):
        return printed_of_study(report)
    _check_metric(report, metric)
    return printed_of_run(report, metric, k)


def one_table(report: Report, name: str, form: str, metric: str | None = None, k: int | None = None) -> bytes:
    """One table in a format other than safetensors. Raises NotFound for a table that is not there in this format."""
    if form == PARQUET:
        return parquet_bytes(data_table(report, name))
    printed = printed_tables(report, metric, k) if form in (LATEX, MARKDOWN) else {}
    if name in printed:
        found = printed[name]
        text = latex(found, f"{identity(report)}-{name}") if form == LATEX else printed_markdown(found)
    elif form == LATEX:
        raise NotFound(
            f"{identity(report)} has no table '{name}' in LaTeX",
            hint=did_you_mean(name, printed) or f"it has {', '.join(printed) or 'none'}; other formats have all tables",
        )
    else:
        text = _text(data_table(report, name), form)
    return text.encode("utf-8", "backslashreplace")


def write_tables(
    report: Report, folder: Path, form: str, metric: str | None = None, k: int | None = None
) -> list[Path]:
    """Write all tables into a new folder, whole or not at all. Raises OutputError for one that is there already."""
    if folder.exists():
        raise OutputTaken(f"{folder} exists", hint="give --output a folder that does not exist yet")
    files = dict(_files(report, form, metric, k))
    if not files:
        raise NotFound(f"{identity(report)} has nothing to write as {form}", hint="take --format csv")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        write_folder(folder, files.items())
    except OSError as error:
        raise OutputError(f"{folder} cannot be written: {error.strerror}", hint="give another folder") from error
    return [folder / name for name in files]


def write_file(
    report: Report, path: Path, form: str, table: str | None = None, metric: str | None = None, k: int | None = None
) -> Path:
    """Write one table, or the masks of a ranking, into a new file. Raises OutputError for one that is there already."""
    if form == SAFETENSORS:
        if isinstance(report, StudyReport):
            raise InvalidInput("masks are of one run", hint="give the run: `cwtool study show` lists those of a study")
        return write_masks(report, path, metric, k)
    if table is None:
        raise InvalidInput(f"{form} has a file for each table", hint="name one by --table")
    content = one_table(report, table, form, metric, k)
    if path.exists():
        raise OutputTaken(f"{path} exists", hint="give --output a file that does not exist yet")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}", hint="give another file") from error
    return path


def _files(report: Report, form: str, metric: str | None, k: int | None) -> Iterator[tuple[str, bytes]]:
    if isinstance(report, StudyReport):
        yield ANSWER, dict(report.files())[ANSWER]
    if form in TABLES:
        for name in table_names(report):
            table = data_table(report, name)
            content = (
                parquet_bytes(table) if form == PARQUET else _text(table, form).encode("utf-8", "backslashreplace")
            )
            yield f"{name}{ENDINGS[form]}", content
    if form in (LATEX, MARKDOWN):
        printed = printed_tables(report, metric, k)
        if form == LATEX:
            for name, found in printed.items():
                yield f"{name}.tex", latex(found, f"{identity(report)}-{name}").encode()
        elif printed:
            yield PAGE, page(identity(report), printed.values()).encode("utf-8", "backslashreplace")


def _text(table: DataTable, form: str) -> str:
    if form == CSV:
        return table.content.decode("utf-8")
    return formats.export(table.table.columns, table.cells(), form)


def _check_metric(report: RunReport, metric: str | None) -> None:
    if metric is not None and metric not in report.metrics:
        report.topk(metric)  # says which there are
