"""Whether a bundle holds: every hash, and everything in it that follows from something else made anew. torch-free.

From the losses of each sequence follow the statistics of a run (`records.verification`), from the reports of the runs
figures, answer, claims, methods and limitations (`contents.derived`). Each file that is not what it should be is named.
"""

from __future__ import annotations

import csv
import io
import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cwa_engine.base.errors import Altered, CwaError, InvalidInput
from cwa_engine.base.plain import from_plain
from cwa_engine.base.version import __version__
from cwa_engine.bundles.archive import Unpacked, unpack
from cwa_engine.bundles.contents import ABOUT, FIGURES, FORMAT, About, Contents, derived, run_folder, study_folder
from cwa_engine.records.checksums import SUMS
from cwa_engine.records.ledger import Disagreement, Ledger
from cwa_engine.records.run_report import RunReport, open_run
from cwa_engine.records.verification import Verification, verify
from cwa_engine.studies.answer import StudyRun
from cwa_engine.studies.folder import FURTHER, JOURNAL, REGISTRATION, STUDY, StudyFolder
from cwa_engine.studies.progress import CellProgress
from cwa_engine.studies.registry import answered
from cwa_engine.studies.report import CELLS, StudyReport

_OF_A_STUDY = (STUDY, JOURNAL, REGISTRATION, FURTHER)


@dataclass(frozen=True)
class BundleVerification:
    """What the verification of a bundle found."""

    path: str
    sha256: str  # of the bundle
    altered: dict[str, str]  # file -> what is wrong with it
    about: About | None = None  # None where it cannot be read
    runs: tuple[Verification, ...] = ()
    compared: int = 0  # files that were made anew
    disagreements: tuple[Disagreement, ...] = ()  # of these files
    unknown: tuple[str, ...] = ()  # what could not be compared

    @property
    def agrees(self) -> bool:
        """Whether every hash holds, and everything that was made anew is as the bundle has it."""
        return not self.altered and not self.disagreements and all(run.agrees for run in self.runs)


@contextmanager
def opened(bundle: Path) -> Iterator[Contents]:
    """The reports of a bundle. Raises Altered where a file is not what was packed, and what `unpack` raises."""
    with tempfile.TemporaryDirectory(prefix="cwtool-bundle-") as scratch:
        found = unpack(bundle, Path(scratch))
        if found.wrong:
            named = ", ".join(f"{name} is {what}" for name, what in found.wrong.items())
            raise Altered(f"{bundle} is not as it was packed: {named}", hint=f"`cwtool verify {bundle}` says more")
        yield _contents(Path(scratch), _about(Path(scratch)))


def verify_bundle(bundle: Path, sha256: str | None = None) -> BundleVerification:
    """Check every hash of a bundle, and make anew what follows from its tables. `sha256` is that of the file as published.

    Raises NotFound where there is no such file, InvalidInput for one that is no bundle or that is made to do harm, and Altered
    for one that cannot be unpacked.
    """
    with tempfile.TemporaryDirectory(prefix="cwtool-bundle-") as scratch:
        folder = Path(scratch)
        found = unpack(bundle, folder)
        altered = dict(found.wrong)
        if sha256 is not None and sha256 != found.sha256:
            altered[bundle.name] = "not the file that was published: its SHA-256 differs"
        if SUMS in altered or ABOUT in altered or ABOUT not in found.hashes:
            missing = {} if ABOUT in found.hashes or SUMS in altered else {ABOUT: "missing"}
            return BundleVerification(str(bundle), found.sha256, {**altered, **missing})
        try:
            about = _about(folder)
        except (InvalidInput, ValueError) as error:
            return BundleVerification(str(bundle), found.sha256, {**altered, ABOUT: f"not readable: {error}"})
        return _verified(bundle, folder, found, about, altered)


