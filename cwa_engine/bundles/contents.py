"""What a bundle has beside the files of its runs: made of the reports alone, so whoever has them can make it again. torch-free.

bundle.json · README.md · methods.md · limitations.md · claims.json · figures.md · figures/ID/*.csv · tables/ID/*, and of a
study studies/ID/answer.json and the tables of its answer.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cwa_engine.base.plain import JsonMap
from cwa_engine.base.version import __version__
from cwa_engine.bundles.claims import claims_of_run, claims_of_study
from cwa_engine.exchange.writing import LATEX, MARKDOWN, one_table, printed_tables
from cwa_engine.figures.figure import Figure
from cwa_engine.figures.registry import figures_of
from cwa_engine.records.run_report import RunReport
from cwa_engine.reports.methods import limitations, methods_paragraph, protocol_line
from cwa_engine.studies.report import ANSWER, StudyReport

FORMAT = 1
ABOUT, README, METHODS, LIMITATIONS, CLAIMS = "bundle.json", "README.md", "methods.md", "limitations.md", "claims.json"
CAPTIONS = "figures.md"
RUNS, STUDIES, FIGURES, TABLES = "runs", "studies", "figures", "tables"


@dataclass(frozen=True)
class BundledRun:
    """A run of a bundle. The two fingerprints are the same where no path had to be cut out of its files."""

    run_id: str
    fingerprint: str | None  # of its files in the bundle; None for a run of an early version
    as_written: str | None  # of its files as the run wrote them
    rewritten: tuple[str, ...] = ()  # files out of which paths were cut


@dataclass(frozen=True)
class About:
    """What bundle.json says."""

    kind: str  # "run" or "study"
    id: str
    runs: tuple[BundledRun, ...]
    paths_kept: bool  # whether the files are as they were, paths of the machine among them
    registered: bool = False  # of a study: whether its registration held when it was packed
    registration: str = ""  # the same in words
    left_out: tuple[str, ...] = ()  # files that are not in the bundle
    cwtool: str = __version__
    format: int = FORMAT


@dataclass(frozen=True)
class Contents:
    """A bundle before it is packed, or after it was unpacked."""

    about: About
    reports: tuple[RunReport, ...]  # as the bundle has them
    study: StudyReport | None = None


def run_folder(run_id: str) -> str:
    """Where a bundle has the files of a run."""
    return f"{RUNS}/{run_id}"


def study_folder(study_id: str) -> str:
    """Where a bundle has the files of a study."""
    return f"{STUDIES}/{study_id}"


def derived(contents: Contents) -> Iterator[tuple[str, bytes]]:
    """(name, content) of every file that is made of the reports. The same reports give the same bytes."""
    about, claims, captions = contents.about, [], "# Figures\n"
    for folder, figures, said in _sources(contents):
        claims += said
        captions += "".join(
            f"\n## {folder}/{figure.name}.csv\n\n{figure.title}. {figure.caption}\n" for figure in figures
        )
        for figure in figures:
            yield f"{folder}/{figure.name}.csv", figure.table.table.to_bytes(figure.table.rows)
    yield CAPTIONS, captions.encode()
    yield CLAIMS, _json({"claims": claims})
    source = contents.study or contents.reports[0]
    paragraph = methods_paragraph(source, about.registration if contents.study else None)
    yield METHODS, f"# Methods\n\n{paragraph}\n\nProtocol: {protocol_line(source)}\n".encode()
    limits = limitations(source, about.registered if contents.study else None)
    yield LIMITATIONS, ("# Limitations\n\n" + "".join(f"- {limit}\n" for limit in limits)).encode()
    yield README, _readme(about).encode()
    for name in printed_tables(source):
        yield f"{TABLES}/{about.id}/{name}.tex", one_table(source, name, LATEX)
        yield f"{TABLES}/{about.id}/{name}.md", one_table(source, name, MARKDOWN)
    if contents.study:
        yield from _of_the_study(contents.study, about)


def drawn_figures(contents: Contents) -> tuple[str, list[Figure]]:
    """(folder in the bundle, figures) of the study or of the run: those that are drawn as pictures too."""
    folder, figures, _ = next(_sources(contents))
    return folder, figures


def _sources(contents: Contents) -> Iterator[tuple[str, list[Figure], list[JsonMap]]]:
    """(folder of figures, figures, claims) of the study if there is one, then of each run."""
    if study := contents.study:
        folder, figures = f"{FIGURES}/{study.folder.id}", _different(figures_of(study, "study"))
        yield folder, figures, list(claims_of_study(study, study_folder(study.folder.id), figures, folder))
    for report in contents.reports:
        folder, figures = f"{FIGURES}/{report.run_id}", _different(figures_of(report, "run"))
        yield folder, figures, list(claims_of_run(report, run_folder(report.run_id), figures, folder))


def _different(figures: list[Figure]) -> list[Figure]:
    """One of each name: a name is a file."""
    return list({figure.name: figure for figure in figures}.values())


def _of_the_study(report: StudyReport, about: About) -> Iterator[tuple[str, bytes]]:
    """Its own files; what is said of the registration is what held on the machine of its runs."""
    folder = study_folder(report.folder.id)
    held = {"registered": about.registered, "registration": about.registration}
    for name, content in report.files():
        yield f"{folder}/{name}", _json({**json.loads(content), **held}) if name == ANSWER else content


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()


_HEAD = """# {id}

