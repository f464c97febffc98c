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
        "L is the mean over all scored tokens t of the scoring texts of their negative log-likelihood l_t, in nats; L_s is",
        "the mean over the tokens of sequence s. For a weight w, g = dL/dw, and F is the mean over tokens of (dl_t/dw)²,",
        "estimated with random signs. ‖x‖² is the mean over sequences of the sum over tokens of the squares that the weight",
        "reads. Statistics are accumulated in float32. [method.md](method.md#scores) says more of scores.",
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