def _verified(bundle: Path, folder: Path, found: Unpacked, about: About, altered: dict[str, str]) -> BundleVerification:
    runs = []
    for run in about.runs:
        try:
            runs.append(verify(folder / run_folder(run.run_id), run.fingerprint))
        except CwaError as error:
            altered[run_folder(run.run_id)] = error.message
    ledger, unknown = Ledger(), ["pictures: their hashes are right, the tables beside them were made anew"]
    if about.cwtool != __version__:
        unknown.append(f"figures, answer, claims and texts: cwtool {about.cwtool} made them, and this is {__version__}")
    elif not altered and all(run.agrees for run in runs):
        try:
            _compare(folder, found, _contents(folder, about), runs, ledger)
        except (CwaError, ValueError, KeyError, TypeError) as error:
            altered[ABOUT] = f"not of these files: {error}"
    else:
        unknown.append("figures, answer, claims and texts: they follow from files that do not agree")
    if about.kind == "study":
        unknown.append("whether the study was registered before its runs: the machine of its runs knew that")
    return BundleVerification(
        path=str(bundle),
        sha256=found.sha256,
        altered=altered,
        about=about,
        runs=tuple(runs),
        compared=ledger.compared,
        disagreements=tuple(ledger.disagreements),
        unknown=tuple(unknown),
    )


def _about(folder: Path) -> About:
    """What bundle.json says. Raises InvalidInput for one of another format, and ValueError."""
    plain = json.loads((folder / ABOUT).read_bytes())
    if not isinstance(plain, dict) or plain.get("format") != FORMAT:
        said = plain.get("format") if isinstance(plain, dict) else None
        raise InvalidInput(f"the bundle has format {said!r}, and this version reads {FORMAT}", hint="update cwtool")
    about = from_plain(About, plain)
    if about.kind not in ("run", "study") or not about.runs:
        raise ValueError(f"it is of a '{about.kind}' with {len(about.runs)} runs")
    for name in (about.id, *(run.run_id for run in about.runs)):
        if not name or "/" in name or name.startswith("."):
            raise ValueError(f"{name!r} is no id")
    return about


def _contents(folder: Path, about: About) -> Contents:
    reports = tuple(open_run(folder / run_folder(run.run_id), run.fingerprint) for run in about.runs)
    return Contents(about, reports, _study(folder / study_folder(about.id), reports) if about.kind == "study" else None)


def _study(folder: Path, reports: tuple[RunReport, ...]) -> StudyReport:
    """The report of the study by its list of cells and the runs of the bundle."""
    study = StudyFolder.at(folder)
    cells, by_id = {cell.number: cell for cell in study.cells}, {report.run_id: report for report in reports}
    progress, runs = [], []
    for row in CELLS.from_bytes((folder / CELLS.name).read_bytes()):
        cell, error = cells[row.cell], CwaError(row.error) if row.error else None
        progress.append(CellProgress(cell, row.state, row.run_id, error, row.attempt))  # type: ignore[arg-type]
        if row.state == "done":
            runs.append(StudyRun(cell, by_id[row.run_id]))
    question = study.study.question
    return StudyReport(study, tuple(progress), tuple(runs), answered(question, runs) if question else None)


def _compare(folder: Path, found: Unpacked, contents: Contents, runs: Sequence[Verification], ledger: Ledger) -> None:
    """Every file that can be made of the reports beside that of the bundle; and no file that nobody knows."""
    about, made = contents.about, dict(derived(contents))
    for name, content in made.items():
        if name not in found.hashes:
            ledger.same(name, "missing", "a file")
        elif (folder / name).read_bytes() == content:
            ledger.compared += 1
        else:
            ledger.same(name, *(_read(name, each) for each in ((folder / name).read_bytes(), content)))
    known = {*made, SUMS, ABOUT, *(f"{name.removesuffix('.csv')}.svg" for name in made if name.startswith(FIGURES))}
    known |= {f"{study_folder(about.id)}/{name}" for name in _OF_A_STUDY if contents.study}
    known |= {f"{run_folder(run.run_id)}/{name}" for run in runs for name in run.check.hashes}
    for name in sorted(found.hashes.keys() - known):
        ledger.same(name, "a file", "nothing that a bundle has")


def _read(name: str, content: bytes) -> Any:
    """A file as its numbers and texts, so that numbers may differ by rounding."""
    text = content.decode("utf-8", "replace")
    try:
        if name.endswith(".json"):
            return json.loads(text)
        if name.endswith(".csv"):
            return [[_number(cell) for cell in line] for line in csv.reader(io.StringIO(text))]
    except (ValueError, csv.Error):
        pass
    return text.splitlines()


def _number(cell: str) -> float | str:
    try:
        return float(cell)
    except ValueError:
        return cell
