"""How a run was made and how to make it again, as parts of a page. torch-free."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cwa_engine.command_line import command_of, config_text
from cwa_engine.records.checksums import MANIFEST
from cwa_engine.records.reading import MANIFEST_KEYS, parse_map
from cwa_engine.records.run_report import RunReport
from cwa_engine.reports.methods import methods_paragraph, protocol_line
from cwa_engine.reports.page_parts import Block, Code, Facts, Prose, Section
from cwa_engine.reports.page_tables import number


def method_section(report: RunReport) -> Section:
    """What was done, with which weights, texts, seeds, versions and machine."""
    manifest = _manifest(report)
    blocks: tuple[Block, ...] = (
        Prose(methods_paragraph(report)),
        Prose(f"Protocol: {protocol_line(report)}"),
        Code("As a command line", command_of(report.spec)),
        Code("As a file, for cwtool run --config", config_text(report.spec)),
        Facts("Model", tuple(_model(report))),
        Facts("Texts", tuple(_texts(report))),
        Facts("Seeds, versions and machine", tuple(_circumstances(report, manifest))),
    )
    return Section("method", "Method", blocks)


def repeat_section(report: RunReport, source: str) -> Section:
    """The commands that repeat and check the run, and the hashes of its files."""
    run = report.run_id
    commands = "\n".join((f"cwtool rerun {run}", f"cwtool verify {run}", f"cwtool bundle {run}"))
    hashes = tuple(report.hashes.items())
    fingerprint = (("fingerprint", report.fingerprint),) if report.fingerprint else ()
    return Section(
        "repeat",
        "How to repeat it",
        (
            Prose(
                "The first command runs it again and compares all tables byte for byte, the second recomputes every figure "
                "from the losses of the single texts, the third packs all of it into one file for others."
            ),
            Code("", commands),
            Prose(f"It takes the model and the texts: {report.model.location}; {source}."),
            Facts("SHA-256 of the run and of its tables", (*fingerprint, *hashes)),
        ),
    )


def _manifest(report: RunReport) -> dict[str, Any]:
    content = report.files.read(MANIFEST).decode("utf-8", "replace")
    return parse_map(report.folder or Path(report.run_id), MANIFEST, content, MANIFEST_KEYS)


def _model(report: RunReport) -> Iterator[tuple[str, str]]:
    model = report.model
    yield "name", model.name
    yield "location", model.location
    yield "kind", model.kind
    if model.revision:
        yield "revision", model.revision
    yield "weights", f"{model.parameters:,}, of which {report.summary.eligible:,} were eligible"
    if report.layers:
        yield "decoder blocks", f"{report.layers:,}"
    yield "computed in", f"{model.dtype} on {model.device}{f' ({model.device_name})' if model.device_name else ''}"
    for note in model.notes:
        yield "note", note
    for name, digest in model.files.items():
        yield name, f"SHA-256 {digest}"


def _texts(report: RunReport) -> Iterator[tuple[str, str]]:
    texts = report.texts
    yield "source", texts.source
    yield "all texts", f"{texts.texts:,}, SHA-256 {texts.sha256}"
    yield "scored", f"{texts.scoring:,}{f', SHA-256 {texts.scoring_sha256}' if texts.scoring_sha256 else ''}"
    hashed = f", SHA-256 {texts.evaluation_sha256}" if texts.evaluation_sha256 else ""
    yield "measured", f"{texts.evaluation:,}{hashed}"
    yield "scored and measured", "the same text" if texts.shared else f"{texts.overlap:,} texts"
    if texts.seq_len:
        yield "sequence length", f"{texts.seq_len:,} tokens{', packed' if texts.packed else ''}"
    yield "begin with", texts.bos or "nothing"
    yield "cut at that length", f"{texts.truncated:,}"
    yield "left out as repeated", f"{texts.repeated:,}"
    if texts.too_short:
        yield "left out as too short", f"{len(texts.too_short):,}"


def _circumstances(report: RunReport, manifest: dict[str, Any]) -> Iterator[tuple[str, str]]:
    summary, seeds = report.summary, manifest.get("seeds") or {}
    if seeds:
        drawn = seeds.get("controls") or []
        yield "seed", str(seeds.get("seed"))
        yield (
            "seeds of controls",
            f"{drawn[0]} to {drawn[-1]}" if len(drawn) > 1 else ", ".join(map(str, drawn)) or "none",
        )
    for name, version in report.versions.items():
        yield name, version
    for name, value in (manifest.get("machine") or {}).items():
        yield name, str(value)
    if summary.started:
        yield "started", time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(summary.started))
    if report.command:
        yield "typed", report.command
    for metric, run in summary.scores_from.items():
        yield f"scores of {metric}", f"kept from {run}"
    for stage, seconds in summary.timings.items():
        yield f"time, {stage}", f"{number(seconds)} s"
    if summary.peak_memory_bytes:
        yield "peak memory", f"{summary.peak_memory_bytes:,} bytes"