A {kind} of cwtool, packed whole by cwtool {version}, so that what it says can be checked without the machine that it ran on.

## How to check it

    cwtool verify FILE.zip             # every hash, and every figure recomputed from the losses of each sequence
    cwtool verify FILE.zip --rerun     # with the model at hand: the run again, and its tables beside these
    sha256sum --check SHA256SUMS       # in the unpacked folder: the hashes alone

A bundle that was unpacked and packed again by other programs is refused; its files can be checked by `sha256sum` then, and
each run by `cwtool verify runs/ID/`.

## What is in it

- `methods.md`: how it was made, as a paragraph for a paper
- `limitations.md`: what it cannot say
- `claims.json`: every statement, the figures that show it, and the files and rows that have its numbers
- `figures/`: the table behind each figure as CSV, and pictures where they could be drawn
- `figures.md`: what each figure shows, and how it was measured
- `tables/`: tables as papers print them, in LaTeX with booktabs and in Markdown
- `runs/`: the files of each run: spec and versions in `manifest.json`, the loss of each sequence in `evaluation.csv`
- `bundle.json`: what was packed
- `SHA256SUMS`: the hash of every other file
"""
_CUT = """
## What was cut

Folders of the machine were cut out of these files; of each path its last part stays, and nothing else was changed. A
fingerprint stands for all files of a run.

"""


def _readme(about: About) -> str:
    text = _HEAD.format(id=about.id, kind=about.kind, version=about.cwtool)
    if about.kind == "study":
        text += f"- `studies/{about.id}/`: what was asked, the answer with its tables, and the list of its runs\n"
    text += "\n## Runs\n\n" + "".join(_run_line(run) for run in about.runs)
    cut = [run for run in about.runs if run.rewritten]
    if cut or about.left_out:
        text += _CUT + "".join(f"- `{run_folder(run.run_id)}/`: {', '.join(run.rewritten)}\n" for run in cut)
        text += "".join(
            f"- `{name}` was left out, as its own hash does not let it be changed\n" for name in about.left_out
        )
    return text


def _run_line(run: BundledRun) -> str:
    if run.fingerprint == run.as_written:
        return f"- `{run.run_id}`, fingerprint {run.fingerprint or 'not known'}\n"
    return f"- `{run.run_id}`, fingerprint {run.fingerprint}; as the run wrote its files {run.as_written}\n"
