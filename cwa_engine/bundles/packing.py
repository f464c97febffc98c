"""A run or a study packed into one file. torch-free.

A run is packed whole, every file compared with its hash. Where paths are cut out of its manifest, summary and log, these get
new hashes, and the fingerprint that the run had is kept beside the new one.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from cwa_engine.base.errors import CwaError, InvalidInput, OutputError, OutputTaken
from cwa_engine.base.files import scratch_path
from cwa_engine.base.plain import JsonMap
from cwa_engine.bundles.archive import Packed, write_archive
from cwa_engine.bundles.contents import (
    ABOUT,
    About,
    BundledRun,
    Contents,
    derived,
    drawn_figures,
    run_folder,
    study_folder,
)
from cwa_engine.bundles.privacy import NOTHING_CUT, Redaction, redaction_of
from cwa_engine.records.checksums import MANIFEST, SUMS, altered_error, check_run, sums_text
from cwa_engine.records.run_report import LOG, SUMMARY, FilesInFolder, FileSource, RunReport, open_run, report_from
from cwa_engine.spec import parse_spec
from cwa_engine.studies.answer import StudyRun
from cwa_engine.studies.folder import FURTHER, JOURNAL, REGISTRATION, STUDY, StudyFolder
from cwa_engine.studies.registration import standing
from cwa_engine.studies.registry import answered
from cwa_engine.studies.report import StudyReport
from cwa_engine.studies.study import Study

_OF_PLACES = ("model", "texts")  # parts of summary.json that name places


@dataclass(frozen=True, slots=True)
class PackedBundle:
    """A bundle that was written."""

    path: Path
    sha256: str  # of the file: published beside it, it tells whether the file is this one
    size_bytes: int
    about: About


def pack(source: RunReport | StudyReport, target: Path, keep_paths: bool = False) -> PackedBundle:
    """Write the bundle of a run or of a study. The same source gives the same bytes.

    Raises OutputTaken for a file that is there, OutputError for one that cannot be written, InvalidInput for a study without
    a finished run, and Altered for a run of which a file is not what it wrote.
    """
    if target.exists():
        raise OutputTaken(f"{target} exists", hint="give --output a file that does not exist yet")
    with tempfile.TemporaryDirectory(prefix="cwtool-bundle-") as scratch:
        contents, files = _contents(source, Path(scratch), keep_paths)
        files += [Packed(name, content) for name, content in derived(contents)]
        files += _pictures(contents, Path(scratch))
        files.append(Packed(ABOUT, _json(asdict(contents.about))))
        part = scratch_path(target)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            sha256 = write_archive(part, files)
            part.rename(target)
        except OSError as error:
            raise OutputError(f"{target} cannot be written: {error.strerror}", hint="give another file") from error
        finally:
            part.unlink(missing_ok=True)
    return PackedBundle(target, sha256, target.stat().st_size, contents.about)


@dataclass(frozen=True)
class _Run:
    """A run as the bundle has it."""

    bundled: BundledRun
    report: RunReport
    files: list[Packed]


@dataclass(frozen=True)
class _Overlay:
    """The files of a run, some of them rewritten."""

    rewritten: dict[str, bytes]
    others: FileSource

    def read(self, name: str) -> bytes:
        return self.rewritten[name] if name in self.rewritten else self.others.read(name)


def _contents(source: RunReport | StudyReport, scratch: Path, keep_paths: bool) -> tuple[Contents, list[Packed]]:
    reports = [source] if isinstance(source, RunReport) else [run.report for run in source.runs]
    if not reports:
        raise InvalidInput(
            "no run of the study is done", hint="a bundle needs one: `cwtool study resume` goes on with it"
        )
    reports = [_on_disk(report, scratch / "fetched") for report in reports]
    named: list[Any] = [] if keep_paths else [json.loads(report.files.read(MANIFEST)) for report in reports]
    if isinstance(source, StudyReport) and not keep_paths:
        named += _asked(source.folder)
    redaction = NOTHING_CUT if keep_paths else redaction_of(named)
    runs = [_run(report, redaction) for report in reports]
    about = About("run", reports[0].run_id, tuple(run.bundled for run in runs), keep_paths)
    files = [packed for run in runs for packed in run.files]
    packed_reports = tuple(run.report for run in runs)
    if isinstance(source, RunReport):
        return Contents(about, packed_reports), files
    study, of_study, left_out = _study(source, packed_reports, redaction, scratch)
    held = standing(source.folder, source.runs)
    about = replace(
        about, kind="study", id=source.folder.id, registered=held.holds, registration=held.sentence, left_out=left_out
    )
    return Contents(about, packed_reports, study), files + of_study


def _on_disk(report: RunReport, folder: Path) -> RunReport:
    """The same with a folder: the files of a run elsewhere are fetched."""
    if report.folder is not None:
        return report
    folder.mkdir(exist_ok=True)
    return open_run(report.save(folder / report.run_id), report.fingerprint)


def _run(report: RunReport, redaction: Redaction) -> _Run:
    folder = report.folder
    assert folder is not None
    check = check_run(folder, report.fingerprint)
    if check.altered:
        raise altered_error(report.run_id, check.altered)
    rewritten = {name: content for name, content in _without_paths(report, redaction) if name in check.hashes}
    if rewritten and SUMS in check.hashes:
        hashes = {name: digest for name, digest in check.hashes.items() if name != SUMS}
        hashes |= {name: hashlib.sha256(content).hexdigest() for name, content in rewritten.items()}
        rewritten[SUMS] = sums_text(hashes)
    fingerprint = hashlib.sha256(rewritten[SUMS]).hexdigest() if SUMS in rewritten else report.fingerprint
    within = run_folder(report.run_id)
    files = [Packed(f"{within}/{name}", rewritten.get(name, folder / name)) for name in check.hashes]
    kept = FilesInFolder(folder, report.fingerprint)
    same = report_from(_Overlay(rewritten, kept), fingerprint)
    bundled = BundledRun(report.run_id, fingerprint, report.fingerprint, tuple(sorted(rewritten.keys() - {SUMS})))
    return _Run(bundled, same, files)


def _without_paths(report: RunReport, redaction: Redaction) -> Iterator[tuple[str, bytes]]:
    """(name, content) of each file of a run that names places of the machine, without them."""
    content = report.files.read(MANIFEST)
    manifest = json.loads(content)
    cut = redaction.plain(manifest)
    if cut != manifest:
        if parse_spec(manifest["spec"]).sha256() == manifest.get("spec_sha256"):
            cut["spec_sha256"] = parse_spec(cut["spec"]).sha256()
        yield MANIFEST, _json(cut)
    summary = json.loads(report.files.read(SUMMARY))
    places = {name: redaction.plain(summary[name]) for name in _OF_PLACES}
    if any(summary[name] != places[name] for name in _OF_PLACES):
        yield SUMMARY, _json({**summary, **places})
    log = report.files.read(LOG).decode("utf-8", "replace")
    if (shown := redaction.text(log)) != log:
        yield LOG, shown.encode()


def _asked(folder: StudyFolder) -> list[JsonMap]:
    """What a study asks, as JSON has it, and its further runs."""
    study = folder.study.to_plain()
    return [study["run"], study["grid"], *(spec.model_dump(mode="json") for spec in folder.further)]


def _study(
    source: StudyReport, reports: tuple[RunReport, ...], redaction: Redaction, scratch: Path
) -> tuple[StudyReport, list[Packed], tuple[str, ...]]:
    """(the study as the bundle has it, its files but those of its answer, what is left out)"""
    place, within = scratch / source.folder.id, study_folder(source.folder.id)
    place.mkdir()
    files, left_out = [], []
    for name, cut in ((STUDY, _study_file), (FURTHER, _json_file), (JOURNAL, _json_lines), (REGISTRATION, _whole)):
        try:
            content = (source.folder.path / name).read_bytes()
        except FileNotFoundError:
            continue
        if (written := cut(content, redaction)) is None:
            left_out.append(f"{within}/{name}")
            continue
        (place / name).write_bytes(written)
        files.append(Packed(f"{within}/{name}", written))
    folder = StudyFolder.at(place)
    cells = {cell.number: cell for cell in folder.cells}
    progress = tuple(
        replace(each, cell=cells[each.cell.number], error=_cut_error(each.error, redaction)) for each in source.progress
    )
    runs = tuple(StudyRun(cells[run.cell.number], report) for run, report in zip(source.runs, reports, strict=True))
    question = folder.study.question
    study = StudyReport(folder, progress, runs, answered(question, runs) if question else None)
    return study, files, tuple(left_out)


def _study_file(content: bytes, redaction: Redaction) -> bytes:
    about = json.loads(content)
    study = Study.model_validate(redaction.plain(about["study"]))
    if redaction.plain(about) == about and not (redaction.cuts and about["where"]):
        return content
    return _json({**about, "where": "", "sha256": study.sha256(), "study": study.to_plain()})


def _json_file(content: bytes, redaction: Redaction) -> bytes:
    return redaction.json(content)


def _json_lines(content: bytes, redaction: Redaction) -> bytes:
    """A journal. Of a line that cannot be read nothing is known, so it is left out where anything is cut."""
    if not redaction.cuts:
        return content
    lines = []
    for line in content.decode("utf-8", "replace").splitlines():
        try:
            lines.append(json.dumps(redaction.plain(json.loads(line))))
        except ValueError:
            continue
    return "".join(f"{line}\n" for line in lines).encode()


def _whole(content: bytes, redaction: Redaction) -> bytes | None:
    """A file whose hash was published: as it is or not at all."""
    try:
        return content if redaction.json(content) == content else None
    except ValueError:
        return None if redaction.cuts else content


def _cut_error(error: CwaError | None, redaction: Redaction) -> CwaError | None:
    return CwaError(redaction.text(error.message)) if error else None


def _pictures(contents: Contents, scratch: Path) -> list[Packed]:
    """Every figure of the source as SVG; none where the extra that draws is not installed."""
    try:
        from cwa_engine.reports.drawing import write_figure
    except ImportError:
        return []
    folder, figures = drawn_figures(contents)
    found: list[Packed] = []
    for figure in figures:
        try:
            paths = write_figure(figure, scratch / "figures", ("svg",))
        except InvalidInput:  # without the extra `report` there are no pictures, and the tables are there
            return []
        found += [
            Packed(f"{folder}/{path.name}", _numbered(path.read_text())) for path in paths if path.suffix == ".svg"
        ]
    return found


def _numbered(svg: str) -> bytes:
    """A picture whose parts are numbered from 1 on: a process goes on counting from its last picture."""
    numbers: dict[str, str] = {}

    def name(found: re.Match[str]) -> str:
        return found[1] + numbers.setdefault(found[0], str(len(numbers) + 1))

    return re.sub(r"\b(clip|gradient_)\d+\b", name, svg).encode()


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()
