"""Write the tables of docs/ from the registries: `make docs`. A test says when they are out of date."""

from __future__ import annotations

from pathlib import Path

from cwa_engine.perturbation.controls import CONTROLS
from cwa_engine.perturbation.kinds import PERTURBATIONS
from cwa_engine.sensitivity.metrics import METRICS

DOCS = Path(__file__).parent


def metrics_page() -> str:
    """docs/metrics.md: metrics, perturbations and controls, each with what it says about itself."""
    lines = [
        "# Metrics, perturbations and controls",
        "",
        "Made from the registries by `make docs`; do not edit.",
        "",
        "L is the mean token negative log-likelihood in nats over all scored tokens of the scoring texts. For a weight w,",
        "g = dL/dw, and F is the mean over sequences s of (dL_s/dw)². Statistics are accumulated in float32.",
        "",
        "| metric | score | what it says | source |",
        "|---|---|---|---|",
        *(f"| `{name}` | {_cell(m.formula)} | {_cell(m.summary)} | {_cell(m.source)} |" for name, m in METRICS.items()),
        "",
        "| perturbation | what it does |",
        "|---|---|",
        *(f"| `{name}` | {_cell(p.summary)} |" for name, p in PERTURBATIONS.items()),
        "",
        "| control | which weights |",
        "|---|---|",
        *(f"| `{name}` | {_cell(c.summary)} |" for name, c in CONTROLS.items()),
        "",
    ]
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    (DOCS / "metrics.md").write_text(metrics_page())
