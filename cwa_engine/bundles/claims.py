"""Which figure shows a statement of a run or a study, and which rows of which file have its numbers. torch-free."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cwa_engine.base.plain import JsonMap
from cwa_engine.figures.figure import Figure, figure_name
from cwa_engine.records.run_report import RunReport
from cwa_engine.records.tables import CONTROLS, EVALUATION, PERTURBATION, topk_table
from cwa_engine.rows import GIVEN, to_plain
from cwa_engine.studies.report import ANSWER, StudyReport

SUMMARY = "summary.json"


def claims_of_run(report: RunReport, folder: str, figures: Sequence[Figure], figure_folder: str) -> Iterator[JsonMap]:
    """Every statement of a run. `folder` and `figure_folder` are where the bundle has its files and its figures."""
    names = {figure.name for figure in figures}
    for group in report.summary.damage:
        if group.critical is None:
            continue
        where = {"metric": group.metric, "k": group.k, "perturbation": group.perturbation}
        effect = f"{group.perturbation} of the top {group.k} by {group.metric} changes the loss"
        yield {
            "claim": group.verdict or f"{effect} by {group.critical.delta_nll:+.4g} nats per token.",
            "kind": "verdict" if group.verdict else "damage",
            "run": report.run_id,
            "outcome": group.outcome,
            "numbers": to_plain(group.critical),
            "controls": to_plain(group.controls),
            "figures": [
                f"{figure_folder}/{name}.csv" for name in _shown(group.metric, group.perturbation) if name in names
            ],
            "files": [
                {"file": f"{folder}/{SUMMARY}", "where": {"damage": where}},
                {"file": f"{folder}/{PERTURBATION.name}", "where": where},
                {"file": f"{folder}/{EVALUATION.name}", "where": where, "beside": {"selection": "intact"}},
                *_ranked(report, folder, group.metric, group.k),
                *(
                    [{"file": f"{folder}/{CONTROLS.name}", "where": _of(where, "metric", "k")}]
                    if group.controls
                    else []
                ),
            ],
        }
    for row in report.fidelity:
        yield {
            "claim": f"How well {row.metric} predicts the change of the loss by zeroing one weight.",
            "kind": "fidelity",
            "run": report.run_id,
            "numbers": to_plain(row),
            "figures": [_path(figure_folder, figure) for figure in figures if figure.name.startswith("fidelity")],
            "files": [{"file": f"{folder}/fidelity.csv", "where": {}}],
        }


def claims_of_study(
    report: StudyReport, folder: str, figures: Sequence[Figure], figure_folder: str
) -> Iterator[JsonMap]:
    """The answer of a study and each of its findings."""
    if not (answer := report.answer):
        return
    shown = [_path(figure_folder, figure) for figure in figures]
    files = [{"file": f"{folder}/{ANSWER}", "where": {}}] + [
        {"file": f"{folder}/{rows.table.name}", "where": {}} for rows in report.tables()
    ]
    yield {"claim": answer.sentence, "kind": "answer", "rule": answer.rule, "figures": shown, "files": files}
    for finding in answer.findings:
        said = {"claim": finding.sentence, "kind": "finding", "overturned_by": finding.overturned_by}
        yield {**said, "figures": shown, "files": files}


def _ranked(report: RunReport, folder: str, metric: str, k: int) -> list[JsonMap]:
    names = set(report.hashes)
    name = topk_table(metric).name
    return [{"file": f"{folder}/{name}", "where": {"rank": f"1 to {k}"}}] if metric != GIVEN and name in names else []


def _path(folder: str, figure: Figure) -> str:
    return f"{folder}/{figure.name}.csv"


def _shown(metric: str, perturbation: str) -> tuple[str, ...]:
    """Names of the figures that show the damage of a critical set, and where its weights are."""
    return figure_name("damage_curve", metric, perturbation), figure_name("heat_map", metric)


def _of(where: JsonMap, *names: str) -> JsonMap:
    return {name: where[name] for name in names}
