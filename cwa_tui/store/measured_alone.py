"""What a run measured of one weight alone, wherever it stands in its files. No Textual in it."""

from __future__ import annotations

from dataclasses import dataclass

from cwa_engine.records.run_report import RunReport


@dataclass(frozen=True, slots=True)
class Alone:
    """One measurement: the change of the loss in nats per token with its 95 % interval, by what and on which texts."""

    what: str
    delta: float
    low: float
    high: float


def measured_alone(report: RunReport, target: str) -> list[Alone]:
    """Every change of the loss that the run measured with this weight, row, column or head alone damaged."""
    found = []
    for head in report.summary.rankings:
        if head.top and head.top[0].target == target and report.spec.scope == "global":
            found += [
                Alone(f"{p.perturbation}, as the top 1 by {p.metric}", p.delta_nll, p.delta_low, p.delta_high)
                for p in report.damage
                if (p.metric, p.k, p.selection) == (head.metric, 1, "critical")
            ]
    alone = {row.perturbation: row for row in report.interactions if row.target == target}
    found += [Alone(f"{kind}, --individually", row.alone, row.alone_low, row.alone_high) for kind, row in alone.items()]
    found += [
        Alone("zero, sampled for fidelity", row.delta_nll, row.delta_low, row.delta_high)
        for row in report.predictions
        if row.target == target
    ]
    found += [
        Alone(f"zero, ablation on {row.texts} scoring texts", row.delta_nll, row.delta_low, row.delta_high)
        for row in report.ablations
        if row.target == target
    ]
    return found
